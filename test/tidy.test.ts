// What must not drift, as a test: import arrows, package fences, layout, suites that are run, texts
// in step with registries. Every message says why the rule exists, so that breaking it is a choice.

import { spawnSync } from 'node:child_process'
import { readFileSync, readdirSync, statSync } from 'node:fs'
import { builtinModules } from 'node:module'
import { dirname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import { ERRORS, EXIT_CODES } from '../lib/errors.ts'
import * as assert from './helpers/assert.ts'

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')

/** Not in the repository; nor is any dot file beside those of TOP_LEVEL, which are an editor's. */
const SKIPPED = ['node_modules', 'dist']

/** Whom the files of a part may import, itself included: design's arrows. */
const ARROWS: Readonly<Record<string, readonly string[]>> = {
  'lib/errors.ts': [],
  'lib/model': ['lib/errors.ts', 'lib/model'],
  'lib/format': ['lib/errors.ts', 'lib/model', 'lib/format'],
  'lib/machine': ['lib/errors.ts', 'lib/model', 'lib/format', 'lib/machine'],
  'lib/target': ['lib/errors.ts', 'lib/model', 'lib/machine', 'lib/target'],
  'lib/work': ['lib/errors.ts', 'lib/model', 'lib/format', 'lib/machine', 'lib/target', 'lib/work'],
  commands: [
    'lib/errors.ts',
    'lib/model',
    'lib/format',
    'lib/machine',
    'lib/target',
    'lib/work',
    'commands',
  ],
}

const TOP_LEVEL = [
  '.ci',
  '.gitignore',
  '.npmrc',
  'LICENSE',
  'README.md',
  'commands',
  'config',
  'docs',
  'lib',
  'package-lock.json',
  'package.json',
  'systemd',
  'test',
  'tsconfig.json',
]

const TEST_PARTS = [
  ...[
    'bench',
    'commands',
    'fixtures',
    'helpers',
    'lib',
    'must-fail',
    'rehearsal',
    's3',
    'vectors',
    'vm',
  ],
]

/** Modules that reach the world: a pure part that imports one is not pure any more. */
const WORLDLY = [
  'fs',
  'fs/promises',
  'child_process',
  'net',
  'http',
  'https',
  'os',
  'worker_threads',
  'process',
]

/** What each file of test/must-fail makes the runner say. */
const MUST_FAIL: Readonly<Record<string, RegExp>> = {
  'assertion.ts': /only 1 of 2 tests passed[^]*1 passed, 1 failed/,
  'before-hook.ts': /only 0 of 1 tests passed/,
  'early-exit.ts': /no "Total:" line/,
  'hang.ts': /longer than 2 s and was stopped/,
  'late-failure.ts': /the process ended with 1/,
  'never-run.ts': /no "Total:" line/,
  'no-test.ts': /ran no test/,
  'skip-in-ci.ts': /in CI nothing may be skipped/,
}

interface Package {
  readonly scripts: Readonly<Record<string, string>>
  readonly dependencies: Readonly<Record<string, string>>
  readonly devDependencies: Readonly<Record<string, string>>
  readonly allowScripts: Readonly<Record<string, boolean>>
}

interface Lock {
  readonly packages: Readonly<Record<string, LockedPackage>>
}

interface LockedPackage {
  readonly version?: string
  readonly hasInstallScript?: boolean
}

const files = walk('')
const text = new Map(files.filter(isText).map((file) => [file, read(file)]))
const sources = files.filter((file) => /^(lib|commands)\/.*\.ts$/.test(file))
const tests = files.filter((file) => file.endsWith('.test.ts'))
const declared = JSON.parse(read('package.json')) as Package
const lock = JSON.parse(read('package-lock.json')) as Lock
const builtin = new Set(builtinModules)

const test = suite('tidy')

test('imports follow the arrows', () => {
  const wrong = sources.flatMap((file) => {
    const allowed = ARROWS[part(file)] ?? []
    const targets = imports(file)
      .filter(isRelative)
      .map((name) => join(dirname(file), name))
    return targets
      .filter((target) => !allowed.includes(part(target)))
      .map((target) => `${file} -> ${target}`)
  })
  none(
    wrong,
    'commands -> lib/work -> lib/{machine,target,format} -> lib/model -> lib/errors: an'
      + ' arrow the other way makes it impossible to test or replace a part alone',
  )
})

test('relative imports end in .ts and lead to a file', () => {
  const wrong = [...sources, ...files.filter((file) => /^test\/.*\.ts$/.test(file))].flatMap(
    (file) =>
      imports(file)
        .filter(isRelative)
        .filter((name) => !files.includes(join(dirname(file), name)))
        .map((name) => `${file}: ${name}`),
  )
  none(wrong, 'the compiler rewrites .ts and leaves everything else for run time to fail on')
})

test('the model and the format are pure', () => {
  const pure = sources.filter((file) => /^lib\/(model|format)\//.test(file))
  // What all threads count together is no input of any codec.
  const counted = pure.filter((file) => file !== 'lib/format/native.ts')
  const worldly = counted.flatMap((file) =>
    imports(file)
      .filter((name) => WORLDLY.includes(name.replace(/^node:/, '')))
      .map((name) => `${file}: ${name}`),
  )
  const clocked = pure.filter((file) =>
    /\bDate\.now\(|new Date\(\)|performance\.now\(|Math\.random\(|\bprocess\./.test(code(file)),
  )
  none(
    [...worldly, ...clocked],
    'time, randomness and bytes come in as arguments, so that every' + ' case can be tested',
  )
})

test('only commands read the command line', () => {
  const wrong = sources
    .filter((file) => file.startsWith('lib/'))
    .filter((file) => /\bprocess\.(argv|exit\b|exitCode)/.test(code(file)))
  none(wrong, 'a procedure that exits or parses flags cannot be used by another command')
})

test('lib prints nothing', () => {
  const wrong = sources
    .filter((file) => file.startsWith('lib/'))
    .filter((file) => /\bconsole\.|\bprocess\.(stdout|stderr)\b/.test(code(file)))
  none(wrong, 'output has one voice, in commands/: with --json nothing else may reach stdout')
})

test('a third-party package is imported in exactly one file', () => {
  const users = new Map<string, string[]>()
  for (const file of sources) {
    for (const name of new Set(imports(file).filter(isPackage).map(packageName))) {
      users.set(name, [...(users.get(name) ?? []), file])
    }
  }
  const wrong = [...users].filter(([, where]) => where.length > 1)
  none(
    wrong.map(([name, where]) => `${name}: ${where.join(', ')}`),
    'one fence to look over when a package changes, and one file to change when it is replaced',
  )
  none(
    [...users.keys()].filter((name) => declared.dependencies[name] === undefined),
    'what lib/ and commands/ import is a dependency, or an install without tests fails',
  )
  none(
    Object.keys(declared.dependencies).filter((name) => !users.has(name)),
    'a dependency that nothing uses is a risk that buys nothing',
  )
})

test('tests import only what package.json names, and use all of it', () => {
  const used = new Set(
    files
      .filter((file) => /^test\/.*\.ts$/.test(file))
      .flatMap((file) => imports(file).filter(isPackage).map(packageName)),
  )
  const known = { ...declared.dependencies, ...declared.devDependencies }
  none(
    [...used].filter((name) => known[name] === undefined),
    'a package that is here by accident is gone after the next install',
  )
  const expected = Object.keys(declared.devDependencies).filter(
    (name) => name !== 'typescript' && !name.startsWith('@types/'),
  )
  none(
    expected.filter((name) => !used.has(name)),
    'a dependency that nothing uses is a risk that buys nothing',
  )
})

test('versions are exact and locked', () => {
  const known = { ...declared.dependencies, ...declared.devDependencies }
  const wrong = Object.entries(known).filter(
    ([name, version]) =>
      !/^\d+\.\d+\.\d+$/.test(version)
      || lock.packages[`node_modules/${name}`]?.version !== version,
  )
  none(
    wrong.map(([name, version]) => `${name} ${version}`),
    'the same source has to build into the same program next year',
  )
})

test('only the packages that we name run scripts at install', () => {
  const running = Object.entries(lock.packages)
    .filter(([, { hasInstallScript }]) => hasInstallScript === true)
    .map(([path]) => path.replace(/^.*node_modules\//, ''))
  none(
    running.filter((name) => declared.allowScripts[name] === undefined),
    'an install script is code from elsewhere, run as whoever installs: name it, or forbid it',
  )
})

test('every file is where the layout has a place for it', () => {
  none(
    files.filter((file) => !TOP_LEVEL.includes(file.split('/')[0] ?? '')),
    'the top level is given (docs/architecture.md)',
  )
  none(
    files.filter((file) => file.startsWith('lib/') && ARROWS[part(file)] === undefined),
    'lib/ has errors.ts and the parts model, format, machine, target, work',
  )
  none(
    files.filter(
      (file) => /^test\/.*\//.test(file) && !TEST_PARTS.includes(file.split('/')[1] ?? ''),
    ),
    'a test lies beside its like',
  )
  none(
    files.filter((file) => /\/(utils?|helpers?|common|misc|types)\.ts$/.test(file)),
    'a drawer for everything hides what a file is about: one noun, one file',
  )
  none(
    sources.filter((file) => !/^[a-z0-9/-]+\.ts$/.test(file)),
    'file names are kebab-case',
  )
})

test('every source file says first why it exists', () => {
  const wrong = sources.filter((file) => {
    const lines = read(file)
      .split('\n')
      .filter((line, index) => index > 0 || !/^#!/.test(line))
    const length = lines.findIndex((line) => !line.startsWith('//'))
    return length < 3 || length > 12
  })
  none(
    wrong,
    'a header of 3 to 12 // lines: what it does, its neighbours, its invariant, what it'
      + ' throws',
  )
})

test('exports are named', () => {
  none(
    sources.filter((file) => /^export default/m.test(code(file))),
    'a default export has another name in every file that imports it',
  )
})

test('every test file runs every suite it makes', () => {
  const wrong = tests.flatMap((file) => {
    const body = code(file)
    const made = [...body.matchAll(/\b(?:const|let) (\w+) = suite\(/g)].map((match) => match[1])
    if (/import \{[^}]*\btest\b[^}]*\} from 'uvu'/.test(body)) made.push('test')
    if (made.length === 0) return [`${file}: makes no suite`]
    return made
      .filter((name) => !new RegExp(`\\b${name}\\.run\\(\\)`).test(body))
      .map((name) => `${file}: ${name}`)
  })
  none(wrong, 'uvu is green when a suite is never run')
  none(
    tests.filter((file) => /\b\w+\.only\(/.test(code(file))),
    'only() silences every other test of its suite',
  )
})

/** Texts and scripts that tests hold stay in one piece, so they do not count there. */
function counted(file: string): string {
  if (!file.startsWith('test/')) return read(file)
  const withoutTemplates = read(file).replace(/`[^`]*`/g, (text) => text.replace(/[^\n]/g, ''))
  return withoutTemplates.replace(/'[^'\n]*'|\/.*\//g, '')
}

test('lines of code have at most 100 columns', () => {
  const wrong = files
    .filter((file) => file.endsWith('.ts'))
    .flatMap((file) =>
      counted(file)
        .split('\n')
        .map((line, index) => ({ line, place: `${file}:${index + 1}` }))
        .filter(({ line }) => [...line].length > 100)
        .map(({ place }) => place),
    )
  none(wrong, 'two files side by side, and no line that hides its end')
})

test('nothing is left for later without a place to be found', () => {
  const marks = new RegExp(`\\b(${['TO' + 'DO', 'FIX' + 'ME', 'X' + 'XX'].join('|')})\\b`)
  none(mentions(marks), 'what is not done belongs into an issue, where someone owns it')
})

test('texts speak of the product only', () => {
  // Written in halves, so that this file does not find itself.
  const words = [
    'LL' + 'M',
    'assis' + 'tants?',
    'chat' + 'bots?',
    'GP' + 'T',
    'Clau' + 'de',
    'Anthro' + 'pic',
    'Open' + 'A' + 'I',
    'Copi' + 'lot',
    'language mod' + 'els?',
    'generated ' + 'by',
  ]
  none(
    mentions(new RegExp(`\\b(${words.join('|')})\\b`, 'i')),
    'how a line came to be is no help to whoever reads it',
  )
  none(
    mentions(new RegExp('(?<![\\w+/=-])A' + 'I(?![\\w+/=-])')),
    'how a line came to be is no help to whoever reads it',
  )
  const places = ['work', 'tmp/bash' + '_jobs', 'root/\\.']
  none(
    mentions(new RegExp(`(^|[\\s'"\`(=:])/(${places.join('|')})(?![\\w-])`)),
    'a path of the machine where it was written means nothing on any other',
  )
})

test('docs/errors.md has every error code, and no other, with its exit code and title', () => {
  const headings = new Map<string, string>()
  for (const section of read('docs/errors.md').split(/^### /m).slice(1)) {
    const [heading = '', , first = ''] = section.split('\n')
    headings.set(heading, first)
  }
  assert.equal(
    [...headings.keys()].sort(),
    Object.keys(ERRORS).sort(),
    'whoever meets a code looks it up there: one heading for each, and none for what is gone',
  )
  const wrong = Object.entries(ERRORS).filter(
    ([code, [status, title]]) => headings.get(code) !== `Exit ${status}: ${title}.`,
  )
  none(
    wrong.map(([code, [status, title]]) => `${code}: "Exit ${status}: ${title}."`),
    "the first line under a heading is the registry's",
  )
})

test('docs/errors.md lists every exit code in the order of rank', () => {
  const rows = [...read('docs/errors.md').matchAll(/^\| (\d+) \|/gm)].map((row) => Number(row[1]))
  assert.equal(rows, [...EXIT_CODES], 'scripts rely on exit codes: the table is their contract')
})

test('links in documents lead somewhere', () => {
  const wrong = [...text]
    .filter(([file]) => file.endsWith('.md'))
    .flatMap(([file, body]) =>
      [...body.replace(/^```[^]*?^```/gm, '').matchAll(/\]\(([^)\s]+)\)/g)]
        .map((match) => match[1] ?? '')
        .filter((link) => !/^[a-z]+:/.test(link))
        .filter((link) => !resolves(file, link))
        .map((link) => `${file}: ${link}`),
    )
  none(wrong, 'a reader in trouble has no time for a dead link')
})

test('change notes begin with their kind', () => {
  const notes = files.filter((file) => file.startsWith('docs/changelog/'))
  none(
    notes.filter(
      (file) => !/^(Bugfix|Enhancement|Change): [A-Z][^\n]*[^.\n]\n\n\S/.test(read(file)),
    ),
    'docs/changelog.md is put together from them',
  )
})

test('shell scripts parse, stop at the first failure, and can be run', () => {
  const scripts = [...text].filter(([, body]) => /^#!.*\b(ba)?sh\b/.test(body))
  const wrong = scripts.flatMap(([file, body]) => {
    const shell = /^#!.*bash/.test(body) ? 'bash' : 'sh'
    const parsed = spawnSync(shell, ['-n', join(root, file)], { encoding: 'utf8' })
    const faults = parsed.status === 0 ? [] : [`${file}: ${parsed.stderr}`]
    if (!/^(test|\.ci)\//.test(file)) return faults
    if (!/^set -e/m.test(body)) faults.push(`${file}: no set -e`)
    if ((statSync(join(root, file)).mode & 0o111) === 0) faults.push(`${file}: not executable`)
    return faults
  })
  none(wrong, 'a script that goes on after a failure reports a success that is none')
  for (const [name, command] of Object.entries(declared.scripts)) {
    if (command.startsWith('test/')) assert.ok(files.includes(command), `npm run ${name}`)
  }
})

test('the runner fails where it has to', () => {
  const names = readdirSync(join(root, 'test/must-fail')).sort()
  assert.equal(names, Object.keys(MUST_FAIL).sort(), 'each case names what it is to provoke')
  for (const [name, expected] of Object.entries(MUST_FAIL)) {
    const run = spawnSync(
      process.execPath,
      [join(root, 'dist/test/run.js'), '--limit', '2', `test/must-fail/${name}`],
      { cwd: root, encoding: 'utf8', env: { ...process.env, CI: 'true' } },
    )
    assert.is(run.status, 1, `${name}: a green harness proves nothing unless it can be red`)
    assert.match(run.stdout, expected)
  }
})

test.run()

/** Every file, as a path relative to the root, in order. */
function walk(directory: string): string[] {
  const entries = readdirSync(join(root, directory), { withFileTypes: true })
  const isOurs = ({ name }: { name: string }): boolean =>
    directory !== '' || TOP_LEVEL.includes(name) || !(SKIPPED.includes(name) || name[0] === '.')
  return entries
    .filter(isOurs)
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const path = join(directory, entry.name)
      return entry.isDirectory() ? walk(path) : [path]
    })
}

function read(file: string): string {
  return readFileSync(join(root, file), 'utf8')
}

/** Small enough to be written by hand, and without a NUL. */
function isText(file: string): boolean {
  return statSync(join(root, file)).size < 1024 * 1024 && !read(file).includes('\0')
}

/** A source without its comments: what is said there is no code. */
function code(file: string): string {
  return read(file)
    .replace(/^\s*\/\*[^]*?\*\//gm, '')
    .replace(/(^|\s)\/\/[^\n]*/g, '')
}

function imports(file: string): string[] {
  const pattern = /(?<![.\w])(?:from\s+|import\s+|import\s*\(\s*)'([^'\n]+)'/g
  return [...code(file).matchAll(pattern)].map((match) => match[1] ?? '')
}

function isRelative(name: string): boolean {
  return name.startsWith('.')
}

function isPackage(name: string): boolean {
  return !isRelative(name) && !name.startsWith('node:') && !builtin.has(name)
}

/** `uvu/assert` is of `uvu`, `@scure/base/x` of `@scure/base`. */
function packageName(name: string): string {
  return name
    .split('/')
    .slice(0, name.startsWith('@') ? 2 : 1)
    .join('/')
}

/** `lib/model`, `commands`, `lib/errors.ts`: the key of ARROWS. */
function part(file: string): string {
  const [first = '', second = ''] = file.split('/')
  return first === 'lib' ? `lib/${second}` : first
}

/** `file:line` of every line of every text that matches; the lock file is npm's. */
function mentions(pattern: RegExp): string[] {
  return [...text]
    .filter(([file]) => file !== 'package-lock.json')
    .flatMap(([file, body]) =>
      body
        .split('\n')
        .flatMap((line, index) => (pattern.test(line) ? [`${file}:${index + 1}`] : [])),
    )
}

/** Whether a relative link of a document leads to a file and, after `#`, to a heading in it. */
function resolves(file: string, link: string): boolean {
  const [path = '', anchor] = link.split('#')
  const target = path === '' ? file : normalize(join(dirname(file), path))
  if (!files.some((name) => name === target || name.startsWith(`${target.replace(/\/$/, '')}/`))) {
    return false
  }
  if (anchor === undefined) return true
  const headings = [...read(target).matchAll(/^#+ (.*)$/gm)].map((match) => match[1] ?? '')
  return headings.some(
    (heading) =>
      heading
        .toLowerCase()
        .replace(/[^\w\- ]/g, '')
        .replace(/ /g, '-') === anchor,
  )
}

function none(wrong: readonly string[], why: string): void {
  if (wrong.length > 0) process.stdout.write(`\n  ${why}:\n    ${wrong.join('\n    ')}\n`)
  assert.is(wrong.length, 0, why)
}
