// Goes on with exports over a network that were killed: what waits in the spool is sent, and what
// was sent is used.
//
// export.ts calls it before it plans anything; unfinished.ts is what it goes by. Bundles first
// (finishSending), or the whole export where it lacked nothing but its manifest (finishCommit).
// What can never be finished is given up, with a notice, so that no run is stuck (invariant 7). On
// a target of files there is nothing to do. Throws what the target throws, TARGET_FAILED for a
// collection that cannot be exported any more, INTERRUPTED.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, rmSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import { exportName } from '../model/manifest.ts'
import { type RawPath, baseOf, parentOf, rawPathToBytes } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import {
  MANIFEST,
  VERIFICATION,
  VERIFICATION_SIGNATURE,
  bundleFile,
  bundlePath,
  parseVerification,
} from '../model/verification.ts'
import type { Target } from '../target/target.ts'
import { unlessAborted } from './interruption.ts'
import { type Repository, type StampDirectory, directoryOf } from './repository.ts'
import { verifySigned } from './signing.ts'
import { adoptPending, pendingCommit, stateDirectory } from './state.ts'
import {
  type UnfinishedBundle,
  forgetBundle,
  forgetUnfinished,
  readUnfinished,
} from './unfinished.ts'

/**
 * In a bucket a signed list stays, and another one of that name cannot be written: better told
 * before anything is sent than after everything was.
 */
export function refuseTaken({ target }: Repository, left: StampDirectory | undefined): void {
  if (target.bucket === undefined || left === undefined) return
  const name = [VERIFICATION, VERIFICATION_SIGNATURE].find((one) => left.files.has(one))
  if (name === undefined) return
  const path = `${directoryOf(left)}/${name}`
  throw new BackupError('TARGET_FAILED', `${path} is there already, of an export that is not`, {
    hint: 'this collection cannot be exported there; collect again, and the next one is',
    facts: { path },
  })
}

/**
 * An export over the network that lacked nothing but its manifest when it was killed: the manifest
 * still waits in the spool, and is sent now, of whichever set it is: the next one that is exported
 * would take its place in the state. Where anything else of it changed it is left alone.
 */
export async function finishCommit(
  repository: Repository,
  of: {
    readonly staging: string
    readonly machine: string
    /** This machine's. */
    readonly publicKey: string
    readonly report: Report
  },
): Promise<void> {
  const { staging, machine, publicKey, report } = of
  const { target } = repository
  if (target.access === 'files') return
  const directory = stateDirectory({ staging, id: repository.id })
  const commit = pendingCommit(directory)
  if (commit === undefined) return
  const place = { machine, set: commit.set, stamp: commit.stamp }
  const path = `${directoryOf(place)}/${MANIFEST}`
  const spool = await target.workDirectory(directoryOf(place))
  const [manifest, verification, signature] = [
    readSpooled(`${spool}/${MANIFEST}.partial`),
    readSpooled(`${spool}/${VERIFICATION}`),
    readSpooled(`${spool}/${VERIFICATION_SIGNATURE}`),
  ]
  if (manifest === undefined || verification === undefined || signature === undefined) return
  if (createHash('sha256').update(manifest).digest('hex') !== commit.sha256) return
  // A disk that changes bits must not have us publish a signature that does not fit.
  const signed = { bytes: verification, signature: signature.toString() }
  const file = `${exportName(place)}/${VERIFICATION}`
  const isOurs = await verifySigned({
    ...{ ...signed, publicKeys: [publicKey], file, repository: repository.id },
  }).then(
    () => true,
    () => false,
  )
  if (!isOurs) return
  const { bundles } = parseVerification(verification.toString(), place)
  const there = new Set((await target.listTree(`machines/${machine}`)).map(({ name }) => name))
  if (![...bundles.keys()].every((name) => there.has(bundleFile(name)))) return
  try {
    await target.write(`${directoryOf(place)}/${VERIFICATION}`, verification)
    await target.write(`${directoryOf(place)}/${VERIFICATION_SIGNATURE}`, signature)
    await target.publish(path, commit.sha256)
  } catch (error) {
    if (!isFinal(error)) throw error
    // Or no newer collection would ever be exported.
    const message = `${exportName(place)} cannot be finished: ${error.message}`
    report({ kind: 'notice', level: 'warning', code: 'NOT_FINISHED', message })
    return
  }
  adoptPending(directory)
  await forgetSent(repository, { staging, ...place })
}

