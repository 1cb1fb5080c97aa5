// Recovery from bundles alone: no configuration, no repository.json, no names, perhaps no
// manifests and no catalogs.
//
// openRecovery finds what there is and says what of it can come back; recoverExports restores what
// was chosen of it (recover-choice.ts), reads again what fails, and looks for its pieces in all
// other bundles. Only reads where the bundles lie. What no signature vouches for never meets
// anything that was there before. Throws NOTHING_FOUND, IDENTITY_WRONG, ALREADY_THERE, INTERRUPTED,
// and what restoring throws.

import { existsSync, lstatSync, mkdirSync, readdirSync, rmdirSync } from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import type { MachineKey } from '../machine/identity.ts'
import type { Entry } from '../model/entry.ts'
import { type RawPath, displayPath, isWithin, rawPathToBytes } from '../model/raw-path.ts'
import { checkSafePath } from '../model/safe-path.ts'
import { bundleFile } from '../model/verification.ts'
import { FoundBundles, type Scan, scanDirectory } from './recover-bundles.ts'
import {
  type DistrustedManifest,
  type Evidence,
  FoundCatalogs,
  type FoundEntry,
  type FoundExport,
  type FoundShard,
  type LostPath,
  type Recovery,
  type SurveyedExport,
  entriesOf,
  findExports,
  findPieces,
  lackingIds,
  lossOf,
  membersExport,
  surveyExports,
} from './recover-exports.ts'
import { type Laid, layOut, newestFirst, takeLaid } from './recover-layers.ts'
import { type MediumOptions, isMedium, scanMedium } from './recover-medium.ts'
import type { FoundContents, FoundFile } from './recover-scan.ts'
import { restoreAgain } from './restore-again.ts'
import { planRestore, withStandIns } from './restore-plan.ts'
import { checkRoom } from './restore-room.ts'
import { type RestoreOutcome, carryOut, previewRestore } from './restore.ts'
import type { NumberedBundles } from './selection.ts'

export type { DistrustedManifest, LostPath, SurveyedExport } from './recover-exports.ts'

export interface RecoverOptions extends MediumOptions {
  /** An absolute path, without a trailing slash: a directory, a drive, or an image of one. */
  readonly from: RawPath
  /** Whose signatures count. */
  readonly keys: readonly MachineKey[]
}

/** What is below a directory, and what of it can come back. */
export interface Recoverable {
  readonly scan: Scan
  /** The best evidence first, then the newest. */
  readonly exports: readonly SurveyedExport[]
  readonly distrusted: readonly DistrustedManifest[]
  readonly recovery: Recovery
  readonly options: RecoverOptions
  readonly close: () => void
}

/**
 * Finds what there is. Reads heads and catalogs; data only where no catalog says what it is.
 * @throws BackupError NOTHING_FOUND, IDENTITY_WRONG, INTERRUPTED
 */
export async function openRecovery(options: RecoverOptions): Promise<Recoverable> {
  const { from, keys, identities, signal, report } = options
  const scan = isMedium(from) ? await scanMedium(from, options) : await scanDirectory(from, options)
  const bundles = new FoundBundles(scan.found, options)
  const catalogs = new FoundCatalogs(scan.found, identities)
  const close = (): void => {
    bundles.close()
    catalogs.close()
  }
  try {
    const recovery = { bundles, catalogs, signal }
    report({ kind: 'phase', name: 'reading catalogs' })
    const { exports: found, distrusted } = await findExports(scan.found, { catalogs, keys, signal })
    const surveyed = await surveyExports(found, recovery)
    const members = await readMembers(surveyed, bundles)
    const exports = [...surveyed, ...(members === undefined ? [] : [members])]
    const isAnyLost = surveyed.some(({ lost }) => lost.length > 0)
    if (members === undefined && !isAnyLost) {
      return { scan, exports: surveyed, distrusted, recovery, options, close }
    }
    await searchCatalogs(exports, recovery)
    const again = await surveyExports(exports, recovery)
    return { scan, exports: again, distrusted, recovery, options, close }
  } catch (error) {
    close()
    throw error
  }
}

