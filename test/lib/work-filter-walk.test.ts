import { Buffer } from 'node:buffer'
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import type { FilterConfiguration } from '../../lib/machine/config.ts'
import { CACHE_SIGNATURE, rsyncExclusions } from '../../lib/model/filter.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import { leftOutRules, literalPattern } from '../../lib/model/rsync-pattern.ts'
import {
  explainPath,
  type FilterRequest,
  hasFilters,
  walkFilters,
} from '../../lib/work/filter-walk.ts'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomOfRun } from '../helpers/random.ts'
import { stock } from '../helpers/stock.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const walk = suite('filter-walk')
const root = tempDirectory()
let trees = 0

const NONE: FilterConfiguration = {
  globs: [],
  regexes: [],
  ignoreFiles: [],
  skipCaches: false,
  skipMarkers: [],
  maxSizeBytes: undefined,
  oneFilesystem: false,
}

/** Files by path (one character a byte), with their content; a slash at the end is a directory. */
function makeTree(files: Readonly<Record<string, string>>): string {
  const top = `${root}/${++trees}`
  for (const [path, content] of Object.entries(files)) {
    const full = `${top}/${path}`
    const directory = full.slice(0, full.lastIndexOf('/'))
    mkdirSync(Buffer.from(directory, 'latin1'), { recursive: true })
    if (!path.endsWith('/')) writeFileSync(Buffer.from(full, 'latin1'), content)
  }
  return top
}

function requestOf(
  top: string,
  filters: Partial<FilterConfiguration>,
  change: Partial<FilterRequest> = {},
): FilterRequest {
  const source = { root: '', path: top, isDirectory: true }
  return {
    sources: [source],
    filters: { ...NONE, ...filters },
    exclusions: [],
    leftOut: [],
    ...change,
  }
}

/** What the walk leaves out, below `top`: `dir/` and `dir/ but tag` for directories. */
function namesLeftOut(top: string, request: FilterRequest): string[] {
  return walkFilters(request).leftOut.map(({ path, isDirectory, kept }) => {
    const but = kept === undefined ? '' : ` but ${kept.join(',')}`
    return `${path.slice(top.length + 1)}${isDirectory ? '/' : ''}${but}`
  })
}

/** What a real rsync copies with the rules of a collection, absolute, one character a byte. */
function rsyncTakes(request: FilterRequest): Set<string> {
  const { sources, exclusions, leftOut } = request
  const rules = [
    '- lost+found/',
    ...leftOut.map((path) => `- ${literalPattern(path)}/`),
    ...sources.map(({ path }) => `+ ${literalPattern(path)}/`),
    ...leftOutRules(walkFilters(request).leftOut),
    ...[...rsyncExclusions(request.filters.globs), ...exclusions]
      .map(rawPathFromText)
      .map((text) => (/^[-+] /.test(text) ? text : `- ${text}`)),
  ]
  const words = ['-aRn', '--from0', '--exclude-from=-', '--out-format=%n', '--8-bit-output', '--']
  const paths = sources.map(({ path }) => `/.${path}/`)
  const { status, stdout, stderr } = spawnSync('rsync', [...words, ...paths, `${root}/to/`], {
    input: Buffer.from(rules.map((rule) => `${rule}\0`).join(''), 'latin1'),
    encoding: 'latin1',
    env: { PATH: process.env['PATH'] ?? '', LC_ALL: 'C' },
  })
  assert.is(status, 0, stderr)
  const lines = stdout.split('\n').map((line) => `/${line.replace(/\/$/, '')}`)
  return new Set(lines)
}

walk('globs, regular expressions and sizes leave out the topmost paths only', () => {
  const top = makeTree({
    'a.iso': '',
    'dir.iso/a.iso': '',
    'keep/b.txt': '12345',
    'keep/big': '123456',
    'keep/\xe9.iso': '',
    'x/tmp/y/z': '',
  })
  symlinkSync('/nowhere-that-is-long', `${top}/keep/link`)
  const filters = { globs: ['*.is[o]'], regexes: ['/tmp/$'], maxSizeBytes: 5 }
  assert.equal(namesLeftOut(top, requestOf(top, filters)).sort(), [
    'a.iso',
    'dir.iso/',
    'keep/big',
    'keep/\xe9.iso',
    'x/tmp/',
  ])
  assert.equal(namesLeftOut(top, requestOf(top, {})), [])
  assert.not(hasFilters(NONE))
  assert.ok(hasFilters({ ...NONE, maxSizeBytes: 0 }))
  assert.not(hasFilters({ ...NONE, globs: ['*.iso', 'build/'] }), 'rsync does that alone')
  assert.ok(hasFilters({ ...NONE, globs: ['*.iso', '/build/*'] }))
  assert.equal(namesLeftOut(top, requestOf(top, { globs: ['*.iso', '/**/k?ep'] })), ['keep/'])
})

