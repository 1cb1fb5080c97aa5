// A home, a configuration made by `init`, staging and a target: everything an end-to-end test runs
// the built program on.

import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  appendFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { parse } from 'yaml'
import * as assert from './assert.ts'
import { type Outcome, runCli } from './run-cli.ts'
import { tempDirectory } from './temp-dir.ts'

export interface Scenario {
  readonly directory: string
  readonly home: string
  /** The one source of the one set, `data`. Empty at first. */
  readonly source: string
  readonly staging: string
  /** The directory of the target `drive`. */
  readonly target: string
  readonly configuration: string
  readonly identity: string
  /** Variables of the child; a test may add some. */
  readonly environment: Record<string, string>
  /** `backup WORDS` */
  readonly run: (...words: string[]) => Promise<Outcome>
  readonly collect: (...words: string[]) => Promise<Outcome>
  readonly external: (...words: string[]) => Promise<Outcome>
  /** `backup restore --source external --identity …` */
  readonly restore: (...words: string[]) => Promise<Outcome>
  /** Collects and exports, and gives the result of the export. */
  readonly generation: () => Promise<Exported>
}

/** The result of an export, as `--json` tells it. */
export interface Exported {
  readonly outcome: string
  readonly stamp: string
  readonly complete: boolean
  readonly full: boolean
  readonly dataBytes: number
  readonly catalogBytes: number
  readonly manifestBytes: number
  readonly readBack: string
  readonly statistics: { readonly entries: number; readonly files: number; readonly bytes: number }
  readonly pruned: { readonly removedExports: readonly string[]; readonly removedBundles: number }
}

/** The configuration as the file has it: loosely typed, for tests that change it. */
export type Properties = Record<string, any>

export interface ScenarioOptions {
  /** An existing directory instead of one of the scenario's own. */
  readonly target?: string
  readonly machine?: string
  /** Protects the identity; the file that holds it is `<directory>/passphrase`. */
  readonly passphrase?: string
}

let made = 0
let root: string | undefined

export async function makeScenario(options: ScenarioOptions = {}): Promise<Scenario> {
  root ??= tempDirectory()
  const directory = `${root}/${++made}`
  const home = `${directory}/home`
  const source = `${home}/data`
  const staging = `${directory}/staging`
  const target = options.target ?? `${directory}/drive`
  mkdirSync(source, { recursive: true })
  mkdirSync(target, { recursive: true })
  const configuration = `${home}/.config/backup/config.yaml`
  const environment: Record<string, string> = { HOME: home }
  const run = async (...words: string[]): Promise<Outcome> => await runCli(words, { environment })
  let protection = ['--no-passphrase']
  if (options.passphrase !== undefined) {
    writeFileSync(`${directory}/passphrase`, `${options.passphrase}\n`, { mode: 0o600 })
    protection = ['--passphrase-file', `${directory}/passphrase`]
  }
  const init = await run(
    'init',
    '--source',
    source,
    '--staging',
    staging,
    '--target',
    target,
    '--machine',
    options.machine ?? 'tester',
    ...protection,
  )
  assert.is(init.status, 0, init.stderr)
  // Whoever runs the tests is not to be told of every failure in them.
  appendFileSync(configuration, '\nnotify: { desktop: false }\n')
  const identity = join(
    dirname(configuration),
    options.passphrase === undefined ? 'identity.txt' : 'identity.age',
  )
  const collect = async (...words: string[]): Promise<Outcome> => await run('collect', ...words)
  const external = async (...words: string[]): Promise<Outcome> => await run('external', ...words)
  return {
    directory,
    home,
    source,
    staging,
    target,
    configuration,
    identity,
    environment,
    run,
    collect,
    external,
    restore: async (...words) =>
      await run('restore', '--source', 'external', '--identity', identity, ...words),
    generation: async () => {
      const collected = await collect()
      assert.is(collected.status, 0, collected.stderr)
      const exported = await external('--json')
      assert.is(exported.status, 0, exported.stderr + exported.stdout)
      return exportedBy(exported)
    },
  }
}

