// The configuration that comes back: from a target that is all there is, to the text for a new
// machine.
//
// `backup init --from` calls these in order: placeOfText, findHome, chooseMachine,
// newestConfiguration, textFor. Only reads the target. Signatures come first: what is not signed by
// a key that the user brought along is not looked at. Throws USAGE, NOTHING_FOUND, SIGNER_UNKNOWN,
// SIGNATURE_WRONG, IDENTITY_WRONG, MANIFEST_DAMAGED, and what opening a target throws.

import { resolve } from 'node:path'
import { BackupError } from '../errors.ts'
import { type Configuration, parseConfiguration } from '../machine/config.ts'
import {
  type FoundPlace,
  REMOVED_ADDRESS,
  withPlace,
  withProperties,
} from '../machine/config-document.ts'
import { escapeVariables } from '../machine/config-expand.ts'
import { exportName } from '../model/manifest.ts'
import type { Report } from '../model/report.ts'
import { configurationOf } from './configuration-member.ts'
import { findExports } from './find-exports.ts'
import {
  type ExportPlace,
  listMachines,
  readManifestMembers,
  type Repository,
} from './repository.ts'
import { openTarget, repositoryToRead } from './target-access.ts'

/** How many exports are asked for a configuration: those of older versions have none. */
const MAX_ASKED = 20

/** What the words of the command line add to TARGET. */
export interface PlaceOptions {
  readonly endpoint?: string | undefined
  readonly region?: string | undefined
  readonly profile?: string | undefined
  readonly isPathStyle?: boolean | undefined
  /** `SHA256:…` */
  readonly hostKey?: string | undefined
  readonly sshKey?: string | undefined
}

/** Which options go with which kind of target. */
const OPTIONS = {
  endpoint: { option: '--endpoint', kind: 's3' },
  region: { option: '--region', kind: 's3' },
  profile: { option: '--profile', kind: 's3' },
  isPathStyle: { option: '--path-style', kind: 's3' },
  hostKey: { option: '--host-key', kind: 'sftp' },
  sshKey: { option: '--ssh-key', kind: 'sftp' },
} as const satisfies Record<keyof PlaceOptions, { option: string; kind: string }>

/**
 * What TARGET means, as properties of a target in a configuration: a directory,
 * `s3://bucket/prefix`, or `sftp://user@host:port/path`, where `/path` is relative to where the
 * user arrives and `//path` begins at the top.
 * @throws BackupError USAGE
 */
