// The nearest of some known words to one that was misspelled: for "did you mean …" in hints.
//
// Used for properties of the configuration, verbs and options. Pure; throws nothing.

/** Longer words are not worth the quadratic comparison: nobody misspells a whole paragraph. */
const MAX_WORD_LENGTH = 64

/**
 * The known word with the fewest edits from `word`; undefined where none is near (a third of the
 * word).
 */
export function nearestWord({
  word,
  known,
}: {
  readonly word: string
  readonly known: readonly string[]
}): string | undefined {
  if (word.length > MAX_WORD_LENGTH) return undefined
  let nearest: string | undefined
  let fewest = Math.max(1, Math.floor(word.length / 3)) + 1
  for (const candidate of known) {
    const edits = countEdits(word.toLowerCase(), candidate.toLowerCase())
    if (edits < fewest) [nearest, fewest] = [candidate, edits]
  }
  return nearest
}

/** Insertions, deletions, replacements and swaps of neighbours between two words. */
function countEdits(a: string, b: string): number {
  let older: number[] = []
  let previous = Array.from({ length: b.length + 1 }, (_, column) => column)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const replaced = at(previous, j - 1) + (a[i - 1] === b[j - 1] ? 0 : 1)
      let edits = Math.min(replaced, at(previous, j) + 1, at(row, j - 1) + 1)
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]
      if (swapped) edits = Math.min(edits, at(older, j - 2) + 1)
      row.push(edits)
    }
    older = previous
    previous = row
  }
  return at(previous, b.length)
}

function at(row: readonly number[], index: number): number {
  return row[index] ?? Infinity
}
