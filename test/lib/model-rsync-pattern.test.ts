import { Buffer } from 'node:buffer'
import { spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import {
  decidingRule,
  leftOutRules,
  leftOutTest,
  parseRsyncRule,
} from '../../lib/model/rsync-pattern.ts'
import * as assert from '../helpers/assert.ts'
import { randomOfRun } from '../helpers/random.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const rsyncPattern = suite('rsync-pattern')

/** The names of the tree that rules are tried on: few, so that they meet often. */
const NAMES = ['a', 'b', 'ab', 'a.b', 'ba', 'b-', '[a', 'a]', '*', 'é', '^b', 'A', '\\a', '7']
const DEPTH = 3
const LISTS = 250

const root = tempDirectory()

interface TreePath {
  /** Absolute from the root of the transfer, one character a byte. */
  readonly path: string
  readonly isDirectory: boolean
}

/** Every third name is a directory, another one at each depth. */
function makeTree(directory: string, below: string, depth: number): TreePath[] {
  return NAMES.flatMap((name, index) => {
    const path = `${below}/${name}`
    const raw = rawPathFromText(path)
    if (depth === DEPTH || (index + depth) % 3 !== 0) {
      writeFileSync(directory + path, '')
      return [{ path: raw, isDirectory: false }]
    }
    mkdirSync(directory + path)
    return [{ path: raw, isDirectory: true }, ...makeTree(directory, path, depth + 1)]
  })
}

/** What rsync takes of the tree, one character a byte, as paths from its root. */
function rsyncTakes(rules: readonly string[]): string[] {
  const words = ['-r', '-n', '--from0', '--exclude-from=-', '--out-format=%n', '--8-bit-output']
  const paths = [`${root}/tree/`, `${root}/to/`]
  const { status, stdout, stderr } = spawnSync('rsync', [...words, ...paths], {
    input: Buffer.from(rules.map((rule) => `${rule}\0`).join(''), 'latin1'),
    encoding: 'latin1',
    env: { PATH: process.env['PATH'] ?? '', LC_ALL: 'C' },
  })
  assert.is(status, 0, `${JSON.stringify(rules)}: ${stderr}`)
  const lines = stdout.split('\n').filter((line) => line !== '' && line !== './')
  return lines.map((path) => `/${path.replace(/\/$/, '')}`).sort()
}

/** The same by our own reading. */
function weTake(texts: readonly string[]): string[] {
  const rules = texts.map(parseRsyncRule)
  const left: string[] = []
  return tree
    .filter(({ path, isDirectory }) => {
      if (left.some((directory) => path.startsWith(`${directory}/`))) return false
      const takes = decidingRule(rules, path, isDirectory)?.takes !== false
      if (!takes) left.push(path)
      return takes
    })
    .map(({ path }) => path)
    .sort()
}

mkdirSync(`${root}/tree`)
const tree = makeTree(`${root}/tree`, '', 1)

const PIECES = [
  ...[
    'a',
    'b',
    'a',
    'b',
    'ab',
    '.',
    '-',
    'A',
    '7',
    'é',
    '\\',
    '\\a',
    '\\*',
    '\\[',
    '[',
    ']',
    '^',
    '!',
  ],
  ...[
    '*',
    '*',
    '*',
    '**',
    '**',
    '***',
    '?',
    '?',
    '[ab]',
    '[!a]',
    '[^b.]',
    '[a-b]',
    '[b-a]',
    '[]a]',
  ],
  ...['[!]a]', '[[:alpha:]]', '[[:upper:]-]', '[[:foo:]]', '[[:punct:]a]', '[a', '[\\]b]', '[a-]'],
  ...['/', '/', '/', '/', '/', 'a/', '/b', '/**/', '/***', '*/', '{a,b}', '[a/]', '[.-7]', '[[:x]'],
].map(rawPathFromText)

rsyncPattern('agrees with rsync on every path of a tree, for random lists of rules', () => {
  const random = randomOfRun('rsync-pattern')
  const pattern = (): string => {
    const pieces = Array.from({ length: 1 + random.integer(5) }, () => random.pick(PIECES))
    return random.pick(['', '', '/']) + pieces.join('') + random.pick(['', '', '/', '/***'])
  }
  let decided = 0
  for (let list = 0; list < LISTS; list++) {
    const rules = Array.from({ length: 1 + random.integer(4) }, () => {
      return random.pick(['- ', '- ', '+ ']) + pattern()
    })
    const expected = rsyncTakes(rules)
    assert.equal(weTake(rules), expected, `rules ${JSON.stringify(rules)}`)
    if (expected.length < tree.length) decided += 1
  }
  assert.ok(decided > LISTS / 4, `only ${decided} lists left anything out`)
})

rsyncPattern('leaves out exactly what it is told, whatever characters are in the paths', () => {
  const random = randomOfRun('left-out')
  for (let list = 0; list < 40; list++) {
    const leftOut = Array.from({ length: 1 + random.integer(4) }, () => {
      const { path, isDirectory } = random.pick(tree)
      const kept = isDirectory && random.integer(2) === 0 ? [random.pick(NAMES)] : undefined
      return { path, isDirectory, kept: kept?.map(rawPathFromText) }
    })
    const rules = leftOutRules(leftOut)
    const expected = tree.filter((item) => {
      return !leftOut.some(({ path, kept }) => {
        if (kept === undefined) return item.path === path || item.path.startsWith(`${path}/`)
        const [first] = item.path.slice(path.length + 1).split('/')
        return item.path.startsWith(`${path}/`) && !kept.includes(first ?? '')
      })
    })
    // Two rules about one directory: rsync takes the first, and there is no such pair in a walk.
    if (new Set(leftOut.map(({ path }) => path)).size < leftOut.length) continue
    const paths = expected.map(({ path }) => path).sort()
    assert.equal(rsyncTakes(rules), paths, JSON.stringify(rules))
    const isLeftOut = leftOutTest(leftOut.map((rule) => ({ ...rule, path: rule.path.slice(1) })))
    const tested = tree.filter(({ path }) => !isLeftOut(path.slice(1))).map(({ path }) => path)
    assert.equal(tested.sort(), paths)
  }
})

rsyncPattern('takes no longer for a pattern of many stars than a name can bear', () => {
  const rule = parseRsyncRule(`${'*a'.repeat(40)}b`)
  const start = process.hrtime.bigint()
  assert.not(rule.fits(`/${'a'.repeat(255)}`, false))
  assert.ok(process.hrtime.bigint() - start < 1_000_000_000n)
})

rsyncPattern('reads a pattern without a sign as one that leaves out', () => {
  const rule = parseRsyncRule('*.tmp')
  assert.equal([rule.takes, rule.text, rule.fits('/x/a.tmp', false)], [false, '*.tmp', true])
  assert.ok(parseRsyncRule('+ *.tmp').takes)
})

rsyncPattern.run()