walk('a valid cache tag or a marker keeps itself and its directory, and nothing else', () => {
  const top = makeTree({
    'cache/CACHEDIR.TAG': `${CACHE_SIGNATURE}\n`,
    'cache/blob': '',
    'cache/deep/blob': '',
    'false/CACHEDIR.TAG': 'Signature: none',
    'false/blob': '',
    'marked/.nobackup': '',
    'marked/x/y': '',
    'directory/.nobackup/': '',
    '[odd]*/.nobackup': '',
    '[odd]*/x': '',
  })
  const request = requestOf(top, { skipCaches: true, skipMarkers: ['.nobackup'] })
  assert.equal(namesLeftOut(top, request).sort(), [
    '[odd]*/ but .nobackup',
    'cache/ but CACHEDIR.TAG',
    'marked/ but .nobackup',
  ])
  const taken = rsyncTakes(request)
  const names = ['cache/CACHEDIR.TAG', 'false/blob', 'marked/.nobackup', '[odd]*/.nobackup']
  for (const name of names) assert.ok(taken.has(`${top}/${name}`), name)
  for (const name of ['cache/blob', 'cache/deep', 'marked/x', '[odd]*/x']) {
    assert.not(taken.has(`${top}/${name}`), name)
  }
  assert.equal(namesLeftOut(top, requestOf(top, {})), [], 'not when nobody asked for it')
})

walk('does not descend into what rsync leaves out, nor name it', () => {
  const directories = { 'node_modules/a.iso': '', 'own/a.iso': '', 'lost+found/a.iso': '' }
  const top = makeTree({ ...directories, 'a.iso': '' })
  const change = { exclusions: ['node_modules', '+ *.iso'], leftOut: [`${top}/own`] }
  const request = requestOf(top, { globs: ['*.is?'] }, change)
  assert.equal(namesLeftOut(top, request), ['a.iso'], 'a filter goes before what a `+` takes')
  assert.is(walkFilters(request).entries, 4)
})

walk('ignore files hold below their directory, deeper ones first, and name their line', () => {
  const top = makeTree({
    '.gitignore': '*.o\n/build/\n',
    'a.o': '',
    'build/x': '',
    'src/.gitignore': '!keep.o\n',
    'src/keep.o': '',
    'src/b.o': '',
    'src/build/x': '',
  })
  const request = requestOf(top, { ignoreFiles: ['.gitignore'] })
  assert.equal(namesLeftOut(top, request).sort(), ['a.o', 'build/', 'src/b.o'])
  const { reason } = walkFilters(request).leftOut.find(({ path }) => path.endsWith('/build'))!
  const file = { path: `${top}/.gitignore`, line: 2 }
  assert.equal(reason, { kind: 'ignore-file', rule: '/build/', file })
})

walk('a source within a source is taken whatever fits it, and has rules of its own', () => {
  const top = makeTree({ '.gitignore': '*.o\n', 'in.iso/a.o': '', 'in.iso/b.iso': '', 'c.o': '' })
  const inner = { root: '', path: `${top}/in.iso`, isDirectory: true }
  const request = requestOf(top, { globs: ['*.is[o]'], ignoreFiles: ['.gitignore'] })
  const both = { ...request, sources: [...request.sources, inner] }
  assert.equal(namesLeftOut(top, both).sort(), ['c.o', 'in.iso/b.iso'])
  const outer = { ...request, sources: [{ root: '', path: root, isDirectory: true }, inner] }
  assert.ok(rsyncTakes(outer).has(`${top}/in.iso/a.o`), 'even in a directory that is left out')
})

walk('reads through the root of a snapshot, and names paths as a collection has them', () => {
  const top = makeTree({ 'home/me/a.iso': '' })
  const sources = [{ root: top, path: '/home/me', isDirectory: true }]
  const request = requestOf(top, { globs: ['*.is?', '/home/me/x'] }, { sources })
  assert.equal(
    walkFilters(request).leftOut.map(({ path }) => path),
    ['/home/me/a.iso'],
  )
})

walk('an ignore file that cannot be read is told, and leaves nothing out', () => {
  const top = makeTree({ '.gitignore': `*.o\n${'#'.repeat(4 * 1024 * 1024)}`, 'a.o': '' })
  const { leftOut, unreadable } = walkFilters(requestOf(top, { ignoreFiles: ['.gitignore'] }))
  assert.equal(leftOut, [])
  assert.equal(unreadable, [{ path: `${top}/.gitignore`.slice(1), why: 'larger than 4 MiB' }])
})

