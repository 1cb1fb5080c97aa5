// `backup mount DIR`: all backups as read-only directories, `/<set>/<stamp>/…`, until it is told to
// end; `--webdav`: the same as a server of this machine alone.
//
// lib/work/browse.ts has the view, fuse-view.ts and webdav.ts show it; only what is opened is read.
// Changes nothing. Throws USAGE, MOUNT_FAILED, NOTHING_FOUND, and what opening the target, the
// identity and the configuration throws.

import { resolve } from 'node:path'
import { BackupError, type ExitCode } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import type { S3TargetConfiguration } from '../lib/machine/config-targets.ts'
import { type FuseMount, mountFuse } from '../lib/machine/fuse.ts'
import { verifyCost } from '../lib/model/cost.ts'
import { refuseOverLimit } from '../lib/model/cost-limit.ts'
import { rawPathFromText } from '../lib/model/raw-path.ts'
import { bundlePath } from '../lib/model/verification.ts'
import type { Target } from '../lib/target/target.ts'
import { View, type ViewGeneration } from '../lib/work/browse.ts'
import { ExportTree } from '../lib/work/browse-export.ts'
import { PieceReader } from '../lib/work/browse-pieces.ts'
import { StagedTree } from '../lib/work/browse-staging.ts'
import { pricesOf } from '../lib/work/bucket-money.ts'
import { ExportReader } from '../lib/work/export-reader.ts'
import { findExports } from '../lib/work/find-exports.ts'
import { FuseView } from '../lib/work/fuse-view.ts'
import { preferSigned } from '../lib/work/hidden-objects.ts'
import { readManifest } from '../lib/work/repository.ts'
import { collectionDirectory } from '../lib/work/staging.ts'
import { targetNamed } from '../lib/work/target-access.ts'
import { damageTeller } from '../lib/work/view-damage.ts'
import type { ViewTree } from '../lib/work/view-node.ts'
import { startWebdav } from '../lib/work/webdav.ts'
import { type Command, type CommandContext, type Values, isGiven, textOption } from './command.ts'
import { requireIdentity, SOURCE_OPTIONS } from './restore-options.ts'
import { collectionsOf, keysOf, openRepository } from './restore-place.ts'

export const command: Command = {
  name: 'backup mount',
  summary: 'show backups as read-only directories',
  usage: `Usage: backup mount DIR [--source local|external] [--target NAME] [--machine NAME]
                        [--set NAME]
       backup mount --webdav [--port N] [the same]

Shows every backup that there is now as directories: DIR/<set>/<stamp>/… with the paths of the
source below, and DIR/<set>/latest. Nothing in it can be changed, and only what is opened is read.
Ctrl-C ends it.

  --source local      from staging: plain files, no identity needed (default)
  --source external   from a target: needs the identity
  --target NAME       this target (default: the first one that is there)
  --machine NAME      another machine's exports (default: this machine's)
  --set NAME          only this set
  --webdav            a server of this machine instead of a directory: needs neither FUSE nor root;
                      prints the address, which is secret
  --port N            its port (default: any that is free)
  --identity FILE     the identity (default: as configured, or beside the configuration)
  --passphrase-file FILE  its passphrase, instead of asking
  --dry-run           say what would be shown
`,
  positionals: true,
  options: {
    ...SOURCE_OPTIONS,
    webdav: { type: 'boolean' },
    port: { type: 'string' },
  },
  run,
}

interface MountWords {
  /** Undefined: WebDAV. */
  readonly directory: string | undefined
  readonly port: number
  readonly isLocal: boolean
  readonly target: string | undefined
  readonly machine: string | undefined
  readonly set: string | undefined
}

interface MountJob {
  readonly context: CommandContext
  readonly words: MountWords
  readonly configuration: Configuration
}

/** What is shown. */
interface Shown {
  readonly generations: readonly ViewGeneration[]
  readonly openTree: (generation: ViewGeneration) => Promise<ViewTree>
  readonly close: () => void
}

async function run(context: CommandContext): Promise<ExitCode> {
  const words = readMountWords(context)
  const configuration = await context.loadConfiguration()
  if (words.directory !== undefined) refuseOurOwn(words.directory, configuration)
  const job = { context, words, configuration }
  const shown = words.isLocal ? openStaging(job) : await openTargetView(job)
  const view = new View(shown)
  try {
    if (isGiven(context.values, 'dry-run')) tellGenerations(context, shown.generations)
    else if (words.directory === undefined) await serveWebdav(job, view)
    else await serveFuse(job, { view, directory: words.directory })
  } finally {
    view.close()
    shown.close()
  }
  return 0
}

/** @throws BackupError USAGE */
function readMountWords({ values, positionals }: CommandContext): MountWords {
  const isWebdav = isGiven(values, 'webdav')
  const [directory, ...further] = positionals
  if (isWebdav ? directory !== undefined : directory === undefined || further.length > 0) {
    const message = isWebdav ? '--webdav needs no directory' : 'one directory has to be named'
    throw new BackupError('USAGE', message, { hint: 'backup mount DIR, or backup mount --webdav' })
  }
  const target = textOption(values, 'target')
  const source = textOption(values, 'source') ?? (target === undefined ? 'local' : 'external')
  if (source !== 'local' && source !== 'external') {
    throw new BackupError('USAGE', `--source is local or external, not ${source}`)
  }
  const machine = textOption(values, 'machine')
  const isLocal = source === 'local'
  if (isLocal && (target !== undefined || machine !== undefined)) {
    const name = target === undefined ? 'machine' : 'target'
    throw new BackupError('USAGE', `--${name} goes with --source external`)
  }
  return {
    directory: directory === undefined ? undefined : resolve(directory),
    port: readPort(values, isWebdav),
    ...{ isLocal, target, machine },
    set: textOption(values, 'set'),
  }
}