/**
 * Reads the bundles that no catalog names, and all of them where a part of some catalog is gone.
 */
async function readMembers(
  surveyed: readonly SurveyedExport[],
  bundles: FoundBundles,
): Promise<FoundExport | undefined> {
  const isPartLost = surveyed.some(({ lostShards }) => lostShards.length > 0)
  const numbers = [...bundles.all.keys()].filter((number) => {
    return isPartLost || bundles.nameOf(number) === undefined
  })
  if (numbers.length === 0) return undefined
  const phase = 'reading bundles without a catalog'
  const contents = await readBundles(numbers, { bundles, phase, withMembers: true })
  for (const { number, pieces } of contents) {
    for (const [id, offset, length] of pieces) {
      bundles.addPlace(id, { bundle: number, offset, length })
    }
  }
  return membersExport(contents, bundles)
}

/** Reads the best copy of each bundle whole, and the others where that one is damaged. */
async function readBundles(
  numbers: readonly number[],
  {
    bundles,
    phase,
    withMembers,
  }: { readonly bundles: FoundBundles; readonly phase: string; readonly withMembers: boolean },
): Promise<readonly (FoundContents & { readonly number: number })[]> {
  const read: (FoundContents & { readonly number: number })[] = []
  const take = async (files: readonly FoundFile[]): Promise<readonly FoundContents[]> => {
    const contents = await bundles.read(files, { phase, withMembers })
    for (const one of contents) read.push({ ...one, number: bundles.numberOf(one.path) })
    return contents
  }
  const contents = await take(numbers.map((number) => bundles.all[number]!.copies[0]!))
  const more = contents.flatMap(({ path, bad, error }) => {
    const { copies, isCut } = bundles.all[bundles.numberOf(path)]!
    return bad.length === 0 && error === undefined && !isCut ? [] : copies.slice(1)
  })
  if (more.length > 0) await take(more)
  return read
}

/** Looks in all catalogs for other places of pieces that are lacking. */
async function searchCatalogs(exports: readonly FoundExport[], recovery: Recovery): Promise<void> {
  const wanted = new Set<string>()
  for (const one of exports) {
    for await (const found of entriesOf(one, recovery)) {
      if ('lostShard' in found) continue
      for (const id of lackingIds(found, recovery.bundles)) wanted.add(id)
    }
  }
  if (wanted.size > 0) await findPieces(wanted, exports, recovery)
}

/** What a bundle that is damaged or nowhere costs. */
export interface BundleDamage {
  /** The path of a file, or what catalogs call a bundle that is nowhere; undefined for none. */
  readonly bundle: string | undefined
  /** A file that does not open and has its name. */
  readonly unread: RawPath | undefined
  readonly costs: readonly { readonly name: string; readonly path: RawPath }[]
}

/** By bundle, which files of which exports it costs. */
export function damageOf(
  exports: readonly SurveyedExport[],
  { unread }: Pick<Scan, 'unread'>,
): readonly BundleDamage[] {
  const damages = new Map<string | undefined, { name: string; path: RawPath }[]>()
  for (const { name, lost } of exports) {
    for (const { bundle, path } of lost) {
      const costs = damages.get(bundle)
      if (costs === undefined) damages.set(bundle, [{ name, path }])
      else costs.push({ name, path })
    }
  }
  return [...damages].map(([bundle, costs]) => {
    const file = unread.find(
      ({ path }) => bundle !== undefined && path.endsWith(`/${bundleFile(bundle)}`),
    )
    return { bundle, unread: file?.path, costs }
  })
}

export interface RecoverWords {
  readonly chosen: readonly SurveyedExport[]
  /** Without leading slashes; none for everything. */
  readonly paths: readonly RawPath[]
  /** An absolute path, without a trailing slash. */
  readonly into: RawPath
  readonly dryRun: boolean
  /** Whether the filesystem is asked for room. */
  readonly checksRoom: boolean
}

