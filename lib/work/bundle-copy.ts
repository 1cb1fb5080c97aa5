// A tree copied as exports and restores copy it: sealed, packed into one bundle for a key of the
// moment, read back from the medium, and restored out of it.
//
// The self-test's copier (self-test.ts), and no way to back anything up: there is no manifest, so
// no export. What makes the copy is what makes every restore (restore.ts). Throws what packing,
// prove and restoreSelection throw; what is not restored is an answer.

import { Buffer } from 'node:buffer'
import { generateIdentity, recipientOf } from '../format/age-keys.ts'
import { digestBytes } from '../format/chunker.ts'
import { tarPadding } from '../format/tar.ts'
import { readAccountNames } from '../machine/accounts.ts'
import { dataBytes, type Entry } from '../model/entry.ts'
import { isWithin, type RawPath } from '../model/raw-path.ts'
import { type BundleFacts, BundleWriter } from './bundle-writer.ts'
import { entryHeader } from './entry-header.ts'
import { prove } from './prove.ts'
import { restoreSelection } from './restore.ts'
import { sealTree } from './seal.ts'
import { readSourceMetadata } from './source-metadata.ts'
import { StagedFile } from './staged-file.ts'

/**
 * Copies what is below `source` into the empty directory `into`, by way of the file `bundle`, which
 * is made. Content is held in memory: it is for small trees.
 * @returns why what is at a path, or below it, is not there as it was
 */
export async function copyThroughBundle({
  source,
  bundle,
  into,
  signal,
}: {
  readonly source: RawPath
  readonly bundle: RawPath
  readonly into: RawPath
  readonly signal: AbortSignal
}): Promise<(path: RawPath) => string> {
  const sealed = sealTree({ directory: source, names: readAccountNames() })
  const entries = readSourceMetadata({ entries: sealed, rootOf: () => source })
  const identity = generateIdentity()
  const writer = new BundleWriter({ recipients: [recipientOf(identity)], level: 1 })
  let packed: readonly Entry[]
  let facts: BundleFacts
  try {
    writer.open(bundle)
    packed = entries.map((entry) => pack(entry, { source, writer }))
    const { file, ...rest } = writer.finish()
    prove(file)
    facts = rest
  } catch (error) {
    writer.abort()
    throw error
  }
  const bundles = [{ path: bundle, frames: facts.frames }]
  const outcome = await restoreSelection(
    { entries: packed, parents: [], content: { kind: 'bundles', bundles } },
    {
      ...{ into, overwrite: 'never', deleteIn: [], identities: [identity], cores: 1 },
      ...{ aside: undefined, dryRun: false, checksRoom: false },
      report: () => undefined,
      signal,
    },
  )
  return (path) => {
    const isHere = (one: RawPath): boolean => isWithin({ path: one, directory: path })
    const failure = outcome.failures.find((one) => isHere(one.path))
    if (failure !== undefined) return failure.why
    const lost = outcome.lost.filter((one) => isHere(one.path)).flatMap(({ what }) => what)
    if (lost.length > 0) return `it cannot be set there (${[...new Set(lost)].join(', ')})`
    return outcome.kept.some(isHere) ? 'its name is taken there' : 'it is not the same there'
  }
}

/** An ordinary tar member; content is one piece. */
function pack(
  entry: Entry,
  { source, writer }: { readonly source: RawPath; readonly writer: BundleWriter },
): Entry {
  writer.boundary()
  const header = entryHeader({ metadata: entry })
  const range = [0, writer.tarBytes, header.length] as const
  writer.append(header)
  if (entry.type !== 'file' || dataBytes(entry) === 0) return { ...entry, header: range }
  const content = readData(`${source}/${entry.path}`, entry)
  const id = digestBytes(content).toString('hex')
  const piece = [id, 0, writer.tarBytes, content.length] as const
  writer.append(content)
  writer.append(Buffer.alloc(tarPadding(content.length)))
  return { ...entry, header: range, pieces: [piece] }
}

function readData(path: RawPath, entry: Entry): Buffer {
  const file = new StagedFile({ path, metadata: entry })
  try {
    const content = Buffer.alloc(dataBytes(entry))
    file.read(content, 0)
    return content
  } finally {
    file.close()
  }
}
