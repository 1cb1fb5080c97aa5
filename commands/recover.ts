// `backup recover`: what bundles alone still give, without a configuration, manifests, catalogs or
// names.
//
// Parses and tells; lib/work/recover.ts does it. Needs nothing but a directory and the identity.
// What no signature vouches for is told as such and is exit code 13, and so is whatever is lost
// (invariant 10). Throws USAGE, IDENTITY_ABSENT, PASSPHRASE_WRONG, and what recover.ts throws.

import { realpathSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { BackupError, ERRORS, type ExitCode, worstExitCode } from '../lib/errors.ts'
import { parsePublicKey, publicKeyText } from '../lib/format/minisign.ts'
import { type MachineKey, readIdentityFile } from '../lib/machine/identity.ts'
import { blockName, disksOf, stackOf } from '../lib/machine/disks.ts'
import { listMounts, mountOf } from '../lib/machine/source-snapshot/mounts.ts'
import { formatSize, parseSize } from '../lib/model/amount.ts'
import { isValidName } from '../lib/model/names.ts'
import {
  displayPath,
  displayText,
  listedPaths,
  pathFacts,
  rawPathFromText,
} from '../lib/model/raw-path.ts'
import {
  type LostPath,
  type Recoverable,
  type RecoverOutcome,
  type SurveyedExport,
  damageOf,
  openRecovery,
  recoverExports,
} from '../lib/work/recover.ts'
import { chooseExports, lackingOf, newerThan } from '../lib/work/recover-choice.ts'
import { entriesIn } from '../lib/work/recover-exports.ts'
import { argumentPath } from './argument-path.ts'
import { type Command, type CommandContext, isGiven, textOption, textOptions } from './command.ts'
import { passphraseFromFile } from './passphrase.ts'

export const command: Command = {
  name: 'backup recover',
  summary: 'get back what bundles alone still hold',
  usage: `Usage: backup recover --from DIR --identity FILE --list
       backup recover --from DIR --identity FILE --into DIR [--export NAME…]
                      [--path P…] [--dry-run]

For when backup-restore cannot help: manifests, catalogs, names or repository.json
are gone, bundles are damaged, or lie somewhere under any names. Needs no
configuration. Only reads below --from.

  --from DIR           where bundles are, at any depth, among other files; or a drive or
                       partition whose filesystem is gone, or an image of one
  --search SIZE        of such a one: how much to look through for how a bundle goes on,
                       each time it breaks off (1 GiB; 0 for none)
  --identity FILE      the identity, from where you keep it
  --passphrase-file F  its passphrase, instead of asking
  --signing-key M:RW…  a signing public key of machine M, where the identity file names
                       none; may be repeated
  --list               what there is: exports, files, size, and what vouches for it
  --into DIR           restore below this directory. What nothing signed vouches for
                       takes a new or empty one
  --export NAME        this one, by its name in the list or the beginning of it
                       (again for more); without it the newest of each set
  --path P             only this file or directory, by its original path
                       (again for more)
  --ignore-space       do not ask first whether there is room
  --dry-run            read all of it, and say what would come back
`,
  options: {
    from: { type: 'string' },
    search: { type: 'string' },
    identity: { type: 'string' },
    'passphrase-file': { type: 'string' },
    'signing-key': { type: 'string', multiple: true },
    list: { type: 'boolean' },
    into: { type: 'string' },
    export: { type: 'string', multiple: true },
    path: { type: 'string', multiple: true },
    'ignore-space': { type: 'boolean' },
  },
  run,
}

/** Paths named on a terminal; --json names all. */
const PATHS_SHOWN = 50

async function run(context: CommandContext): Promise<ExitCode> {
  const { values, reporter, signal } = context
  const from = directoryOf(context)
  const into = await destination(context, from)
  const { identities, keys } = await openIdentity(context)
  const { report } = reporter
  const cores = availableParallelism()
  const raw = rawPathFromText(from)
  const searchBytes = searchOf(context)
  const options = { identities, keys, cores, report, signal, searchBytes }
  const found = await openRecovery({ from: raw, ...options })
  try {
    const scanned = tellScan(context, found)
    if (into === undefined) {
      const listed = tellList(context, found.exports)
      return worstExitCode([scanned, listed, tellDamage(context, found)])
    }
    const words = textOptions(values, 'export')
    const chosen = chooseExports(found.exports, words)
    const paths = textOptions(values, 'path').map((path) => {
      return argumentPath(path, process.cwd()).replace(/^\/+/, '')
    })
    const dryRun = isGiven(values, 'dry-run')
    const outcome = await recoverExports(found, {
      ...{ chosen, paths, dryRun },
      into: rawPathFromText(into),
      checksRoom: !isGiven(values, 'ignore-space'),
    })
    const code = tellOutcome(context, { outcome, chosen, dryRun })
    // What else is damaged is told; how this went is what was asked for.
    tellDamage(context, { scan: found.scan, exports: outcome.exports })
    if (words.length > 0) return code
    return worstExitCode([code, tellNewer(context, { chosen, exports: outcome.exports })])
  } finally {
    found.close()
  }
}

const SEARCH_BYTES = 1024 ** 3

/** @throws BackupError USAGE */
function searchOf({ values }: CommandContext): number {
  const text = textOption(values, 'search')
  if (text === undefined) return SEARCH_BYTES
  const bytes = text === '0' ? 0 : parseSize(text)
  if (bytes !== undefined) return bytes
  throw new BackupError('USAGE', `--search ${displayText(text)} is no size`, {
    hint: 'like: --search 20GiB',
  })
}

/** @throws BackupError USAGE, NOTHING_FOUND */
function directoryOf({ values }: CommandContext): string {
  const from = textOption(values, 'from')
  if (from === undefined) {
    throw new BackupError('USAGE', 'where from?', {
      hint: '--from DIR names a directory that has bundles somewhere below it, or a drive',
    })
  }
  try {
    return realpathSync(resolve(from))
  } catch (cause) {
    throw new BackupError('NOTHING_FOUND', `there is no ${displayPath(from)}`, {
      hint: 'is the drive plugged in and mounted? nothing was changed',
      cause,
    })
  }
}

/**
 * The directory to restore into, through all links; undefined for a list.
 * @throws BackupError USAGE
 */
async function destination({ values }: CommandContext, from: string): Promise<string | undefined> {
  const into = textOption(values, 'into')
  const isList = isGiven(values, 'list')
  if (isList && into !== undefined) {
    throw new BackupError('USAGE', '--list and --into do not go together')
  }
  if (isList) return undefined
  if (into === undefined) {
    throw new BackupError('USAGE', 'where to?', {
      hint: '--into DIR restores, --list shows what there is',
    })
  }
  const place = resolve(into)
  const real = realPlace(place)
  if (await isOn(real, from)) {
    throw new BackupError('USAGE', `${displayPath(into)} lies on ${displayPath(from)} itself`, {
      hint: 'what is restored there would overwrite what is to be read; name another disk',
    })
  }
  const isAtTop = dirname(place) === place
  const isInside = from === '/' || real === from || real.startsWith(`${from}/`)
  if (!isAtTop && !isInside) return place
  const what = isAtTop ? 'the root' : `${displayPath(into)}, which is below --from,`
  throw new BackupError('USAGE', `${what} is no place to restore into`, {
    hint: 'name a new directory on another disk; nothing was changed',
  })
}

/** Whether a place is on a drive, a partition of it, or the image that a loop device shows. */
async function isOn(place: string, from: string): Promise<boolean> {
  const mount = mountOf(rawPathFromText(place), await listMounts())
  if (mount === undefined) return false
  return [...stackOf(mount), ...disksOf(mount)].includes(blockName(from) ?? from)
}

/** The last component need not be there. */
function realPlace(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    // Below a directory that is not there it cannot be made, which is told then.
    try {
      return join(realpathSync(dirname(path)), basename(path))
    } catch {
      return path
    }
  }
}

