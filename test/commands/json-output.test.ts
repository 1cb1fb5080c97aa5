// What `--json` prints, of every command: lines that config/output.schema.json describes to the
// last property, names without loss, nothing that commands a terminal.

import { readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { Ajv, type ValidateFunction } from 'ajv'
import { suite } from 'uvu'
import { tellOutcomes } from '../../commands/outcomes.ts'
import { createReporter, type Reporter } from '../../commands/reporter.ts'
import { takePath } from '../../lib/model/entry.ts'
import {
  type RawPath,
  baseOf,
  parentOf,
  rawPathFromText,
  rawPathToBytes,
} from '../../lib/model/raw-path.ts'
import * as assert from '../helpers/assert.ts'
import { MAIN, type Outcome, runCli } from '../helpers/run-cli.ts'
import {
  type Properties,
  type Scenario,
  exportStamps,
  makeScenario,
  setDirectory,
} from '../helpers/scenario.ts'

const json = suite('--json')

/** No UTF-8; and text that would clear a screen, begin a C1 sequence, and turn what follows. */
const ODD = '\xffodd\xfe'
const UNSAFE = rawPathFromText('\u001b[2J\u009b31m\u202etxt')

function readSchema(name: string): Properties {
  const file = new URL(`../../../config/${name}`, import.meta.url)
  return JSON.parse(readFileSync(file, 'utf8')) as Properties
}

/** The same schema, but what it does not describe is not allowed. */
function closed(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(closed)
  if (typeof schema !== 'object' || schema === null) return schema
  const entries = Object.entries(schema).map(([key, value]) => [key, closed(value)] as const)
  const { type, properties, additionalProperties } = schema as Properties
  const isOpen = type === 'object' && properties !== undefined && !('allOf' in schema)
  return Object.fromEntries(
    isOpen && additionalProperties === undefined
      ? [...entries, ['additionalProperties', false]]
      : entries,
  )
}

function compile(schema: object): ValidateFunction {
  // A name is required as `path` or as `path64`, which strictRequired does not see through.
  const ajv = new Ajv({ strict: true, strictRequired: false, allowUnionTypes: true })
  for (const name of ['status.schema.json', 'fleet.schema.json']) {
    ajv.addSchema(readSchema(name), name)
  }
  return ajv.compile(schema)
}

const output = readSchema('output.schema.json')
const validateOpen = compile(output)
const validateClosed = compile(closed(output) as object)

/** Which definitions of results were met. */
const met = new Set<string>()

/** Every line, each of them as described. */
function linesOf({ stdout, stderr }: Outcome): Properties[] {
  assert.not.match(
    stdout,
    /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e]/,
  )
  assert.not.match(stderr, 'this is a bug')
  const lines = stdout.split('\n').slice(0, -1)
  return lines.map((line) => {
    const object = JSON.parse(line) as Properties
    const shown = `${line}\n${stderr}`
    assert.ok(validateOpen(object), `${JSON.stringify(validateOpen.errors)}: ${shown}`)
    assert.ok(validateClosed(object), `${JSON.stringify(validateClosed.errors)}: ${shown}`)
    met.add(`${object['kind']} ${object['command'] ?? ''} ${object['outcome'] ?? ''}`.trim())
    return object
  })
}

type Say = (...words: string[]) => Promise<Properties[]>

function sayer({ run }: Pick<Scenario, 'run'>): Say {
  return async (...words) => linesOf(await run(...words, '--json'))
}

function only(lines: readonly Properties[], kind = 'result'): Properties {
  const [line, ...others] = lines.filter((one) => one['kind'] === kind)
  assert.ok(line !== undefined && others.length === 0, JSON.stringify(lines))
  return line!
}

/** Of what is named, what lies directly in the source, by its name there, one character a byte. */
function namesOf(list: unknown): RawPath[] {
  const paths = (list as Properties[]).map((one) => takePath(one, 'path') ?? '')
  return paths
    .filter((path) => parentOf(path).endsWith('/data'))
    .map(baseOf)
    .sort()
}

function at(directory: string, name: RawPath): Buffer {
  return rawPathToBytes(`${rawPathFromText(directory)}/${name}`)
}

