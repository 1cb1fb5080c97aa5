// The configuration: found, read (YAML or JSON, which is YAML too), checked against
// config/schema.json, and expanded.
//
// The schema is the manual and holds the defaults; docs/configuration.md is checked against it.
// config-errors.ts words what is wrong, config-meaning.ts reads what passed the schema, and
// config-expand.ts expands `~` and variables.
//
// Throws CONFIG_ABSENT where there is none, CONFIG_INVALID with file, line, column and path for all
// else.

import { access, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { Ajv } from 'ajv'
import { BackupError, systemCode } from '../errors.ts'
import { invalid, parseText, type Place, positionOf, resolveAliases } from './config-document.ts'
import { describeSchemaErrors, formatConfigPath } from './config-errors.ts'
import type { ConfigProblem } from './config-errors.ts'
import type { Surroundings } from './config-expand.ts'
import { readConfiguration } from './config-meaning.ts'
import type { Configuration, FailAt, RawConfiguration } from './config-meaning.ts'

export type {
  Configuration,
  FilterConfiguration,
  HookConfiguration,
  RetentionConfiguration,
  ScheduleConfiguration,
  SetConfiguration,
  TrustedSigningKey,
} from './config-meaning.ts'
export type {
  AddressConfiguration,
  AmountFree,
  LogConfiguration,
  MailConfiguration,
  NotifyConfiguration,
} from './config-notify.ts'
export type {
  DirectoryTargetConfiguration,
  DriveConfiguration,
  DriveTargetConfiguration,
  TargetConfiguration,
} from './config-targets.ts'

/** Where a configuration for the whole machine lies. */
export const SYSTEM_CONFIGURATION = '/etc/backup/config.yaml'

/** A thousand sets fit in a tenth of it; more is some other file. */
const MAX_CONFIGURATION_BYTES = 1024 * 1024

/** From dist/lib/machine/ to the project's own directory. */
const SCHEMA_FILE = new URL('../../../config/schema.json', import.meta.url)

/** Where the configuration is written when nothing else is said: in the user's own directory. */
export function defaultConfigurationPath(home: string): string {
  return join(home, '.config/backup/config.yaml')
}

/**
 * The path of the configuration to use: the option, else `$BACKUP_CONFIG`, else the user's own,
 * else the machine's.
 * @throws CONFIG_ABSENT where none of the last two exists; whether one that was named exists shows
 * when it is read.
 */
export async function findConfiguration({
  option,
  environment,
  home,
  system,
}: {
  readonly option: string | undefined
  readonly system: string
} & Surroundings): Promise<string> {
  const named = option ?? (environment['BACKUP_CONFIG'] || undefined)
  if (named !== undefined) return named
  const own = defaultConfigurationPath(home)
  for (const path of [own, system]) if (await isThere(path)) return path
  const message = `there is no configuration: neither "${own}" nor "${system}" exists`
  throw new BackupError('CONFIG_ABSENT', message, {
    hint: 'make one with `backup init`, or name one with --config FILE',
  })
}

/**
 * Reads the configuration at `path` (absolute). `hostName` is the machine's name where the file
 * gives none.
 */
export async function loadConfiguration(
  options: { readonly path: string; readonly hostName: string } & Surroundings,
): Promise<Configuration> {
  const text = await readConfigurationText(options.path)
  return parseConfiguration({ ...options, text })
}

/** The configuration in `text`, which is or will be the content of the file at `path`. */
export async function parseConfiguration(
  options: {
    readonly path: string
    readonly text: string
    readonly hostName: string
  } & Surroundings,
): Promise<Configuration> {
  const { path, text } = options
  const place = parseText({ path, text })
  const fail: FailAt = (problem) => throwProblems([problem], place)

  const raw = resolveAliases(place.document, path)
  const problems = await checkSchema(raw)
  if (problems.length > 0) throwProblems(problems, place)
  return readConfiguration(raw as RawConfiguration, options, fail)
}

/** The text of a configuration file. @throws BackupError CONFIG_ABSENT, CONFIG_INVALID */
export async function readConfigurationText(path: string): Promise<string> {
  return decode(await readConfigurationFile(path), path)
}

async function isThere(path: string): Promise<boolean> {
  try {
    await access(path)
    return true
  } catch (error) {
    // Anything but "not there" is for reading it to explain.
    return !['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')
  }
}

async function readConfigurationFile(path: string): Promise<Buffer> {
  try {
    const { size } = await stat(path)
    if (size <= MAX_CONFIGURATION_BYTES) return await readFile(path)
  } catch (error) {
    if (systemCode(error) === 'ENOENT') {
      throw new BackupError('CONFIG_ABSENT', `there is no configuration at "${path}"`, {
        hint: 'make one with `backup init`, or name another with --config FILE',
        cause: error,
      })
    }
    const message = `the configuration "${path}" cannot be read (${systemCode(error)})`
    throw new BackupError('CONFIG_INVALID', message, { cause: error })
  }
  throw new BackupError('CONFIG_INVALID', `the configuration "${path}" is larger than 1 MiB`)
}

function decode(bytes: Buffer, path: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (error) {
    const message = `the configuration "${path}" is not UTF-8 text`
    throw new BackupError('CONFIG_INVALID', message, { cause: error })
  }
}

/** The problems that the schema finds in `raw`, in no order; fills in the schema's defaults. */
async function checkSchema(raw: unknown): Promise<ConfigProblem[]> {
  const schema = JSON.parse(await readFile(SCHEMA_FILE, 'utf8')) as object
  const ajv = new Ajv({
    strict: true,
    allErrors: true,
    verbose: true,
    useDefaults: true,
    coerceTypes: false,
    allowUnionTypes: true,
    validateSchema: false,
    logger: false,
  })
  const check = ajv.compile(schema)
  return check(raw) ? [] : describeSchemaErrors(check.errors ?? [])
}

/** Throws the problem that comes first in the file; `facts` name them all. */
function throwProblems(problems: readonly ConfigProblem[], place: Place): never {
  const placed = problems.map((problem) => ({ ...problem, ...positionOf(problem.path, place) }))
  placed.sort((a, b) => a.line - b.line || a.column - b.column)
  const [first] = placed
  if (first === undefined) throw new Error('no problem to throw')
  const facts = {
    problems: placed.map(({ path, line, column, message }) => {
      return { path: formatConfigPath(path), line, column, message }
    }),
  }
  const where = formatConfigPath(first.path)
  const message = where === '' ? first.message : `${where}: ${first.message}`
  throw invalid({ ...first, path: place.path, message, facts })
}