async function openIdentity(
  context: CommandContext,
): Promise<{ readonly identities: readonly string[]; readonly keys: readonly MachineKey[] }> {
  const { values, askSecret } = context
  const path = textOption(values, 'identity')
  if (path === undefined) {
    throw new BackupError('IDENTITY_ABSENT', 'bundles are encrypted: recovery needs the identity', {
      hint: 'give --identity FILE; typed from paper, a file with its one line will do',
    })
  }
  const given = textOptions(values, 'signing-key').map(parseSigningKeyOption)
  const passphraseFile = textOption(values, 'passphrase-file')
  const { identities, signingKeys } = await readIdentityFile({
    path: rawPathFromText(resolve(path)),
    askPassphrase: async () => {
      if (passphraseFile !== undefined) return await passphraseFromFile(passphraseFile)
      return await askSecret(`Passphrase of ${path}: `)
    },
  })
  return { identities, keys: [...signingKeys, ...given] }
}

/** `laptop:RW…` */
function parseSigningKeyOption(text: string): MachineKey {
  const [machine = '', key = '', ...more] = text.split(':')
  if (!isValidName(machine) || more.length > 0) {
    throw new BackupError('USAGE', '--signing-key is MACHINE:RW…', {
      hint: 'a public key is of use for the exports of its own machine alone',
    })
  }
  return { machine, publicKey: publicKeyText(parsePublicKey(key)) }
}