function flipMiddle(path: string): void {
  const bytes = readFileSync(path)
  const middle = Math.floor(bytes.length / 2)
  bytes[middle] = (bytes[middle] ?? 0) ^ 0x10
  writeFileSync(path, bytes)
}

/** Sorted. */
const NAMES = [UNSAFE, ODD]

/** Two exports, the second without what the first has of `gone`. */
async function begun(): Promise<{ readonly scenario: Scenario; readonly say: Say }> {
  const scenario = await makeScenario()
  const say = sayer(scenario)
  for (const name of NAMES) writeFileSync(at(scenario.source, name), `content of ${name}`)
  await say('collect')
  await say('external')
  return { scenario, say }
}

let begunOnce: ReturnType<typeof begun> | undefined

async function fresh(): ReturnType<typeof begun> {
  return await (begunOnce ??= begun())
}

json('before anything is there: help, the version, errors, and beginning', async () => {
  const environment = { HOME: '/nonexistent' }
  const say: Say = async (...words) => linesOf(await runCli([...words, '--json'], { environment }))
  assert.match(only(await say('--version'), 'version')['version'], /^\d+\.\d+\.\d+/)
  for (const words of [
    ['help', 'collect'],
    ['collect', '--help'],
    ['-q', 'collect', '-h'],
  ]) {
    const { command, text } = only(await say(...words), 'help')
    assert.is(command, 'backup-collect')
    assert.match(text, /^Usage: backup-collect/)
  }
  assert.is(only(await say('-q', 'frobnicate'), 'error')['code'], 'USAGE')
  assert.is(only(await say('collect'), 'error')['code'], 'CONFIG_ABSENT')
  const begin = ['init', '--no-passphrase', '--machine', 'box', '--staging', '/srv', '--dry-run']
  assert.is(only(await say(...begin))['files'].length, 4)
  // Nothing is there yet, and that is what it says.
  assert.is(only(await say('doctor'))['outcome'], 'failure')
})

json('options of every command may stand before its name; those of one come after it', async () => {
  const { scenario } = await fresh()
  const { configuration, run } = scenario
  const listed = await run('--json', '--config', configuration, 'lock')
  assert.is(only(linesOf(listed))['outcome'], 'listed')
  const wrong = await run('--set', 'data', 'collect')
  assert.is(wrong.status, 2)
  assert.match(wrong.stderr, '`backup collect …`: its options come after it')
})

json(
  'listing, planning and asking change nothing, and everything they say is described',
  async () => {
    const { scenario, say } = await fresh()
    const { directory } = scenario
    const root = ['--root', `${directory}/image`]
    const begin = ['init', '--from', scenario.target, '--identity', scenario.identity, '--dry-run']
    const asked = [
      say('status').then((lines) => assert.is(only(lines)['format'], 1)),
      say('status', '--score').then((lines) => assert.ok(only(lines)['score'])),
      say('status', '--fleet').then((lines) => assert.ok(only(lines)['fleet'])),
      say('--dry-run').then((lines) => assert.is(lines.filter(({ due }) => !due).length, 3)),
      say('external', '--dry-run').then((lines) => {
        assert.is(only(lines)['action'], 'already there')
      }),
      say('prune', '--dry-run').then((lines) => assert.is(lines.length, 2)),
      say('drives').then((lines) => assert.is(only(lines)['outcome'], 'listed')),
      say('keys', 'public').then((lines) => assert.is(only(lines)['machine'], 'tester')),
      say('restore', '--list').then((lines) => assert.is(lines.length, 2)),
      say('mount', `${directory}/nowhere`, '--dry-run').then((lines) => {
        assert.is(only(lines)['generations'].length, 1)
      }),
      say('schedule', 'install', '--dry-run', ...root).then((lines) => {
        assert.is(only(lines)['dryRun'], true)
      }),
      say(...begin, '--config', `${directory}/other.yaml`).then((lines) => {
        assert.is(only(lines)['machine'], 'tester')
      }),
    ]
    await Promise.all(asked)
    assert.is(only(await say('collect', '--dry-run'))['dryRun'], true)
    assert.is(only(await say())['outcome'], 'nothing due')
    for (const words of [
      ['data', 'latest', '--reason', '\u009b31m\u202etxt'],
      [],
      ['data', 'latest', '--off'],
    ]) {
      assert.is(only(await say('lock', ...words))['command'], 'backup lock')
    }
    for (const words of [['first', 'data', 'latest'], [], ['first', '--remove']]) {
      assert.is(only(await say('tag', ...words))['command'], 'backup tag')
    }
    for (const word of ['install', 'status', 'remove']) {
      assert.is(only(await say('schedule', word, ...root))['command'], 'backup schedule')
    }
    assert.ok(only(await say('doctor'))['checks'].length > 3)
    assert.is(only(await say('drill'))['outcome'], 'good')
  },
)

