// One verification of a repository with everything that belongs to it: which bundles now, reading
// them, what the ledger and the known damage say afterwards, and the receipts.
//
// `backup verify` and `backup-restore --verify` call proveRepository (commands/restore-verify.ts),
// target-end.ts calls proveScheduled at the end of an export. Signatures, manifests and catalogs
// are always checked; of the bundles as many as were asked for, and verify.ts does it. Each is
// noted as soon as it was read, so that what is interrupted counts all the same. Throws what
// verifyExports throws, and COST_LIMIT.

import { existsSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import type { Configuration, TargetConfiguration } from '../machine/config.ts'
import { planProof, type ProofChoice, provenSince } from '../model/proof-plan.ts'
import type { Receipt } from '../model/receipt.ts'
import { bundlePath } from '../model/verification.ts'
import { noteDamage, readKnownDamage } from './known-damage.ts'
import {
  noteProofs,
  type ProofLedger,
  provenMs,
  readProofs,
  type ReadWhole,
} from './proof-ledger.ts'
import { receiptOfVerification, writeReceipt } from './receipts.ts'
import type { RecordPlace } from './repository-record.ts'
import { type ExportPlace, exportsOf, listStamps, readVerification } from './repository.ts'
import { openSigner, trustedKeys } from './signing.ts'
import { coldBundles } from './thaw.ts'
import { approveVerifying, tellCold } from './verify-bucket.ts'
import {
  type KnownBundle,
  type ReadBundle,
  type ReadingPlan,
  verifyExports,
  type VerifiedExport,
  type VerifyOptions,
  type VerifyOutcome,
} from './verify.ts'

/** What is noted of bundles waits so long, for the ledger is one file; a kill costs no more. */
const NOTE_EVERY_MS = 10_000

/** Which bundles, and how much at most. */
export interface ProofRequest {
  readonly choice: ProofChoice
  /** Of bundles, in this run. */
  readonly limitBytes: number | undefined
  /** From the beginning: then no more bundles are begun. */
  readonly timeMs: number | undefined
}

export interface ProveOptions extends Pick<
  VerifyOptions,
  'repository' | 'places' | 'identities' | 'cores' | 'report' | 'signal'
> {
  /** Of this machine. */
  readonly configuration: Configuration
  readonly target: TargetConfiguration
  /** Of the machine whose exports these are. */
  readonly publicKeys: readonly string[]
  readonly request: ProofRequest
  /** Whether these are all exports of their machine: then the ledger forgets what none needs. */
  readonly isEveryExport?: boolean
  /** Reads no bundles and notes nothing. */
  readonly isDryRun?: boolean
  readonly nowMs: number
}

export interface ProofOutcome extends VerifyOutcome {
  /** What the exports need. */
  readonly bundlesTotal: number
  readonly bytesTotal: number
  /** What was to be read of it, before time was up. */
  readonly planned: { readonly bundles: number; readonly bytes: number }
  /** Since when every bundle was proven as closely as now; undefined: some never were. */
  readonly sinceMs: number | undefined
  /** How many never were. */
  readonly neverProven: number
  /** What was signed: one, or two where only some sets were proven wholly. */
  readonly receipts: readonly Receipt[]
}

/**
 * Verifies exports of a repository as far as the request goes, and keeps what came of it.
 * @throws BackupError IDENTITY_WRONG, INTERRUPTED, COST_LIMIT, TARGET errors
 */
export async function proveRepository(options: ProveOptions): Promise<ProofOutcome> {
  const beganMs = performance.now()
  const { configuration, request, repository, publicKeys, isDryRun = false, report } = options
  const { timeMs = Infinity } = request
  const place = { staging: configuration.staging, id: repository.id }
  const ledger = standingProofs(place)
  const how = options.identities.length > 0 ? 'restored' : 'checksums'
  const nowMs = (): number => options.nowMs + Math.round(performance.now() - beganMs)
  const notes = takeNotes({ place, how, nowMs, isDryRun, report })
  const planned = { bundles: 0, bytes: 0 }
  const sizes = new Map<string, number>()
  const sums = new Map<string, string>()
  const plan = async (bundles: readonly KnownBundle[]): Promise<ReadingPlan> => {
    for (const { path, bytes, sha256 } of bundles) {
      sizes.set(path, bytes)
      sums.set(path, sha256)
    }
    const { toRead, cold } = await chooseBundles(options, { bundles, ledger, how })
    planned.bundles = toRead.length
    planned.bytes = toRead.reduce((sum, { bytes }) => sum + bytes, 0)
    return { toRead: isDryRun ? [] : toRead.map(({ path }) => path), cold }
  }
  let outcome: VerifyOutcome
  try {
    outcome = await verifyExports({
      ...options,
      publicKeys: async () => publicKeys,
      plan,
      isEnough: () => performance.now() - beganMs >= timeMs,
      onRead: notes.add,
    })
  } finally {
    notes.write()
  }
  const proven = (path: string): number | undefined => {
    const read = notes.readings.get(path)
    if (read !== undefined) return read.result === 'whole' ? read.atMs : undefined
    const sha256 = sums.get(path)
    return sha256 === undefined ? undefined : provenMs(ledger, { path, sha256, how })
  }
  const facts = { proven, sizes, endMs: nowMs(), readings: notes.readings }
  const needs = needsOf(outcome.exports)
  const receipts = isDryRun ? [] : await keep(options, { outcome, ...facts })
  const times = needs.map(proven)
  return {
    ...outcome,
    bundlesTotal: needs.length,
    bytesTotal: sumOf(needs, sizes),
    planned,
    sinceMs: provenSince(times, facts.endMs),
    neverProven: times.filter((timeMs) => timeMs === undefined).length,
    receipts,
  }
}

/** What the ledger says, but of what a drill or parity found damaged since: nothing proves that. */
function standingProofs(place: RecordPlace): ProofLedger {
  const damaged = readKnownDamage(place)
  return new Map([...readProofs(place)].filter(([path]) => !damaged.has(path)))
}

async function chooseBundles(
  { repository: { target }, target: configuration, request, report, signal, nowMs }: ProveOptions,
  {
    bundles,
    ledger,
    how,
  }: {
    readonly bundles: readonly KnownBundle[]
    readonly ledger: ProofLedger
    readonly how: Receipt['how']
  },
): Promise<{ readonly toRead: readonly KnownBundle[]; readonly cold: ReadonlySet<string> }> {
  const paths = bundles.map(({ path }) => path)
  const cold = await coldBundles(target, paths, { signal })
  const candidates = bundles
    .filter(({ path }) => !cold.has(path))
    .map((bundle) => ({ ...bundle, provenMs: provenMs(ledger, { ...bundle, how }) }))
  const { choice, limitBytes } = request
  const isWhole = isWholeReading(request)
  // Where all is read, the largest go first, so that all workers end together.
  const toRead = isWhole
    ? candidates.sort((one, other) => other.bytes - one.bytes)
    : planProof(candidates, { choice, limitBytes, nowMs })
  if (configuration.kind === 's3') {
    await approveVerifying(target, { configuration, bundles: toRead, report })
  }
  tellCold(target, { paths: [...cold].sort(), isWarning: isWhole, report })
  return { toRead, cold }
}

/** Whether everything is to be read, however long it takes. */
export function isWholeReading({ choice, limitBytes, timeMs }: ProofRequest): boolean {
  return choice.kind === 'all' && limitBytes === undefined && timeMs === undefined
}

type Reading = ReadBundle & { readonly atMs: number }

interface Notes {
  readonly readings: ReadonlyMap<string, Reading>
  readonly add: (bundle: ReadBundle) => void
  readonly write: () => void
}

/** Notes what was read, a little at a time. That it cannot be noted ends no verification. */
function takeNotes({
  place,
  how,
  nowMs,
  isDryRun,
  report,
}: Pick<ProveOptions, 'report'> & {
  readonly place: RecordPlace
  readonly how: Receipt['how']
  readonly nowMs: () => number
  readonly isDryRun: boolean
}): Notes {
  const readings = new Map<string, Reading>()
  let waiting: Reading[] = []
  let writtenMs = nowMs()
  const write = (): void => {
    const whole = waiting.filter(({ result }) => result === 'whole')
    // What is missing may have been let go of meanwhile: that is judged at the end.
    const damaged = waiting.filter(({ result }) => result === 'damaged').map(pathOf)
    const lost = waiting.filter(({ result }) => result !== 'whole').map(pathOf)
    waiting = []
    writtenMs = nowMs()
    if (isDryRun || whole.length + lost.length === 0) return
    orSay(report, 'what was proven was not noted', () => {
      const proofs = whole.map((read): ReadWhole => ({ ...read, how }))
      noteProofs(place, { whole: proofs, damaged: lost })
      noteDamage(place, { damaged, whole: whole.map(pathOf) })
    })
  }
  const add = (bundle: ReadBundle): void => {
    const reading = { ...bundle, atMs: nowMs() }
    readings.set(bundle.path, reading)
    waiting.push(reading)
    if (nowMs() - writtenMs >= NOTE_EVERY_MS) write()
  }
  return { readings, add, write }
}

function pathOf({ path }: { readonly path: string }): string {
  return path
}

function orSay(report: ProveOptions['report'], what: string, action: () => void): void {
  try {
    action()
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    const message = `${what}: ${error.message}`
    report({ kind: 'notice', level: 'info', code: error.code, message })
  }
}

interface Kept {
  readonly outcome: VerifyOutcome
  readonly proven: (path: string) => number | undefined
  readonly sizes: ReadonlyMap<string, number>
  readonly readings: ReadonlyMap<string, Reading>
  readonly endMs: number
}

/**
 * What `status` calls proven, and what exports do not refer to. A machine that has no key or
 * staging of its own keeps none.
 */
async function keep(options: ProveOptions, kept: Kept): Promise<readonly Receipt[]> {
  const { configuration, repository, report } = options
  const { staging } = configuration
  const { outcome } = kept
  // How another machine's exports are is that machine's affair.
  const isOurs = outcome.exports.every(({ machine }) => machine === configuration.machine)
  if (outcome.exports.length === 0 || !isOurs || !existsSync(staging)) return []
  const isGood = outcome.exports.every(({ problems }) => problems.length === 0)
  if (options.isEveryExport === true && isGood) {
    const needs = new Set(needsOf(outcome.exports))
    const own = `machines/${configuration.machine}/`
    const isKept = (path: string): boolean => !path.startsWith(own) || needs.has(path)
    orSay(report, 'what was let go was not forgotten', () => {
      noteProofs({ staging, id: repository.id }, { whole: [], damaged: [], isKept })
    })
  }
  orSay(report, 'what is damaged was not noted', () => {
    const { damagedFiles: damaged, wholeFiles: whole } = outcome
    noteDamage({ staging, id: repository.id }, { damaged, whole })
  })
  const receipts: Receipt[] = []
  try {
    const signer = await openSigner(configuration)
    for (const receipt of receiptsFor(options, kept)) {
      receipts.push(await writeReceipt({ staging, receipt, signer }))
    }
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    const message = `no receipt was written: ${error.message}`
    report({ kind: 'notice', level: 'info', code: error.code, message })
  }
  return receipts
}

/**
 * A verification for the sets of which every bundle was proven, be it over several runs; for the
 * others what was read of them.
 */
function receiptsFor(options: ProveOptions, kept: Kept): readonly Receipt[] {
  const { configuration, repository, nowMs: startMs, request } = options
  const { outcome, proven, sizes, readings, endMs } = kept
  const of = { configuration, repository, startMs, endMs }
  const { exports } = outcome
  const isGood = exports.every(({ problems }) => problems.length === 0)
  // What lies in cold storage cannot be proven, and a receipt would look as if it had been.
  if (isGood && exports.some(({ unread }) => unread > 0)) return []
  if (exports.every(({ left, unread }) => left + unread === 0)) {
    return [receiptOfVerification({ ...of, outcome })]
  }
  const isProven = ({ problems, needs }: VerifiedExport): boolean => {
    return problems.length === 0 && provenSince(needs.map(proven), endMs) !== undefined
  }
  const openSets = new Set(exports.filter((one) => !isProven(one)).map(({ set }) => set))
  // What nothing was read of was not looked at, unless its catalogs say that it is damaged.
  const isLookedAt = ({ problems, needs }: VerifiedExport): boolean => {
    return problems.length > 0 || needs.some((path) => readings.has(path))
  }
  const partly = exports.filter((one) => openSets.has(one.set) && isLookedAt(one))
  const wholly = exports.filter(({ set }) => !openSets.has(set))
  const receipts: Receipt[] = []
  if (wholly.length > 0) {
    const needs = needsOf(wholly)
    const totalBytes = sumOf(needs, sizes)
    const sinceMs = provenSince(needs.map(proven), endMs)!
    const figures = { exports: wholly, bundles: needs.length, bytesRead: totalBytes }
    const since = sinceMs < startMs ? { sinceMs } : {}
    receipts.push(receiptOfVerification({ ...of, outcome: { ...outcome, ...figures }, ...since }))
  }
  if (partly.length > 0) {
    const needs = needsOf(partly)
    const read = needs.flatMap((path) => readings.get(path) ?? [])
    const bytesRead = read.reduce((sum, { bytes }) => sum + bytes, 0)
    const figures = { exports: partly, bundles: read.length, bytesRead }
    const { choice } = request
    const seed = choice.kind === 'sample' ? choice.seed : undefined
    const part = { totalBytes: sumOf(needs, sizes), seed }
    receipts.push(receiptOfVerification({ ...of, outcome: { ...outcome, ...figures }, part }))
  }
  return receipts
}

function needsOf(exports: readonly Pick<VerifiedExport, 'needs'>[]): readonly string[] {
  return [...new Set(exports.flatMap(({ needs }) => needs))]
}

function sumOf(paths: readonly string[], sizes: ReadonlyMap<string, number>): number {
  return paths.reduce((sum, path) => sum + (sizes.get(path) ?? 0), 0)
}

/**
 * What the target's `verify` asks for at the end of an export; undefined where it asks for nothing,
 * or everything was proven lately enough.
 * @throws what proveRepository throws
 */
export async function proveScheduled(
  options: Omit<ProveOptions, 'places' | 'publicKeys' | 'request'>,
): Promise<ProofOutcome | undefined> {
  const { configuration, target, repository } = options
  const { machine } = configuration
  if (target.verify === undefined) return undefined
  const { olderThanMs, limitBytes, timeMs } = target.verify
  const places = exportsOf(await listStamps(repository, machine))
  const publicKeys = await trustedKeys(configuration, { machine, fromIdentity: [] })
  const due = { olderThanMs, places, publicKeys }
  if (places.length === 0 || !(await isProofDue(options, due))) return undefined
  const choice = { kind: 'older', olderThanMs } as const
  return await proveRepository({
    ...options,
    places,
    publicKeys,
    isEveryExport: true,
    request: { choice, limitBytes, timeMs },
  })
}

/** By the small signed verification files alone: catalogs are only read when there is a reason. */
async function isProofDue(
  {
    configuration,
    repository,
    identities,
    nowMs,
  }: Pick<ProveOptions, 'configuration' | 'repository' | 'identities' | 'nowMs'>,
  {
    olderThanMs,
    places,
    publicKeys,
  }: {
    readonly olderThanMs: number
    readonly places: readonly ExportPlace[]
    readonly publicKeys: readonly string[]
  },
): Promise<boolean> {
  const ledger = standingProofs({ staging: configuration.staging, id: repository.id })
  const how = identities.length > 0 ? 'restored' : 'checksums'
  const times: (number | undefined)[] = []
  for (const place of places) {
    try {
      const { bundles } = await readVerification(repository, place, publicKeys)
      for (const [name, sha256] of bundles) {
        times.push(provenMs(ledger, { path: bundlePath(place.machine, name), sha256, how }))
      }
    } catch (error) {
      // Whatever is wrong with it, the verification says so.
      if (!(error instanceof BackupError) || error.exitCode !== 13) throw error
      return true
    }
  }
  const sinceMs = provenSince(times, nowMs)
  return sinceMs === undefined || sinceMs < nowMs - olderThanMs
}
