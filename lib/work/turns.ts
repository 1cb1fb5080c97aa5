// One thing after another: actions that must not be under way at the same time take turns.
//
// For what one connection or one reader does in several steps with waiting between them; used by
// browse-export.ts and browse-pieces.ts. Throws what the actions throw, to whoever asked for them.

export class Turns {
  #last: Promise<unknown> = Promise.resolve()

  /** Runs an action when all before it have ended, however they ended. */
  async take<Value>(action: () => Promise<Value>): Promise<Value> {
    const turn = this.#last.then(action)
    this.#last = turn.catch(() => undefined)
    return await turn
  }
}