export interface RecoverOutcome extends RestoreOutcome {
  readonly evidence: Evidence
  /** What is not restored because it is not there to be read. */
  readonly unrecovered: readonly LostPath[]
  readonly lostShards: readonly FoundShard[]
  /** How many entries are older versions, below `.versions`. */
  readonly versions: number
  /** What is known now of all exports: reading found more damage, perhaps. */
  readonly exports: readonly SurveyedExport[]
}

/**
 * Restores what was chosen; with `dryRun` reads all of it and says what would come back.
 * @throws BackupError NOTHING_FOUND, ALREADY_THERE, RESTORE_FAILED, RESTORE_FULL, INTERRUPTED
 */
export async function recoverExports(
  found: Recoverable,
  words: RecoverWords,
): Promise<RecoverOutcome> {
  const { chosen, into, dryRun } = words
  const isSigned = chosen.every(({ evidence }) => evidence === 'signed')
  const isNew = !existsSync(rawPathToBytes(into))
  if (!dryRun) makeDirectory(into, { isSigned })
  const job = new Recover(found, words)
  let outcome: RestoreOutcome
  try {
    await job.load()
    if (dryRun) await job.readNeeded()
    await job.searchEverywhere()
    outcome = dryRun ? await job.preview() : await job.restore()
  } catch (error) {
    if (isNew && !dryRun && isEmptyDirectory(into)) rmdirSync(rawPathToBytes(into))
    throw error
  }
  const { evidence } = chosen.at(-1) ?? { evidence: 'members' as const }
  const exports = job.hasRead ? await surveyExports(found.exports, found.recovery) : found.exports
  return { ...outcome, ...job.losses(), evidence, exports }
}

function isEmptyDirectory(path: RawPath): boolean {
  return existsSync(rawPathToBytes(path)) && readdirSync(rawPathToBytes(path)).length === 0
}

/** What is not signed gets a directory of its own, which nobody else can look into. */
function makeDirectory(path: RawPath, { isSigned }: { isSigned: boolean }): void {
  try {
    const there = lstatSync(rawPathToBytes(path), { throwIfNoEntry: false })
    if (there === undefined) mkdirSync(rawPathToBytes(path), { mode: isSigned ? 0o777 : 0o700 })
    const names = readdirSync(rawPathToBytes(path))
    if (isSigned || names.length === 0) return
  } catch (cause) {
    const code = systemCode(cause)
    if (code === undefined) throw cause
    throw new BackupError(
      'RESTORE_FAILED',
      `${displayPath(path)} cannot be a directory (${code})`,
      { hint: 'name a directory that you may write, or a new one in one that exists', cause },
    )
  }
  throw new BackupError('ALREADY_THERE', `${displayPath(path)} is not empty`, {
    hint: 'what no signature vouches for goes into a new directory; nothing was restored',
  })
}

/** Failures that another copy of the same bytes may help. */
const OF_CONTENT: readonly string[] = [
  ...['BUNDLE_DAMAGED', 'BUNDLE_MISSING', 'AGE_PAYLOAD', 'AGE_HEADER', 'ZSTD_DAMAGED'],
]

class Recover {
  /** Whether any bundle was read whole since the exports were surveyed. */
  hasRead = false
  readonly #found: Recoverable
  readonly #recovery: Recovery
  readonly #words: RecoverWords
  /** In the order in which they get their names. */
  #entries: readonly FoundEntry[] = []
  readonly #lostShards: FoundShard[] = []
  readonly #lost = new Map<RawPath, LostPath>()
  #versions = 0

  constructor(found: Recoverable, words: RecoverWords) {
    this.#found = found
    this.#recovery = found.recovery
    this.#words = words
  }