walk('a directory that cannot be listed, or is gone, stops nothing', () => {
  const top = makeTree({ 'a.iso': '' })
  const gone = { root: '', path: `${top}/gone`, isDirectory: true }
  const request = requestOf(top, { globs: ['*.is?'] })
  const both = { ...request, sources: [gone, ...request.sources] }
  assert.equal(namesLeftOut(top, both), ['a.iso'])
  mkdirSync(`${top}/closed`, { mode: 0 })
  assert.equal(namesLeftOut(top, request), ['a.iso'])
  chmodSync(`${top}/closed`, 0o700)
})

if (canRunAsRoot('another filesystem below a source')) {
  walk('one filesystem keeps the directory of a mount, empty', () => {
    const top = makeTree({ 'mnt/': '', 'x/y': '' })
    stock('mount', ['-t', 'tmpfs', 'tmpfs', `${top}/mnt`])
    try {
      writeFileSync(`${top}/mnt/file`, '')
      const request = requestOf(top, { oneFilesystem: true })
      assert.equal(namesLeftOut(top, request), ['mnt/ but '])
      const taken = rsyncTakes(request)
      assert.ok(taken.has(`${top}/mnt`) && taken.has(`${top}/x/y`))
      assert.not(taken.has(`${top}/mnt/file`))
      const [source] = request.sources
      const options = { source: source!, path: `${top}/mnt/file`, isDirectory: false }
      assert.equal(explainPath(request, options).reason, { kind: 'filesystem', rule: 'tmpfs' })
    } finally {
      stock('umount', [`${top}/mnt`])
    }
  })
}

if (canRunAsRoot('btrfs loop mount')) {
  walk('one filesystem goes through the subvolumes of one btrfs', () => {
    const device = loopDevice({ sizeMib: 128, type: 'btrfs' })
    mkdirSync(`${device.path}/top`)
    stock('btrfs', ['subvolume', 'create', `${device.path}/top/nested`])
    mkdirSync(`${device.path}/top/nested/deep`)
    const request = requestOf(`${device.path}/top`, { oneFilesystem: true })
    const { leftOut, entries } = walkFilters(request)
    device.unmount()
    assert.equal([leftOut, entries], [[], 2])
  })
}

const NAMES = ['a', 'b', 'a.o', 'b.iso', 'cache', 'lost+found', '[a]*', '\xc3\xa9', '\xe9']
const LINES = ['*.o', '!a.o', '/a', 'b/', 'cache', '**/a', '!/b', 'a/b', '[ab]', '!*']
const GLOBS = ['*.iso', 'é', '[[]a*', '{a,b}.o', '**/a/b', 'cache/', 'a/*', '?']
const EXCLUSIONS = ['a', '+ b', '*.o', 'a/b', '/**/cache', '[ab]/', 'b/***', '+ *.iso', '*']

walk('explains of every path of random trees what a real rsync then does', () => {
  const random = randomOfRun('filter-walk')
  const some = <T>(items: readonly T[], most: number): T[] => {
    return Array.from({ length: random.integer(most + 1) }, () => random.pick(items))
  }
  for (let round = 0; round < 40; round++) {
    const top = `${root}/${++trees}`
    const paths: string[] = []
    const make = (directory: string, depth: number): void => {
      mkdirSync(Buffer.from(directory, 'latin1'))
      const put = (name: string, content: string): void => {
        writeFileSync(Buffer.from(`${directory}/${name}`, 'latin1'), content)
        paths.push(`${directory}/${name}`)
      }
      if (random.integer(4) === 0) put('.ignore', some(LINES, 4).join('\n'))
      if (random.integer(9) === 0) put('CACHEDIR.TAG', random.pick([CACHE_SIGNATURE, 'no']))
      if (random.integer(9) === 0) put('.skip', '')
      for (const name of new Set(some(NAMES, 6))) {
        if (depth === 3 || random.integer(2) === 0) put(name, 'x'.repeat(random.integer(12)))
        else {
          paths.push(`${directory}/${name}`)
          make(`${directory}/${name}`, depth + 1)
        }
      }
    }
    make(top, 0)
    const filters = {
      globs: some(GLOBS, 2),
      regexes: some(['/b/$', 'o$'], 1),
      ignoreFiles: ['.ignore'],
      skipCaches: true,
      skipMarkers: ['.skip'],
      maxSizeBytes: random.pick([undefined, 8]),
    }
    const change = { exclusions: some(EXCLUSIONS, 3), leftOut: [`${top}/b`] }
    const request = requestOf(top, filters, change)
    const taken = rsyncTakes(request)
    const [source] = request.sources
    for (const path of paths) {
      const explained = explainPath(request, { source: source!, path, isDirectory: false })
      const why = JSON.stringify({ path, filters, change, explained })
      assert.is(explained.taken, taken.has(path), why)
    }
  }
})

walk.run()