/** Changes the configuration file. */
export function configure(
  { configuration }: Scenario,
  change: (properties: Properties) => void,
): void {
  const properties = parse(readFileSync(configuration, 'utf8')) as Properties
  change(properties)
  writeFileSync(configuration, JSON.stringify(properties))
}

/** The objects of `--json` of one kind. */
export function jsonLines({ stdout }: Outcome, kind: string): Properties[] {
  return stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Properties)
    .filter((object) => object['kind'] === kind)
}

/** The only result of an export run; what the bucket costs is another. */
export function exportedBy(outcome: Outcome): Exported {
  const results = jsonLines(outcome, 'result').filter((result) => result['outcome'] !== 'ended')
  assert.is(results.length, 1, outcome.stdout)
  return results[0] as Exported
}

/** Where the exports of the set `data` lie. */
export function setDirectory({ target }: Scenario, set = 'data', machine = 'tester'): string {
  return `${target}/machines/${machine}/${set}`
}

/** The stamps that have a manifest, oldest first. */
export function exportStamps(scenario: Scenario, set = 'data'): string[] {
  const directory = setDirectory(scenario, set)
  if (!existsSync(directory)) return []
  return readdirSync(directory)
    .sort()
    .filter((stamp) => existsSync(`${directory}/${stamp}/manifest.tar.zst.age`))
}

/**
 * Every path (UTF-8 only) below a directory with what it is: `directory`, `-> target`, or the
 * SHA-256 of a file.
 */
export function inventory(directory: string, below = ''): Map<string, string> {
  const found = new Map<string, string>()
  if (!existsSync(directory)) return found
  for (const name of readdirSync(join(directory, below)).sort()) {
    const path = join(below, name)
    const stat = lstatSync(join(directory, path))
    if (stat.isDirectory()) {
      found.set(path, 'directory')
      for (const [inner, what] of inventory(directory, path)) found.set(inner, what)
    } else if (stat.isSymbolicLink()) found.set(path, `-> ${readlinkSync(join(directory, path))}`)
    else if (stat.isFile()) found.set(path, sha256(join(directory, path)))
    else found.set(path, 'special')
  }
  return found
}

export function sha256(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex')
}

/** The paths below a directory that match, one character a byte. */
export function namesIn(directory: string, pattern: RegExp): string[] {
  if (!existsSync(directory)) return []
  const paths = script('find "$1" -mindepth 1 -printf "%P\\0" | sort -z', directory)
    .split('\0')
    .slice(0, -1)
  return paths.filter((path) => pattern.test(path))
}

/** Runs a bash script of stock programs and gives its output, one character a byte. */
export function script(text: string, ...words: string[]): string {
  const run = spawnSync('bash', ['-euo', 'pipefail', '-c', text, 'bash', ...words], {
    encoding: 'latin1',
    maxBuffer: 256 * 1024 * 1024,
  })
  assert.is(run.status, 0, `${text}: ${run.stderr}`)
  return run.stdout
}

/** rsync, find, getfattr and getfacl all see the same in both trees. */
export function assertSameTree(actual: string, expected: string): void {
  const differences = script('rsync -aHAXSnic --delete "$1/" "$2/"', expected, actual)
  assert.is(differences, '', 'rsync sees no difference')
  const times = 'cd "$1"; find . -printf "%P %y %T@ %m %U:%G %n\\0" | sort -z'
  assert.is(
    script(times, actual),
    script(times, expected),
    'types, nanoseconds, modes, owners, links',
  )
  const xattrs =
    'cd "$1"; getfattr -R -P -h -d -m - -e hex . 2>/dev/null | sort; getfacl -R -P -n . | sort'
  assert.is(script(xattrs, actual), script(xattrs, expected), 'extended attributes and ACLs')
}

/** Nothing half-made: no `.partial` in staging or on the target, no temporary name of a restore. */
export function assertNoLeftovers(...directories: string[]): void {
  for (const directory of directories) {
    assert.equal(namesIn(directory, /\.partial(\/|$)|\.backup-(restore|names)/), [], directory)
  }
}

/** `--verify` with the identity, of every export. */
export async function assertWhole(scenario: Scenario): Promise<void> {
  const verified = await scenario.restore('--verify')
  assert.is(verified.status, 0, verified.stdout + verified.stderr)
}