/** What was passed over. @returns 13 where a file that may be a bundle cannot be read */
function tellScan({ reporter }: CommandContext, { scan, distrusted }: Recoverable): ExitCode {
  const warn = (code: string, message: string): void => {
    reporter.report({ kind: 'notice', level: 'warning', code, message })
  }
  for (const { path, why } of distrusted) {
    warn('UNSIGNED', `a manifest does not count: ${displayPath(path)}: ${why}`)
  }
  for (const { path, error } of scan.unread.slice(0, PATHS_SHOWN)) {
    warn(error.code ?? 'BUNDLE_DAMAGED', `cannot be opened: ${displayPath(path)}: ${error.message}`)
  }
  if (scan.unread.length > PATHS_SHOWN) {
    warn('BUNDLE_DAMAGED', `and ${scan.unread.length - PATHS_SHOWN} more files cannot be opened`)
  }
  if (scan.denied.length > 0) {
    const paths = listedPaths(scan.denied.map(({ path }) => path))
    warn('DENIED', `cannot be read (${scan.denied[0]!.why}): ${paths}`)
  }
  const { found, unread, others } = scan
  const of = (kind: string): number => found.filter((file) => file.kind === kind).length
  reporter.tell(
    `${of('manifest')} manifests, ${of('catalog')} catalog bundles, ${of('data')} data bundles, `
      + `${unread.length} that do not open; ${others} other files`,
  )
  reporter.report({
    kind: 'result',
    command: 'recover',
    what: 'files',
    ...{ manifests: of('manifest'), catalogs: of('catalog'), data: of('data'), others },
    unread: scan.unread.map(({ path, error }) => ({ ...pathFacts(path), why: error.message })),
    denied: scan.denied.map(({ path, why }) => ({ ...pathFacts(path), why })),
  })
  // Those of another identity are nobody's loss; those that were ours are.
  const isDamaged = scan.unread.some(({ error }) => error.code !== 'IDENTITY_WRONG')
  return isDamaged || scan.denied.length > 0 ? 13 : 0
}

const EVIDENCE_WORDS = {
  signed: 'signed',
  catalog: 'UNSIGNED, with a catalog',
  shards: 'UNSIGNED, parts of catalogs',
  members: 'UNSIGNED, no catalog',
} as const satisfies Record<SurveyedExport['evidence'], string>