json('find, why, diff and a drill name what is no text by its bytes', async () => {
  const { scenario, say } = await fresh()
  const { source, environment } = scenario
  const found = (await say('find', '*', '--type', 'f')).filter(({ runs }) => runs !== undefined)
  assert.equal(namesOf(found), NAMES)
  for (const one of found) assert.is('path' in one, !('path64' in one), 'one of them, never both')
  // No argument of spawn can say it.
  const program = ['bash', '-c', `exec "$0" "$@" "$PLACE/"$'\\xffodd\\xfe'`, process.execPath]
  const words = [MAIN, 'why', '--json']
  const outcome = await runCli(words, { environment: { ...environment, PLACE: source }, program })
  const why = only(linesOf(outcome))
  assert.equal(namesOf([why]), [ODD])
  const [set] = why['sets'] as Properties[]
  const collectedAs = takePath(set!, 'collectedAs')
  assert.is(collectedAs, `${rawPathFromText(source)}/${ODD}`)
  assert.is(set?.['source'], source)
  const nowhere = only(await say('why', '/nowhere'), 'error')
  assert.is(nowhere['facts'].source, source)
  const { names } = only(await say('drill', '--dry-run', '--share', '100%'))
  assert.equal(namesOf(names), NAMES)
  rmSync(at(source, ODD))
  const gone = (await say('diff', 'latest', 'live')).filter(
    (one) => one['difference'] === 'removed',
  )
  assert.equal(namesOf(gone), [ODD])
})

json('a restore names by its bytes what stays, what goes aside, and what it lost', async () => {
  const { scenario, say } = await fresh()
  const { directory, identity, source } = scenario
  const into = `${directory}/into`
  const words = ['restore', '--source', 'external', '--identity', identity, '--into', into]
  const changed = `${into}${source}`
  const plain = only(await say(...words))
  assert.equal([plain['exitCode'], plain['kept'], plain['failures']], [0, [], []])
  for (const name of NAMES) writeFileSync(at(changed, name), `other content of ${name}`)
  const kept = only(await say(...words))
  assert.equal([kept['exitCode'], namesOf(kept['kept'])], [3, NAMES])
  const replaced = only(await say(...words, '--overwrite', 'always'))
  const aside = takePath(replaced['aside'][0] as Properties, 'path')!
  for (const name of NAMES) writeFileSync(at(changed, name), 'changed since')
  const undone = only(await say('restore', '--undo', aside, '--yes'))
  assert.equal([undone['exitCode'], namesOf(undone['left'])], [3, NAMES])
})

json('a suspect collection names by its bytes what is gone', async () => {
  const { scenario, say } = await fresh()
  for (const name of readdirSync(scenario.source)) rmSync(`${scenario.source}/${name}`)
  const collected = only(await say('collect'))
  assert.is(collected['suspect'].length, 1)
  assert.is(only(await say('external'))['outcome'], 'suspect')
  const lines = await say('accept', 'data')
  assert.equal(namesOf(only(lines)['gone'].paths), NAMES)
  assert.is(only(lines, 'error')['code'], 'NOT_CONFIRMED')
})

