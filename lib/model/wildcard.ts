// Shell wildcards taken apart, and put together as regular expressions.
//
// `*`, `?`, `[…]` and `\` mean nearly the same to rsync, to git and in our globs. They differ in
// what a run of stars crosses: rsync-pattern.ts, ignore-file.ts and filter.ts each decide that.
// No class fits a slash. A pattern is a string of bytes (RawPath) or of text; the
// expressions have the flag `u`, which fits both. Throws nothing: a pattern that is malformed is
// undefined, and fits nothing.

export type Wildcard =
  /** One character that stands for itself; `escaped` when a backslash was before it. */
  | { readonly kind: 'literal'; readonly character: string; readonly escaped: boolean }
  | { readonly kind: 'one' }
  | { readonly kind: 'stars'; readonly count: number }
  /** The source of a class, which never fits a slash. */
  | { readonly kind: 'class'; readonly source: string }

/** A part of an expression: a run of stars, or what stands between two such runs. */
export type Step =
  | { readonly kind: 'fixed'; readonly source: string }
  /** `source` is lazy: it tries the shortest run first. */
  | { readonly kind: 'stars'; readonly source: string; readonly crossesSlashes: boolean }

/** The classes of isalpha(3) and its like, in the C locale, in which rsync and git run. */
const NAMED_CLASSES: ReadonlyMap<string, string> = new Map(
  Object.entries({
    alnum: '0-9A-Za-z',
    alpha: 'A-Za-z',
    blank: '\\t ',
    cntrl: '\\x00-\\x1f\\x7f',
    digit: '0-9',
    graph: '!-~',
    lower: 'a-z',
    print: ' -~',
    punct: '!-\\/:-@\\[-`\\{-~',
    space: '\\t-\\r ',
    upper: 'A-Z',
    xdigit: '0-9A-Fa-f',
  }),
)

/**
 * A pattern as a list. `lenient`: what is malformed stands for itself.
 * @returns undefined where a class does not end or is unknown, or nothing follows a backslash
 */
export function parseWildcards(
  pattern: string,
  { lenient }: { readonly lenient: boolean },
): readonly Wildcard[] | undefined {
  const characters = [...pattern]
  const found: Wildcard[] = []
  for (let index = 0; index < characters.length;) {
    const character = characters[index] ?? ''
    const parsed = parseOne(characters, index)
    if (parsed === undefined && !lenient) return undefined
    found.push(parsed?.wildcard ?? { kind: 'literal', character, escaped: false })
    index = parsed?.next ?? index + 1
  }
  return found
}

interface Parsed {
  readonly wildcard: Wildcard
  /** The index after it. */
  readonly next: number
}

function parseOne(characters: readonly string[], index: number): Parsed | undefined {
  const character = characters[index] ?? ''
  if (character === '?') return { wildcard: { kind: 'one' }, next: index + 1 }
  if (character === '[') return parseClass(characters, index)
  if (character === '*') {
    let next = index + 1
    while (characters[next] === '*') next += 1
    return { wildcard: { kind: 'stars', count: next - index }, next }
  }
  if (character !== '\\') {
    return { wildcard: { kind: 'literal', character, escaped: false }, next: index + 1 }
  }
  const escaped = characters[index + 1]
  if (escaped === undefined) return undefined
  return { wildcard: { kind: 'literal', character: escaped, escaped: true }, next: index + 2 }
}

/**
 * `[a-z]`, `[!a]`, `[^a]`, `[]a]`, `[\]]`, `[[:alpha:]]`: as rsync and git read them, down to a
 * range the wrong way round, which is only its first character.
 */
function parseClass(characters: readonly string[], start: number): Parsed | undefined {
  const negated = ['!', '^'].includes(characters[start + 1] ?? '')
  let source = ''
  let index = start + (negated ? 2 : 1)
  /** What a range can begin with. */
  let previous: string | undefined
  for (let isFirst = true; isFirst || characters[index] !== ']'; isFirst = false) {
    let character = characters[index]
    if (character === undefined) return undefined
    const named = character === '[' ? namedClass(characters, index) : undefined
    if (named !== undefined) {
      const members = NAMED_CLASSES.get(named.name)
      if (members === undefined) return undefined
      source += members
      index = named.next
      previous = undefined
      continue
    }
    const after = characters[index + 1]
    const isRange = character === '-' && previous !== undefined && after !== ']'
    if (isRange || character === '\\') {
      if (isRange && after === '\\') index += 1
      character = characters[++index]
      if (character === undefined) return undefined
    }
    if (!isRange) source += quoted(character)
    else if (codePoint(previous) <= codePoint(character)) source += `-${quoted(character)}`
    previous = isRange ? undefined : character
    index += 1
  }
  const whole = `(?!/)[${negated ? '^' : ''}${source}]`
  return { wildcard: { kind: 'class', source: whole }, next: index + 1 }
}

/** `[:name:]` at `start`; undefined where the bracket is one like any other. */
function namedClass(
  characters: readonly string[],
  start: number,
): { readonly name: string; readonly next: number } | undefined {
  if (characters[start + 1] !== ':') return undefined
  const end = characters.indexOf(']', start + 2)
  const name = characters.slice(start + 2, end - 1).join('')
  if (end < start + 3 || characters[end - 1] !== ':') return undefined
  return { name, next: end + 1 }
}

function codePoint(character = ''): number {
  return character.codePointAt(0) ?? 0
}

/** A character that stands for itself in an expression with the flag `u`. */
export function quoted(character: string): string {
  return /^\w$/.test(character) ? character : `\\u{${codePoint(character).toString(16)}}`
}

/**
 * The whole expression, which fits from the first to the last character.
 *
 * What stands between two runs of stars is looked for once, as far to the left as it goes, and
 * never again, because the second run makes up for it: so no pattern takes exponential time. A run
 * within a name cannot make up for one that crosses slashes; it belongs to the same block.
 */
export function assemble(steps: readonly Step[]): RegExp {
  const firstStars = steps.findIndex(({ kind }) => kind === 'stars')
  if (firstStars < 0) return new RegExp(`^${joined(steps)}$`, 'u')
  const blocks: Group[][] = []
  for (const step of steps.slice(firstStars)) {
    const block = blocks.at(-1)
    const group = block?.at(-1)
    if (step.kind === 'fixed' && group !== undefined) group.fixed += step.source
    if (step.kind === 'fixed') continue
    const started = { stars: step.source, fixed: '' }
    if (block === undefined || step.crossesSlashes) blocks.push([started])
    else block.push(started)
  }
  let captures = 0
  const once = (source: () => string): string => {
    const capture = ++captures
    return `(?=(${source()}))(?:\\${capture})`
  }
  const sources = blocks.map((block, index) => {
    if (index < blocks.length - 1) return once(() => blockSource(block, once))
    return blockSource(block, once)
  })
  return new RegExp(`^(?:${joined(steps.slice(0, firstStars))}${sources.join('')})$`, 'u')
}

/** A run of stars, and what stands behind it up to the next. */
interface Group {
  readonly stars: string
  fixed: string
}

function blockSource(block: readonly Group[], once: (source: () => string) => string): string {
  const sources = block.map(({ stars, fixed }, index) => {
    const next = block[index + 1]
    // The first run may cross slashes; behind the last one there may be nothing to look for.
    const settles = index > 0 && next !== undefined && next.fixed !== ''
    return settles ? once(() => stars + fixed) : stars + fixed
  })
  return sources.join('')
}

function joined(steps: readonly Step[]): string {
  return steps.map(({ source }) => source).join('')
}