function tellList({ reporter }: CommandContext, exports: readonly SurveyedExport[]): ExitCode {
  for (const one of exports) {
    const { name, evidence, files, bytes, complete, lost, lostShards } = one
    const state = complete === false ? ', INCOMPLETE when it was made' : ''
    const gone = lost.length + lostShards.length === 0 ? '' : `, ${lossWords(lost, lostShards)}`
    reporter.print(
      `${name}  ${files} files  ${formatSize(bytes)}  ${EVIDENCE_WORDS[evidence]}${state}${gone}`,
    )
    reporter.report({ kind: 'result', command: 'recover', what: 'export', ...exportJson(one) })
  }
  const isAllGood = exports.every(({ evidence, lost, lostShards }) => {
    return evidence === 'signed' && lost.length + lostShards.length === 0
  })
  if (exports.length === 0) reporter.print(NO_PATHS)
  return isAllGood && exports.length > 0 ? 0 : 13
}

const NO_PATHS = 'no path: what is there are pieces of files, and nothing says of which'

function lossWords(lost: readonly LostPath[], lostShards: SurveyedExport['lostShards']): string {
  const words =
    lost.length === 0 ? [] : [`${lost.length} ${lost.length === 1 ? 'file' : 'files'} LOST`]
  if (lostShards.length > 0) words.push(`the catalog of ${entriesIn(lostShards)} entries LOST`)
  return words.join(', ')
}

function exportJson(one: SurveyedExport): Record<string, unknown> {
  const { name, evidence, machine, set, stamp, complete, entries, files, bytes } = one
  return {
    ...{ name, evidence, machine, set, stamp, complete, entries, files, bytes },
    lost: one.lost.map(lostJson),
    lostEntries: entriesIn(one.lostShards),
  }
}

function lostJson({ path, why, bundle }: LostPath): Record<string, unknown> {
  return { ...pathFacts(path), why, ...(bundle === undefined ? {} : pathFacts(bundle, 'bundle')) }
}

/** By bundle: which files of which exports it costs. */
function tellDamage(
  { reporter }: CommandContext,
  { exports, scan }: Pick<Recoverable, 'exports' | 'scan'>,
): ExitCode {
  const damages = damageOf(exports, scan)
  for (const { bundle, unread, costs } of damages) {
    const names = [...new Set(costs.map(({ name }) => name))]
    const paths = [...new Set(costs.map(({ path }) => path))]
    const named = bundle === undefined ? 'what is in no bundle' : displayPath(bundle)
    const what = unread === undefined ? named : `${named} (${displayPath(unread)})`
    const message = `${what} costs ${listedPaths(paths)} in ${names.join(', ')}`
    reporter.report({ kind: 'notice', level: 'warning', code: 'BUNDLE_DAMAGED', message })
    reporter.report({
      kind: 'result',
      command: 'recover',
      what: 'damage',
      ...(bundle === undefined ? {} : pathFacts(bundle, 'bundle')),
      ...(unread === undefined ? {} : pathFacts(unread, 'file')),
      costs: costs.map(({ name, path }) => ({ export: name, ...pathFacts(path) })),
    })
  }
  return damages.length > 0 ? 13 : 0
}