json('what is damaged names by its bytes every file that it costs', async () => {
  const { scenario, say } = await fresh()
  const { staging, source, target, identity, directory } = scenario
  const [stamp = ''] = exportStamps(scenario)
  const inStaging = `${staging}/data/${stamp}${source}`
  for (const name of NAMES) writeFileSync(at(inStaging, name), 'not what was collected')
  const local = (await say('verify', '--source', 'local')).find((one) => one['stamp'] === stamp)
  assert.is(local?.['command'], 'backup verify')
  assert.equal(namesOf(local?.['problems']), NAMES)

  const bundles = readdirSync(`${setDirectory(scenario)}/${stamp}`)
  for (const name of bundles.filter((one) => /^data-.*age$/.test(one))) {
    flipMiddle(`${setDirectory(scenario)}/${stamp}/${name}`)
  }
  const verified = await say('verify')
  const files = only(verified, 'damage')['exports'][0].files
  assert.equal(namesOf(files), NAMES)
  const [one, whole] = verified.filter(({ kind }) => kind === 'result')
  assert.equal(namesOf(one?.['damaged']), NAMES)
  assert.is(whole?.['outcome'], 'damaged')
  const again = `${directory}/again`
  const words = ['--source', 'external', '--identity', identity, '--into', again]
  const { failures } = only(await say('restore', ...words))
  assert.equal(namesOf(failures), NAMES)
  assert.is(only(await say('drill'))['outcome'], 'damaged')
  assert.is(only(await say('repair', '--target', 'drive', '--dry-run'))['damaged'].length, 1)
  const recover = ['recover', '--from', target, '--identity', identity]
  const listed = (await say(...recover, '--list')).find(({ what }) => what === 'export')
  assert.equal(namesOf(listed?.['lost']), NAMES)
  const recovered = await say(...recover, '--into', `${directory}/recovered`)
  const { lost } = recovered.find(({ what }) => what === 'restored') ?? {}
  assert.equal(namesOf(lost), NAMES)
})

/** What a reporter with `--json` prints. */
function told(work: (reporter: Reporter) => void): Properties[] {
  let stdout = ''
  const reporter = createReporter({
    ...{ name: 'backup', json: true, quiet: false, verbose: false, now: () => 0 },
    writeOut: (text) => void (stdout += text),
    writeError: () => undefined,
    columns: undefined,
  })
  work(reporter)
  return linesOf({ status: 0, stdout, stderr: '' })
}

json('what an export lacks or waits for is named by its bytes, and what is going on now', () => {
  const of = { target: 'drive', drive: undefined, repository: undefined, set: 'data' } as const
  const stamp = '2026-03-01T020000Z'
  const named = NAMES.map((name) => ({ path: `home/data/${name}`, why: 'it vanished' }))
  const statistics = { entries: 1, files: 1, bytes: 1, newBytes: 1, storedBytes: 1 }
  const sizes = { dataBytes: 1, catalogBytes: 1, manifestBytes: 1, full: true }
  const pruned = { removedExports: [], removedBundles: 0, freedBytes: 0 }
  const rest = { statistics, ...sizes, readBack: 'direct', pruned }
  const exported = { kind: 'exported', stamp, complete: false, missing: named, ...rest } as const
  const outcomes = [
    { ...of, exitCode: 3, outcome: exported, error: undefined },
    { ...of, exitCode: 3, outcome: { kind: 'suspect', stamp, doubts: named }, error: undefined },
  ] as const
  const how = { command: 'backup', absentCode: 75, isQuiet: false } as const
  const lines = told((reporter) => tellOutcomes(outcomes, { reporter, ...how }))
  const [first, second] = lines.filter(({ kind }) => kind === 'result')
  assert.equal(namesOf(first?.['missing']), NAMES)
  assert.equal(namesOf(second?.['doubts']), NAMES)
  const counts = { phase: 'packing', filesDone: 1, bytesDone: 1 }
  const [progress] = told(({ report }) => report({ kind: 'progress', ...counts, current: ODD }))
  assert.equal(takePath(progress!, 'current'), ODD)
})

json('every command has printed a result', async () => {
  const commands = (output['definitions'] as Properties)['line.result'].properties.command.enum
  const without = (commands as string[]).filter((name) => {
    return ![...met].some((line) => line.startsWith(`result ${name} `) || line === `result ${name}`)
  })
  assert.equal(without, [])
})

json.run()
