// `backup-restore`: lists, verifies and restores, from staging or from a target.
//
// Parses and lists; restore-run.ts restores, restore-verify.ts verifies, restore-telling.ts tells
// it. Throws USAGE, and what these throw.

import { BackupError, type ExitCode, worstExitCode } from '../lib/errors.ts'
import { rawPathFromText } from '../lib/model/raw-path.ts'
import { listExternal, listLocal } from '../lib/work/list.ts'
import { openTarget, repositoryToRead, targetNamed } from '../lib/work/target-access.ts'
import { undoRestore } from '../lib/work/undo-restore.ts'
import { type Command, type CommandContext, isGiven } from './command.ts'
import { loadIdentity, readWords, SOURCE_OPTIONS } from './restore-options.ts'
import { keysOf, type RestoreJob, withTag } from './restore-place.ts'
import { printFile } from './restore-print.ts'
import { restoreWords } from './restore-run.ts'
import { tellList, tellUndone, warnOfDamaged } from './restore-telling.ts'
import { verifyStaging, verifyTarget } from './restore-verify.ts'

export const command: Command = {
  name: 'backup-restore',
  summary: 'list, verify and restore backups, from staging or a target',
  usage: `Usage: backup-restore --list [--source local|external]
       backup-restore --source local|external --verify [--set S] [--date D]
       backup-restore [--source WHERE] [--date D] [--set S] [--path P…] [--into DIR]
                      [--overwrite POLICY] [--delete] [--yes] [--dry-run]
       backup-restore --path FILE --stdout
       backup-restore --undo DIR

  --source WHERE      local (staging: plain files, no identity needed), external (a target:
                      needs the identity), or a list of local, external and names of targets
                      in the order of preference; without it nearest and cheapest first. What
                      one source has damaged is taken from the next
  --target NAME       this target
  --machine NAME      another machine's exports (default: this machine's)
  --set NAME          this set (default: every set that has the paths)
  --date D            latest (default), as much of a stamp as is unambiguous (2025-04-01), a
                      tag, or a time: "3 days ago", "last tuesday", "2025-04-01 14:30"
  --path P            this file or directory, by its original path (again for more)
  --last              the newest generation that has the paths, even if they were deleted since
  --include GLOB      only what fits (again for more): *.jpg, /home/you/**/drafts
  --exclude GLOB      but not what fits (again for more)
  --into DIR          restore below this directory (made if need be); without it everything
                      goes to its original place, after a confirmation
  --stdout            one file to standard output, once all of it was checked
  --overwrite POLICY  what happens to what is there and differs: never, always, older (what is
                      there is older), newer, or ask (default: ask at a terminal, else never).
                      What is replaced is kept aside
  --owner RULE        whose files they are here: number, name (the account of that name here), or
                      mine (default: number; name for another machine's exports)
  --map-user THERE=HERE, --map-group THERE=HERE  this account's files are that one's here, by
                      name or number (again for more)
  --names RULE        how names are spelt: as-is (default), nfc (Linux), nfd (older macOS)
  --delete            remove what the directories named by --path have and the generation has
                      not; kept aside as well, and confirmed first
  --discard           do not keep what is replaced or deleted
  --undo DIR          undo a restore, by the directory in which it kept what was there
  --ignore-space      do not ask first whether there is room
  --thaw TIER         ask for what is in cold storage: bulk, standard or expedited; without
                      it a plan says what that costs and how long it takes
  --wait              wait until it can be read (hours)
  --resume            the same restore again, once it can
  --yes               do not ask before restoring to the original place, or deleting
  --list              what there is: stamp, set, files, size, cost on the target
  --verify            read every byte and compare it, write nothing; without the
                      identity only checksums and signatures can be checked
  --identity FILE     the identity (default: as configured, or identity.age beside the
                      configuration)
  --passphrase-file FILE  its passphrase, instead of asking
`,
  options: {
    ...SOURCE_OPTIONS,
    date: { type: 'string' },
    path: { type: 'string', multiple: true },
    last: { type: 'boolean' },
    include: { type: 'string', multiple: true },
    exclude: { type: 'string', multiple: true },
    into: { type: 'string' },
    stdout: { type: 'boolean' },
    overwrite: { type: 'string' },
    owner: { type: 'string' },
    'map-user': { type: 'string', multiple: true },
    'map-group': { type: 'string', multiple: true },
    names: { type: 'string' },
    delete: { type: 'boolean' },
    discard: { type: 'boolean' },
    undo: { type: 'string' },
    'ignore-space': { type: 'boolean' },
    thaw: { type: 'string' },
    wait: { type: 'boolean' },
    resume: { type: 'boolean' },
    yes: { type: 'boolean' },
    list: { type: 'boolean' },
    verify: { type: 'boolean' },
  },
  run,
}

async function run(context: CommandContext): Promise<ExitCode> {
  const words = readWords(context.values, process.cwd())
  // Undoing needs nothing but the list.
  if (words.undo !== undefined) return await undo(context, words.undo)
  const configuration = await context.loadConfiguration()
  const job = { context, words: withTag(words, configuration), configuration }
  if (words.action === 'list') return await list(job)
  if (words.action === 'verify') {
    return words.source === 'local' ? await verifyStaging(job) : await verifyTarget(job)
  }
  return words.prints ? await printFile(job) : await restoreWords(job)
}

/** @throws BackupError NOT_CONFIRMED, NOTHING_FOUND */
async function undo(context: CommandContext, path: string): Promise<ExitCode> {
  const { reporter, values } = context
  const directory = rawPathFromText(path)
  const dryRun = isGiven(values, 'dry-run')
  const preview = undoRestore(directory, { dryRun: true })
  const what = `${preview.back} to bring back, ${preview.removed} to remove`
  if (!dryRun && !isGiven(values, 'yes') && !(await context.confirm(`Undo it: ${what}?`))) {
    throw new BackupError('NOT_CONFIRMED', `undoing has to be confirmed: ${what}`, {
      hint: 'give --yes, or --dry-run to look first; nothing was changed',
    })
  }
  const outcome = dryRun ? preview : undoRestore(directory, { dryRun })
  return tellUndone(outcome, { dryRun, reporter })
}

async function list({ context, words, configuration }: RestoreJob): Promise<ExitCode> {
  const { reporter } = context
  const codes: ExitCode[] = [0]
  // Staging has no other machine's collections.
  const isOwn = words.machine === undefined || words.machine === configuration.machine
  if (words.source !== 'external' && isOwn) {
    const { listed, damaged } = listLocal(configuration, words.set)
    tellList('staging', listed, reporter)
    codes.push(warnOfDamaged(damaged, reporter))
  }
  if (words.source === 'local') return worstExitCode(codes)
  const identity = await loadIdentity(context, configuration)
  for (const target of words.target === undefined
    ? configuration.targets
    : [targetNamed(configuration, words.target)]) {
    try {
      const repository = await repositoryToRead(await openTarget(target, configuration))
      const exports = await listExternal({
        configuration,
        repository,
        machine: words.machine ?? configuration.machine,
        set: words.set,
        identities: identity?.identities ?? [],
        publicKeys: await keysOf({ configuration, words }, identity?.signingKeys ?? []),
      })
      tellList(target.name, exports, reporter)
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      codes.push(error.exitCode)
      const message = `${error.message}${error.hint === undefined ? '' : ` (${error.hint})`}`
      reporter.report({ kind: 'notice', level: 'warning', code: error.code, message })
    }
  }
  return worstExitCode(codes)
}
