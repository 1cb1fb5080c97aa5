// `backup verify`: reads what is on a target again and compares it with what was signed: all of it,
// a sample, what was not proven lately, or as much as there is time for.
//
// restore-verify.ts does it, as for `backup-restore --verify`; lib/work/proof.ts chooses the
// bundles. Throws USAGE for words that do not go together, and what restore-verify.ts throws.

import { BackupError } from '../lib/errors.ts'
import { parseDuration, parseSize } from '../lib/model/amount.ts'
import type { ProofChoice } from '../lib/model/proof-plan.ts'
import type { ProofRequest } from '../lib/work/proof.ts'
import { type Command, textOption, type Values } from './command.ts'
import { readWords, SOURCE_OPTIONS } from './restore-options.ts'
import { withTag } from './restore-place.ts'
import { type AskedProof, verifyStaging, verifyTarget } from './restore-verify.ts'

const NAME = 'backup verify'

export const command: Command = {
  name: NAME,
  summary: 'read backups again, compare them with what was signed, sign a receipt',
  usage: `Usage: backup verify [--target T] [--machine M] [--set S] [--date D]
                     [--all | --older-than 30d | --sample 5%] [--time 20min] [--bytes 20GiB]
       backup verify --source local [--set S] [--date D]

Checks the signatures, manifests and catalogs of all exports on a target, and reads their bundles,
those first that were never proven or longest ago. What was read when is remembered, so a little
at a time proves everything in the end. Exit code 13 where something is damaged: for each damaged
bundle it names the exports that need it and their files. Without the identity checksums and
signatures are compared. Nothing is written but receipts.

  --target T        this target (default: the first one that is there)
  --source local    collections in staging instead: plain files, no identity needed
  --machine M       another machine's exports (default: this machine's)
  --set S           this set (default: all)
  --date D          only these exports: latest, a stamp or the beginning of one, a tag
  --all             every bundle; so it is without any of these words, unless the target has a
                    \`verify\` with a time or size, which then holds
  --older-than 30d  what was last proven longer ago, or never
  --sample 5%       so much of all bytes, drawn by lot
  --time 20min      after this long no more bundles are begun
  --bytes 20GiB     no more than this is read
  --identity FILE   the identity (default: as configured, or beside the configuration)
  --passphrase-file FILE  its passphrase, instead of asking
  --dry-run         say how much would be read
`,
  options: {
    ...SOURCE_OPTIONS,
    date: { type: 'string' },
    all: { type: 'boolean' },
    'older-than': { type: 'string' },
    sample: { type: 'string' },
    time: { type: 'string' },
    bytes: { type: 'string' },
  },
  run: async (context) => {
    const { values } = context
    const amount = readAmount(values)
    const source = textOption(values, 'source') ?? 'external'
    const words = readWords({ ...values, source, verify: true }, process.cwd())
    if (words.source === 'local') refuseAmount(values)
    const configuration = await context.loadConfiguration()
    const job = { context, words: withTag(words, configuration), configuration }
    if (words.source === 'local') return await verifyStaging(job, { command: NAME })
    const requestFor: AskedProof['requestFor'] = ({ repository, target, nowMs }) => {
      const { olderThanMs, share, timeMs, limitBytes } = amount
      if (amount.isUnsaid && target.verify !== undefined) {
        const { verify } = target
        return { choice: ALL, timeMs: verify.timeMs, limitBytes: verify.limitBytes }
      }
      const seed = `${repository.id}/${new Date(nowMs).toISOString()}`
      const choice: ProofChoice =
        share !== undefined
          ? { kind: 'sample', share, seed }
          : olderThanMs !== undefined
            ? { kind: 'older', olderThanMs }
            : ALL
      return { choice, timeMs, limitBytes }
    }
    return await verifyTarget(job, { command: NAME, requestFor })
  },
}

const ALL = { kind: 'all' } as const satisfies ProofChoice

interface Amount extends Pick<ProofRequest, 'timeMs' | 'limitBytes'> {
  readonly olderThanMs: number | undefined
  /** From 0 to 1. */
  readonly share: number | undefined
  /** Whether nothing is said of how much. */
  readonly isUnsaid: boolean
}

const WORDS = ['all', 'older-than', 'sample', 'time', 'bytes']

/** @throws BackupError USAGE */
function readAmount(values: Values): Amount {
  const chosen = ['all', 'older-than', 'sample'].filter((name) => values[name] !== undefined)
  if (chosen.length > 1) {
    throw new BackupError('USAGE', `--${chosen[0]} and --${chosen[1]} do not go together`)
  }
  const isUnsaid = WORDS.every((name) => values[name] === undefined)
  return {
    isUnsaid,
    olderThanMs: readAs(values, { name: 'older-than', parse: parseDuration, like: '30d' }),
    share: readAs(values, { name: 'sample', parse: parseShare, like: '5%' }),
    timeMs: readAs(values, { name: 'time', parse: parseDuration, like: '20min' }),
    limitBytes: readAs(values, { name: 'bytes', parse: parseSize, like: '20GiB' }),
  }
}

function readAs(
  values: Values,
  {
    name,
    parse,
    like,
  }: {
    readonly name: string
    readonly parse: (text: string) => number | undefined
    readonly like: string
  },
): number | undefined {
  const text = textOption(values, name)
  if (text === undefined) return undefined
  const amount = parse(text)
  if (amount !== undefined) return amount
  throw new BackupError('USAGE', `--${name} is like ${like}, not ${text}`)
}

function parseShare(text: string): number | undefined {
  const percent = /^\d{1,3}(\.\d{1,3})?%$/.test(text) ? Number(text.slice(0, -1)) : NaN
  return percent > 0 && percent <= 100 ? percent / 100 : undefined
}

/** Staging is read whole, and nobody keeps a ledger of it. */
function refuseAmount(values: Values): void {
  const [name] = WORDS.filter((word) => values[word] !== undefined)
  if (name === undefined || name === 'all') return
  throw new BackupError('USAGE', `--${name} goes with a target, not with --source local`)
}