function readPort(values: Values, isWebdav: boolean): number {
  const text = textOption(values, 'port')
  if (text === undefined) return 0
  if (!isWebdav) throw new BackupError('USAGE', '--port goes with --webdav')
  const port = Number(text)
  if (/^\d{1,5}$/.test(text) && port > 0 && port < 65_536) return port
  throw new BackupError('USAGE', `--port is a number from 1 to 65535, not ${text}`)
}

/** @throws BackupError USAGE: what collects and exports would find its own backups there */
function refuseOurOwn(directory: string, { staging, targets }: Configuration): void {
  const places = [staging, ...targets.flatMap((one) => (one.kind === 'directory' ? one.path : []))]
  const place = places.find((one) => directory === one || directory.startsWith(`${one}/`))
  if (place === undefined) return
  throw new BackupError('USAGE', `${directory} is in ${place}, where nothing may be mounted`, {
    hint: 'name an empty directory elsewhere; nothing was mounted',
  })
}

function openStaging({ words, configuration }: MountJob): Shown {
  const { staging } = configuration
  return {
    generations: collectionsOf({ words, configuration }),
    openTree: async ({ set, stamp }) => {
      const directory = rawPathFromText(collectionDirectory({ staging, set, stamp }))
      return await Promise.resolve(new StagedTree(directory))
    },
    close: () => undefined,
  }
}

async function openTargetView(job: MountJob): Promise<Shown> {
  const { context, words, configuration } = job
  const repository = await openRepository(job)
  const { target } = repository
  const { identities, signingKeys } = await requireIdentity(context, configuration)
  const machine = words.machine ?? configuration.machine
  const generations = await findExports(repository, { machine, set: words.set })
  const publicKeys = await keysOf(job, signingKeys)
  const { signal } = context
  const beforeFetch = await costMeter(job, target)
  const pieces = new PieceReader({ target, identities, signal, beforeFetch })
  return {
    generations,
    openTree: async (place) => {
      const manifest = await readManifest(repository, place, { publicKeys, identities })
      if (target.bucket !== undefined) {
        const bundles = new Map(
          manifest.bundles.map(({ name, sha256 }) => [bundlePath(machine, name), sha256]),
        )
        await preferSigned(target.bucket, { directory: `machines/${machine}`, bundles })
      }
      const reader = new ExportReader({ repository, manifest, identities, signal })
      return new ExportTree({ reader, pieces })
    },
    close: () => pieces.close(),
  }
}

/** In a bucket with a limit of costs: what is read altogether may not cost more. */
async function costMeter(
  { configuration }: MountJob,
  target: Target,
): Promise<((bytes: number) => void) | undefined> {
  const of = targetNamed(configuration, target.name)
  if (target.bucket === undefined || of.kind !== 's3' || of.costLimit === undefined)
    return undefined
  const { costLimit: limit } = of satisfies S3TargetConfiguration
  const prices = await pricesOf(of, target.bucket)
  let [bytes, requests] = [0, 0]
  return (more) => {
    const read = [{ storageClass: 'STANDARD', requests: requests + 1, bytes: bytes + more }]
    const what = 'reading through this mount'
    refuseOverLimit(verifyCost({ prices, read }), { what, target: target.name, limit })
    bytes += more
    requests += 1
  }
}

function tellGenerations({ reporter }: CommandContext, shown: readonly ViewGeneration[]): void {
  for (const { set, stamp } of shown) reporter.print(`would show ${set}/${stamp}`)
  const generations = shown.map(({ machine, set, stamp }) => ({ machine, set, stamp }))
  reporter.report({ kind: 'result', command: command.name, dryRun: true, generations, exitCode: 0 })
}

async function serveFuse(
  { context }: MountJob,
  { view, directory }: { readonly view: View; readonly directory: string },
): Promise<void> {
  const { reporter, signal } = context
  const mount = await mountFuse(rawPathFromText(directory))
  const shown = new FuseView({ view, tell: damageTeller(reporter.report) })
  const ending = unmountOn(signal, mount)
  const facts = { directory }
  const message = `mounted at ${directory}; Ctrl-C unmounts`
  reporter.report({ kind: 'notice', level: 'info', code: 'MOUNTED', message, facts })
  try {
    await mount.serve(async (request) => await shown.answer(request))
  } finally {
    shown.close()
    await ending()
  }
}

/** @returns what waits for the end of unmounting, if that was begun, and throws what it threw */
function unmountOn(signal: AbortSignal, mount: FuseMount): () => Promise<void> {
  let unmounting: Promise<void> | undefined
  const begin = (): void => {
    unmounting = mount.unmount()
    // It is waited for at the end.
    unmounting.catch(() => undefined)
  }
  signal.addEventListener('abort', begin, { once: true })
  if (signal.aborted) begin()
  return async () => {
    signal.removeEventListener('abort', begin)
    await unmounting
  }
}

async function serveWebdav({ context, words }: MountJob, view: View): Promise<void> {
  const { reporter, signal } = context
  const tell = damageTeller(reporter.report)
  const server = await startWebdav({ view, port: words.port, tell })
  const { url } = server
  reporter.print(url)
  const message =
    'the address above opens in a browser, with dav:// in a file manager, as a server in Finder '
    + '(Cmd-K), or with mount -t davfs; whoever has it can read everything; Ctrl-C ends it'
  reporter.report({ kind: 'notice', level: 'info', code: 'MOUNTED', message, facts: { url } })
  try {
    await Promise.race([aborted(signal), server.failed])
  } finally {
    await server.close()
  }
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return
  await new Promise<void>((done) => {
    signal.addEventListener('abort', () => done(), { once: true })
  })
}