export function placeOfText(text: string, options: PlaceOptions): FoundPlace {
  const kind = /^s3:/i.test(text) ? 's3' : /^sftp:/i.test(text) ? 'sftp' : 'directory'
  for (const [name, { option, kind: whose }] of Object.entries(OPTIONS)) {
    const value = options[name as keyof PlaceOptions]
    if (value === undefined || value === false || whose === kind) continue
    throw new BackupError('USAGE', `${option} goes with --from ${whose}://…`)
  }
  if (kind === 's3') return bucketOf(text, options)
  if (kind === 'sftp') return hostOf(text, options)
  if (/^[a-z0-9]+:\/\//i.test(text)) throw wrongPlace(text)
  return { kind, path: escapeVariables(resolve(text)) }
}

function bucketOf(text: string, options: PlaceOptions): FoundPlace {
  const [, bucket, prefix = ''] = /^s3:\/\/([^/@]+)(?:\/+(.*))?$/i.exec(text) ?? []
  if (bucket === undefined) throw wrongPlace(text)
  const { endpoint, region, profile, isPathStyle } = options
  const path = prefix.replace(/\/+$/, '')
  return {
    kind: 's3',
    bucket,
    path: path === '' ? undefined : path,
    endpoint,
    ...(region === undefined ? {} : { region }),
    ...(profile === undefined ? {} : { profile }),
    ...(isPathStyle === true ? { path_style: true } : {}),
  }
}

function hostOf(text: string, { hostKey, sshKey }: PlaceOptions): FoundPlace {
  const form = /^sftp:\/\/(?:([^/@:]+)@)?([^/@:]+|\[[0-9a-f:]+\])(?::(\d{1,5}))?\/(.+)$/i
  const [, user, host, port, path] = form.exec(text) ?? []
  if (host === undefined || path === undefined) throw wrongPlace(text)
  return {
    kind: 'sftp',
    host: host.replace(/^\[|\]$/g, ''),
    path,
    port: port === undefined ? undefined : Number(port),
    ...(user === undefined ? {} : { user }),
    ...(hostKey === undefined ? {} : { host_key: hostKey }),
    ...(sshKey === undefined ? {} : { ssh_key: escapeVariables(resolve(sshKey)) }),
  }
}

/** A password in it would be in the list of processes already; it is not repeated. */
function wrongPlace(text: string): BackupError {
  const shown = text.replace(/:\/\/[^/@\s]+@/, '://***@')
  return new BackupError('USAGE', `--from ${shown} names no place`, {
    hint: 'give a directory, s3://BUCKET/PREFIX, or sftp://USER@HOST:PORT/PATH, without a password',
  })
}

/** What makes two targets of a kind the same. */
const SAME_BY: Readonly<Record<string, readonly string[]>> = {
  directory: ['path'],
  s3: ['bucket', 'path'],
  sftp: ['host', 'path'],
}

/** Surroundings of the machine that is set up. */
interface Here {
  readonly environment: Readonly<Record<string, string | undefined>>
  readonly home: string
  readonly hostName: string
}

/**
 * The repository at a place.
 * @param options.staging a directory for what opening a target may want to keep, not made here
 * @throws BackupError TARGET_ABSENT and what else opening it throws, CONFIG_INVALID
 */
export async function findHome(
  place: FoundPlace,
  { staging, ...here }: Here & { readonly staging: string },
): Promise<Repository> {
  // As a configuration, so that the schema's limits and defaults are in one place.
  const text = JSON.stringify({
    staging: escapeVariables(staging),
    backup_sets: [{ name: 'none', sources: [escapeVariables(staging)] }],
    targets: [{ name: 'found', ...place }],
  })
  const configuration = await parseConfiguration({ path: '--from', text, ...here })
  const target = await openTarget(configuration.targets[0]!, configuration).catch(whereFrom)
  try {
    return await repositoryToRead(target)
  } catch (error) {
    await target.close()
    throw error
  }
}

/** Nobody is to make what should be there. */
function whereFrom(error: unknown): never {
  if (!(error instanceof BackupError) || error.code !== 'TARGET_ABSENT') throw error
  throw new BackupError(error.code, error.message, {
    hint: 'is the drive plugged in and mounted, and the place spelt right? nothing was changed',
    cause: error,
  })
}

/** The machine that is meant: the one that is named, or the only one. */
export async function chooseMachine(
  repository: Repository,
  named: string | undefined,
): Promise<string> {
  const machines = await listMachines(repository)
  if (named !== undefined && machines.includes(named)) return named
  const [only, ...others] = machines
  const list = machines.join(', ')
  if (only === undefined) {
    throw new BackupError('NOTHING_FOUND', `${repository.target.place} has no machine`, {
      hint: 'it is empty so far: without --from, `backup init` begins anew',
    })
  }
  if (named !== undefined) {
    throw new BackupError('NOTHING_FOUND', `${repository.target.place} has no machine ${named}`, {
      hint: `machines there: ${list}`,
    })
  }
  if (others.length === 0) return only
  throw new BackupError('USAGE', `several machines keep exports there: ${list}`, {
    hint: 'name the one that this is to be: --machine NAME',
  })
}

/** What was found of a machine. */
export interface FoundConfiguration {
  /** The export it came with. */
  readonly place: ExportPlace
  readonly text: string
  /** The sets that have exports. */
  readonly sets: readonly string[]
}

/**
 * The configuration of the newest export that has one and can be read. Exports that cannot are
 * told, and passed over.
 * @throws BackupError NOTHING_FOUND; what was wrong with the newest, where none could be read
 */
export async function newestConfiguration(
  repository: Repository,
  {
    machine,
    publicKeys,
    identities,
    report,
  }: {
    readonly machine: string
    readonly publicKeys: readonly string[]
    readonly identities: readonly string[]
    readonly report: Report
  },
): Promise<FoundConfiguration> {
  if (publicKeys.length === 0) {
    throw new BackupError(
      'SIGNER_UNKNOWN',
      `the identity file names no signing key of ${machine}`,
      {
        hint:
          'give the public key that you kept with it: --signing-key RW…; '
          + 'anybody can make an export that the identity opens, so the signature decides',
      },
    )
  }
  const places = await findExports(repository, { machine, set: undefined })
  const newestFirst = [...places].sort((one, other) => (one.stamp < other.stamp ? 1 : -1))
  const sets = [...new Set(places.map(({ set }) => set))].sort()
  let first: BackupError | undefined
  for (const place of newestFirst.slice(0, MAX_ASKED)) {
    try {
      const members = await readManifestMembers(repository, place, { publicKeys, identities })
      const text = configurationOf(members)
      if (text !== undefined) return { place, text, sets }
    } catch (error) {
      if (!(error instanceof BackupError) || !OF_THE_EXPORT.has(error.code)) throw error
      first ??= error
      const message = `${exportName(place)} is passed over: ${error.message}`
      report({ kind: 'notice', level: 'warning', code: error.code, message })
    }
  }
  if (first !== undefined) throw first
  throw new BackupError('NOTHING_FOUND', `no export of ${machine} has a configuration in it`, {
    hint:
      'they were made by an older version: write one with `backup init`, '
      + 'then restore with --machine and the identity; the exports are unharmed',
  })
}

/** What may be wrong with one export, and not with the next. */
const OF_THE_EXPORT: ReadonlySet<string> = new Set([
  'SIGNATURE_WRONG',
  'SIGNER_UNKNOWN',
  'MANIFEST_DAMAGED',
  'BUNDLE_MISSING',
  'BUNDLE_DAMAGED',
  'AGE_HEADER',
  'AGE_PAYLOAD',
  'ZSTD_DAMAGED',
  'TAR_DAMAGED',
  'IDENTITY_WRONG',
])

/** What is written on the new machine. */
export interface TextForMachine {
  readonly text: string
  /** The target's name in it. */
  readonly target: string
  /** The machine's name in it. */
  readonly machine: string
  /** Whether addresses were left out, which have to be put back by hand. */
  readonly lacksAddresses: boolean
  /** As it reads here; or why it does not: a variable that is not set, say. */
  readonly configuration: Configuration | BackupError
}

/**
 * The configuration for this machine: its target is where it was found, its name the one that was
 * chosen.
 * @throws BackupError CONFIG_INVALID where the text is no YAML
 */
export async function textFor({
  found,
  place,
  path,
  as,
  trusted,
  ...here
}: Here & {
  readonly found: FoundConfiguration
  readonly place: FoundPlace
  /** Where it will be. */
  readonly path: string
  /** Another name for this machine, and the signing key that it will have. */
  readonly as: { readonly machine: string; readonly signingKey: string } | undefined
  /** Keys of the machine that was, to be trusted from now on. */
  readonly trusted: readonly string[]
}): Promise<TextForMachine> {
  const was = found.place.machine
  const of = { place, sameBy: SAME_BY[place.kind] ?? [] }
  const placed = withPlace({ path, text: found.text }, of)
  // The host name may be another one here, and stood for the machine's where that was not given.
  const machine = as?.machine ?? was
  const keys = as === undefined ? {} : { signing_key: escapeVariables(as.signingKey) }
  const change = {
    properties: { machine, ...keys },
    trusted: trusted.map((key) => ({ machine: was, key })),
  }
  const text = withProperties({ path, text: placed.text }, change)
  const configuration = await attemptToRead({ path, text, ...here })
  const lacksAddresses = text.includes(REMOVED_ADDRESS)
  return { text, target: placed.target, machine, lacksAddresses, configuration }
}

async function attemptToRead(
  options: Here & { readonly path: string; readonly text: string },
): Promise<Configuration | BackupError> {
  try {
    return await parseConfiguration(options)
  } catch (error) {
    if (!(error instanceof BackupError) || error.code !== 'CONFIG_INVALID') throw error
    return error
  }
}