function tellOutcome(
  { reporter }: CommandContext,
  {
    outcome,
    chosen,
    dryRun,
  }: {
    readonly outcome: RecoverOutcome
    readonly chosen: readonly SurveyedExport[]
    readonly dryRun: boolean
  },
): ExitCode {
  const { written, same, bytes, kept, failures, lost, unrecovered, lostShards, versions } = outcome
  const names = chosen.map(({ name }) => name)
  const warn = (code: string, messages: readonly string[]): void => {
    const more = messages.length - PATHS_SHOWN
    const rest = more > 0 ? [`and ${more} more (--json names all)`] : []
    for (const message of [...messages.slice(0, PATHS_SHOWN), ...rest]) {
      reporter.report({ kind: 'notice', level: 'warning', code, message })
    }
  }
  reporter.tell(
    `${names.join(', ')}: ${written} ${dryRun ? 'would be restored' : 'restored'} `
      + `(${formatSize(bytes)}), ${same} the same already, ${unrecovered.length} lost`,
  )
  if (versions > 0) reporter.tell(`${versions} of these are older versions, below .versions/`)
  const isSigned = outcome.evidence === 'signed'
  if (!isSigned) {
    warn('UNSIGNED', [
      `no signature vouches for these ${written + same} paths: whoever knew the recipient could `
        + 'have made them; look at them before you use them',
    ])
  }
  warn(
    'KEPT',
    kept.map((path) => `${displayPath(path)}: something else is there and was kept`),
  )
  warn(
    'LOST',
    unrecovered.map(({ path, why }) => `${displayPath(path)}: lost: ${why}`),
  )
  warn(
    'CATALOG_DAMAGED',
    lostShards.map(({ first, entries }) => {
      const where = first === undefined ? '' : ` from ${displayPath(first)} on`
      return `a part of the catalog is gone: ${entries ?? 'some'} entries${where}`
    }),
  )
  warn(
    'NOT_RESTORED',
    failures.map(({ path, why }) => `${displayPath(path)}: not restored: ${why}`),
  )
  warn(
    'METADATA_LOST',
    lost.map(({ path, what }) => {
      return `${displayPath(path)}: restored without ${what.map(displayPath).join(', ')}`
    }),
  )
  const incomplete = chosen.filter(({ complete }) => complete === false)
  warn(
    'INCOMPLETE',
    incomplete.map(({ name }) => `${name} was incomplete when it was collected`),
  )
  const isLost = unrecovered.length + lostShards.length > 0
  const isLess = kept.length + lost.length + incomplete.length > 0
  const exitCode = worstExitCode([
    isSigned && !isLost ? 0 : 13,
    isLess ? 3 : 0,
    ...failures.map(({ code }) => ERRORS[code][0]),
  ])
  reporter.report({
    kind: 'result',
    command: 'recover',
    what: 'restored',
    ...{ exports: names, evidence: outcome.evidence, dryRun, exitCode },
    ...{ written, same, bytes, versions },
    kept: kept.map((path) => pathFacts(path)),
    lost: unrecovered.map(lostJson),
    lostEntries: entriesIn(lostShards),
    failures: failures.map(({ path, code, why }) => ({ ...pathFacts(path), code, why })),
    metadataLost: lost.map(({ path, what }) => {
      return { ...pathFacts(path), what: what.map(displayPath) }
    }),
  })
  return exitCode
}

/** @returns 3 where something newer was found than what was restored, 13 where that is lost */
function tellNewer(
  { reporter }: CommandContext,
  of: { readonly chosen: readonly SurveyedExport[]; readonly exports: readonly SurveyedExport[] },
): ExitCode {
  const chosen = of.chosen.map(({ name }) => name)
  const others = of.exports.filter(({ name }) => !chosen.includes(name))
  const newer = newerThan(of.chosen, others)
  for (const { name, evidence, files, lost, lostShards } of newer) {
    const gone = lost.length + lostShards.length === 0 ? '' : `, ${lossWords(lost, lostShards)}`
    const message =
      `also there, and perhaps newer: ${name}, ${files} files, ${EVIDENCE_WORDS[evidence]}${gone} `
      + `(--export ${name} --into ANOTHER-DIRECTORY)`
    reporter.report({ kind: 'notice', level: 'warning', code: 'INCOMPLETE', message })
  }
  const isLost = newer.some((one) => one.evidence === 'signed' && lackingOf(one) > 0)
  return isLost ? 13 : newer.length > 0 ? 3 : 0
}