  losses(): Pick<RecoverOutcome, 'unrecovered' | 'lostShards' | 'versions'> {
    const unrecovered = [...this.#lost.values()]
    return { unrecovered, lostShards: this.#lostShards, versions: this.#versions }
  }

  /** Better evidence first, and within it what is newer. */
  async load(): Promise<void> {
    const entries: FoundEntry[] = []
    for (const one of this.#words.chosen) {
      const ofExport: FoundEntry[] = []
      for await (const found of entriesOf(one, this.#recovery)) {
        if ('lostShard' in found) this.#lostShards.push(found.lostShard)
        else ofExport.push(found)
      }
      const isPool = one.evidence === 'shards' || one.evidence === 'members'
      for (const found of isPool ? newestFirst(ofExport) : ofExport) entries.push(found)
    }
    this.#entries = entries
  }

  /** Reads every bundle that what is wanted needs. */
  async readNeeded(): Promise<void> {
    await this.#readBundlesOf(this.#wanted(), 'reading bundles')
  }

  /** Reads the bundles that hold these files, where that was not done yet. */
  async #readBundlesOf(files: readonly { readonly entry: Entry }[], phase: string): Promise<void> {
    const { bundles } = this.#recovery
    const numbers = new Set<number>()
    for (const { entry } of files) {
      for (const [id, bundle, offset, length] of entry.pieces ?? []) {
        const place = bundles.placeOf(id, { bundle, offset, length })
        if (place !== undefined && !bundles.isRead(place.file))
          numbers.add(bundles.numberOf(place.file.path))
      }
    }
    await this.#read([...numbers], phase)
  }

  /** Looks for pieces that are lacking in all catalogs, and then in all bundles. */
  async searchEverywhere(): Promise<void> {
    const { bundles } = this.#recovery
    const lacking = (): ReadonlySet<string> => {
      return new Set(this.#wanted().flatMap((found) => lackingIds(found, bundles)))
    }
    let wanted = lacking()
    if (wanted.size === 0) return
    await findPieces(wanted, this.#found.exports, this.#recovery)
    wanted = lacking()
    if (wanted.size === 0) return
    const unread = [...bundles.all.keys()].filter((number) => {
      return !bundles.all[number]!.copies.every((file) => bundles.isRead(file))
    })
    for (const { number, pieces } of await this.#read(unread, 'looking for lost pieces')) {
      for (const [id, offset, length] of pieces) {
        if (wanted.has(id)) bundles.addPlace(id, { bundle: number, offset, length })
      }
    }
  }

  async #read(
    numbers: readonly number[],
    phase: string,
  ): Promise<readonly (FoundContents & { readonly number: number })[]> {
    if (numbers.length === 0) return []
    this.hasRead = true
    const { bundles } = this.#recovery
    return await readBundles(numbers, { bundles, phase, withMembers: false })
  }

  /** Files of the paths that are asked for. */
  #wanted(): readonly FoundEntry[] {
    return this.#entries.filter(({ entry }) => entry.type === 'file' && this.#isAsked(entry.path))
  }

  #isAsked(path: RawPath): boolean {
    const { paths } = this.#words
    return paths.length === 0 || paths.some((directory) => isWithin({ path, directory }))
  }

  async preview(): Promise<RestoreOutcome> {
    return previewRestore(await this.#plan(this.#layOut()))
  }

  async restore(): Promise<RestoreOutcome> {
    const laid = this.#layOut()
    const outcome = await this.#carryOut(laid)
    const failed = new Set(
      outcome.failures.flatMap(({ code, path }) => (OF_CONTENT.includes(code) ? [path] : [])),
    )
    if (failed.size === 0) return outcome
    const isFailed = ({ entry }: Laid): boolean => failed.has(entry.path)
    const again = await this.#placeAgain(laid.filter(isFailed))
    const paths = new Set(again.map(({ entry }) => entry.path))
    // Links to what failed failed with it.
    const links = laid.filter(
      ({ entry }) => entry.type === 'link' && failed.has(entry.target ?? ''),
    )
    for (const { entry } of links) {
      const loss = this.#lost.get(entry.target ?? '')
      if (loss !== undefined) this.#lost.set(entry.path, { ...loss, path: entry.path })
    }
    const more = laid.filter((one) => {
      return paths.has(one.entry.path) || (links.includes(one) && paths.has(one.entry.target ?? ''))
    })
    const failures = outcome.failures.filter(({ path }) => !this.#lost.has(path))
    const known = { ...outcome, failures }
    if (more.length === 0) return known
    return await restoreAgain(known, {
      into: this.#words.into,
      paths: more.map(({ entry }) => entry.path),
      restore: async () => await this.#carryOut(more),
    })
  }

  /**
   * Of the files that failed those that can be read elsewhere; the others are lost.
   */
  async #placeAgain(failed: readonly Laid[]): Promise<readonly Laid[]> {
    const { bundles } = this.#recovery
    await this.#readBundlesOf(failed, 'reading damaged bundles')
    await this.searchEverywhere()
    return failed.filter(({ entry }) => {
      const found = { entry, stamp: undefined, absent: [], isDamaged: false }
      const loss = lossOf(found, bundles)
      if (loss !== undefined) this.#lost.set(entry.path, loss)
      return loss === undefined
    })
  }

  /** What can be read and may be made, at its place. @throws BackupError NOTHING_FOUND */
  #layOut(): readonly Laid[] {
    const { bundles } = this.#recovery
    const whole = this.#entries.filter((found) => {
      const { entry } = found
      const loss = unsafe(entry) ?? (entry.type === 'file' ? lossOf(found, bundles) : undefined)
      if (loss === undefined) return true
      if (this.#isAsked(entry.path)) this.#lost.set(entry.path, loss)
      return false
    })
    const laid = layOut(whole)
    const { taken, astray } = takeLaid(laid, ({ from }) => this.#isAsked(from))
    for (const path of astray) {
      const why = 'it is a further name of a file that is not there'
      this.#lost.set(path, { path, why, bundle: undefined })
    }
    for (const path of this.#words.paths) {
      const isMet = (one: RawPath): boolean => isWithin({ path: one, directory: path })
      if (taken.some(({ from }) => isMet(from)) || [...this.#lost.keys()].some(isMet)) continue
      throw new BackupError('NOTHING_FOUND', `there is no ${displayPath(path)} in what was found`, {
        hint: '--list shows the exports; --export NAME chooses another one',
      })
    }
    this.#versions = taken.filter(
      ({ version, entry }) => version > 0 && entry.type !== 'directory',
    ).length
    return taken
  }

  async #plan(laid: readonly Laid[]): ReturnType<typeof planRestore> {
    const { bundles } = this.#recovery
    const numbers = new Map<FoundFile, number>()
    const entries = laid.map(({ entry }): Entry => {
      if (entry.pieces === undefined) return entry
      const pieces = entry.pieces.map(([id, bundle, offset, length]) => {
        // What has no place is not laid out.
        const place = bundles.placeOf(id, { bundle, offset, length })!
        const known = numbers.get(place.file)
        const number = known ?? numbers.size
        numbers.set(place.file, number)
        return [id, number, place.offset, length] as const
      })
      return { ...entry, pieces }
    })
    const numbered: NumberedBundles = [...numbers.keys()].map(({ path, frames }) => ({
      path,
      frames,
    }))
    const { signal } = this.#found.options
    const content = { kind: 'bundles', bundles: numbered } as const
    const plan = await planRestore(
      { entries, parents: [], content },
      { into: this.#words.into, overwrite: 'never', deleteIn: [], signal },
    )
    return withStandIns(plan)
  }

  async #carryOut(laid: readonly Laid[]): Promise<RestoreOutcome> {
    const plan = await this.#plan(laid)
    if (this.#words.checksRoom) checkRoom(plan)
    const { identities, cores, report, signal } = this.#found.options
    return await carryOut(plan, { identities, cores, report, signal, aside: undefined })
  }
}

/** A path that may not be made, or a link to one. */
function unsafe({ path, type, target = '' }: Entry): LostPath | undefined {
  try {
    checkSafePath(path)
    if (type === 'link') checkSafePath(target)
    return undefined
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    return { path, why: error.message, bundle: undefined }
  }
}