/** Once the manifest is there: nothing of the set waits to be sent any more. */
export async function forgetSent(
  { target, id }: Repository,
  { staging, machine, set }: { readonly staging: string; readonly machine: string; set: string },
): Promise<void> {
  forgetUnfinished({ staging, id, set })
  if (target.access === 'network') await clearSpool(target, { machine, set })
}

async function clearSpool(
  target: Target,
  { machine, set }: { readonly machine: string; readonly set: string },
): Promise<void> {
  const spool = await target.workDirectory(`machines/${machine}/${set}`)
  rmSync(rawPathToBytes(spool), { recursive: true, force: true })
}

function readSpooled(path: RawPath): Buffer | undefined {
  try {
    return readFileSync(rawPathToBytes(path))
  } catch {
    return undefined
  }
}

/**
 * Bundles of a killed export over the network: what waits in the spool is sent, and what is there
 * is told. What is neither is packed again.
 */
export async function finishSending(
  { target, id }: Repository,
  of: {
    readonly staging: string
    readonly machine: string
    readonly set: string
    /** What is listed. */
    readonly stamps: readonly StampDirectory[]
    readonly report: Report
    readonly signal: AbortSignal
  },
): Promise<readonly UnfinishedBundle[]> {
  if (target.access === 'files') return []
  const { staging, machine, set, stamps, report, signal } = of
  const sizes = new Map<string, number>(
    stamps.flatMap(({ stamp, files, set: of }) =>
      [...files].map(([name, sizeBytes]) => [`${of}/${stamp}/${name}`, sizeBytes] as const),
    ),
  )
  const unfinished: UnfinishedBundle[] = []
  for (const bundle of readUnfinished({ staging, id, set })) {
    const path = bundlePath(machine, bundle.name)
    const spooled = `${await target.workDirectory(parentOf(path))}/${baseOf(path)}.partial`
    if (existsSync(rawPathToBytes(spooled))) {
      // Also where it is there: publish() clears the spool once it is proven, and not before.
      report({ kind: 'phase', name: `going on with ${bundle.name}` })
      const why = await whyNotSent(target, { path, sha256: bundle.sha256, signal })
      if (why !== undefined) {
        forgetBundle({ staging, id, set }, bundle.name)
        const message = `${bundle.name} cannot be gone on with, and is packed again: ${why}`
        report({ kind: 'notice', level: 'warning', code: 'PACKED_AGAIN', message })
        continue
      }
    } else if (sizes.get(bundleFile(bundle.name)) !== bundle.sizeBytes) continue
    unfinished.push(bundle)
  }
  // Whatever else is there was being packed when the run was killed.
  await clearSpool(target, { machine, set })
  return unfinished
}

/** Sends what waits in the spool. @returns why that cannot ever be done */
async function whyNotSent(
  target: Target,
  of: { readonly path: string; readonly sha256: string; readonly signal: AbortSignal },
): Promise<string | undefined> {
  try {
    await unlessAborted(of.signal, target.publish(of.path, of.sha256))
    return undefined
  } catch (error) {
    if (!isFinal(error)) throw error
    return error.message
  }
}

/** Whether what is there is another thing than what was to be there: that stays so. */
function isFinal(error: unknown): error is BackupError {
  if (!(error instanceof BackupError) || error.retry === 'later') return false
  // A refusal of the service is about the call.
  const isRefusal = error.facts['s3'] !== undefined
  return (error.code === 'TARGET_FAILED' && !isRefusal) || error.code === 'READ_BACK'
}
