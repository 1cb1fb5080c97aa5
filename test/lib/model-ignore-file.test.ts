import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { Buffer } from 'node:buffer'
import { spawnSync } from 'node:child_process'
import {
  decidingIgnoreRule,
  type IgnoreFile,
  parseIgnoreFile,
} from '../../lib/model/ignore-file.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import * as assert from '../helpers/assert.ts'
import { randomOfRun } from '../helpers/random.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const ignoreFile = suite('ignore-file')
const root = tempDirectory()

const NAMES = ['a', 'b', 'ab', 'a.b', 'b ', '#a', '!b', '[a', '*', 'é', '\\a', 'A', '7'].map(
  rawPathFromText,
)
const TREES = 300

const PIECES = [
  ...['a', 'b', 'a', 'b', 'ab', '.', ' ', 'A', '7', 'é', '\\', '\\a', '\\*', '\\ ', '[', ']', '#'],
  ...['*', '*', '**', '**', '***', '?', '[ab]', '[!a]', '[^b.]', '[a-b]', '[b-a]', '[]a]', '!'],
  ...['[[:alpha:]]', '[[:upper:]-]', '[[:foo:]]', '[a', '[\\]b]', '[a/]', '\\#', '\\!', '\t'],
  ...['/', '/', '/', '/', 'a/', '/b', '/**/', '**/', '/**', '*/', '\\/', '//'],
].map(rawPathFromText)

interface TreePath {
  /** Absolute, with the repository as the root. */
  readonly path: string
  readonly isDirectory: boolean
}

const tree: TreePath[] = []
const files = new Map<string, IgnoreFile>()

const bytes = (text: string): Buffer => Buffer.from(text, 'latin1')

function makeTree(below: string, depth: number): void {
  for (const [index, name] of NAMES.entries()) {
    const path = `${below}/${name}`
    const isDirectory = depth < 3 && (index + depth) % 3 === 0
    tree.push({ path, isDirectory })
    if (!isDirectory) writeFileSync(bytes(root + path), '')
    else {
      mkdirSync(bytes(root + path))
      makeTree(path, depth + 1)
    }
  }
}

function git(words: readonly string[], input = ''): string {
  const { stdout, stderr, status } = spawnSync('git', ['-C', root, ...words], {
    input: bytes(input),
    encoding: 'latin1',
    env: { PATH: process.env['PATH'] ?? '', HOME: root, GIT_CONFIG_NOSYSTEM: '1', LC_ALL: 'C' },
  })
  assert.ok(status === 0 || (words[0] === 'check-ignore' && status === 1), stderr)
  return stdout
}

/** The paths that git ignores, by themselves or by a directory above. */
function gitIgnores(): string[] {
  const input = tree.map(({ path }) => `${path.slice(1)}\0`).join('')
  return git(['check-ignore', '-z', '--stdin', '--no-index'], input)
    .split('\0')
    .filter((path) => path !== '')
    .map((path) => `/${path}`)
    .sort()
}

/** The same by our own reading: no file in a directory that is left out is read. */
function weIgnore(): string[] {
  const left: string[] = []
  const ignored = tree.filter(({ path, isDirectory }) => {
    if (left.some((directory) => path.startsWith(`${directory}/`))) return true
    const above = path.split('/').map((_, index, names) => names.slice(0, index).join('/'))
    const known = above.slice(1).flatMap((directory) => files.get(directory) ?? [])
    const found = decidingIgnoreRule(known, path, isDirectory)
    if (found === undefined || found.rule.takes) return false
    left.push(path)
    return true
  })
  return ignored.map(({ path }) => path).sort()
}

function putIgnoreFile(directory: string, content: string): void {
  const path = `${directory}/.gitignore`
  writeFileSync(bytes(root + path), bytes(content))
  files.set(directory, { path, directory, rules: parseIgnoreFile(content) })
}

ignoreFile('agrees with git on every path of a tree, for random files at several depths', () => {
  git(['init', '-q', '.'])
  makeTree('', 1)
  const random = randomOfRun('ignore-file')
  const directories = ['', ...tree.filter((item) => item.isDirectory).map(({ path }) => path)]
  const line = (): string => {
    const pieces = Array.from({ length: 1 + random.integer(5) }, () => random.pick(PIECES))
    const end = random.pick(['', '', '/', '/', ' ', '  ', '\r', '\\ ', '/ '])
    return random.pick(['', '', '!', '/', '!/']) + pieces.join('') + end
  }
  let decided = 0
  for (let round = 0; round < TREES; round++) {
    for (const directory of files.keys()) rmSync(bytes(`${root}${directory}/.gitignore`))
    files.clear()
    for (let count = 0; count < 1 + random.integer(4); count++) {
      const lines = Array.from({ length: 1 + random.integer(5) }, line)
      const start = random.pick(['', '', '\xef\xbb\xbf'])
      putIgnoreFile(random.pick(directories), start + lines.join('\n') + random.pick(['', '\n']))
    }
    const expected = gitIgnores()
    const texts = [...files.values()].map(({ path, rules }) => {
      return [path, rules.map((rule) => rule.text)]
    })
    assert.equal(weIgnore(), expected, JSON.stringify(texts))
    if (expected.length > 0) decided += 1
  }
  assert.ok(decided > TREES / 4, `only ${decided} trees had anything ignored`)
})

ignoreFile('names the line that decides', () => {
  const rules = parseIgnoreFile('# all\n\n*.o\r\n!keep.o   \n')
  const file = { path: '/x/.gitignore', directory: '/x', rules }
  const line = (path: string): number | undefined => {
    return decidingIgnoreRule([file], path, false)?.rule.line
  }
  assert.equal([line('/x/a.o'), line('/x/y/keep.o'), line('/x/a.c')], [3, 4, undefined])
  assert.equal(rules[1]?.text, '!keep.o')
})

ignoreFile('takes no longer for a rule of many stars than a path can bear', () => {
  const rules = parseIgnoreFile(`${'*a'.repeat(40)}b\n${'**/*a/'.repeat(20)}b\n${'a*'.repeat(30)}b`)
  const start = process.hrtime.bigint()
  const path = `${'a'.repeat(200)}/`.repeat(20)
  assert.not(rules.some(({ fits }) => fits(path + 'a'.repeat(255), false)))
  assert.ok(process.hrtime.bigint() - start < 2_000_000_000n)
})

ignoreFile.run()
