import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { getPriority } from 'node:os'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import {
  checkRsync,
  parseRsyncVersion,
  type RsyncCall,
  type RsyncItem,
  runRsync,
  rsyncVersion,
} from '../../lib/machine/rsync.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const rsync = suite('machine/rsync')

const TIME = new Date('2025-01-02T03:04:05.678Z')

/** A view with `/data` in it, holding what `files` says. */
function scene(files: Readonly<Record<string, string>>) {
  const directory = tempDirectory()
  const root = `${directory}/view`
  mkdirSync(`${root}/data`, { recursive: true })
  const write = (path: string, content: string): void => {
    const file = `${root}/data/${path}`
    mkdirSync(file.slice(0, file.lastIndexOf('/')), { recursive: true })
    writeFileSync(file, content)
    utimesSync(file, TIME, TIME)
  }
  for (const [path, content] of Object.entries(files)) write(path, content)
  let count = 0
  const copy = async (own: Partial<RsyncCall> = {}) => {
    const items: RsyncItem[] = []
    count += 1
    const call = {
      sources: [{ root: rawPathFromText(root), path: '/data', isDirectory: true }],
      exclusions: [],
      leftOut: [],
      linkDestinations: [],
      target: rawPathFromText(`${directory}/target-${count}`),
      followLinks: false,
      exactTimes: true,
      dryRun: false,
      onItem: (item: RsyncItem) => items.push(item),
      ...own,
    }
    const outcome = await runRsync(call)
    const item = (path: string) => items.find((one) => one.path === `data/${path}`)
    return { outcome, items, item, target: call.target }
  }
  return { directory, root, data: `${root}/data`, write, copy }
}

/** Everything below a directory, sorted. */
function tree(directory: string): string[] {
  return readdirSync(directory, { recursive: true, encoding: 'latin1' }).sort()
}

rsync('a same-size same-time edit is found by content, against a link-dest base', async () => {
  const { copy, write } = scene({ edited: 'aaaa', same: 'bbbb', longer: 'c', mode: 'd' })
  const base = await copy()
  assert.not.ok(base.items.some(({ contentDiffers }) => contentDiffers))
  write('edited', 'AAAA')
  write('longer', 'cc')
  const linkDestinations = [base.target]
  const believing = await copy({ linkDestinations })
  assert.is(believing.item('edited')?.copied, false)
  assert.is(readFileSync(`${believing.target}/data/edited`, 'latin1'), 'aaaa')
  const reading = await copy({ linkDestinations, compareContent: true })
  const differing = reading.items.filter(({ contentDiffers }) => contentDiffers)
  assert.equal(
    differing.map(({ path, copied }) => [path, copied]),
    [['data/edited', true]],
  )
  assert.is(readFileSync(`${reading.target}/data/edited`, 'latin1'), 'AAAA')
  assert.is(readFileSync(`${base.target}/data/edited`, 'latin1'), 'aaaa')
  const inode = (target: string): number => statSync(`${target}/data/same`).ino
  assert.is(inode(reading.target), inode(base.target))
})

rsync('a bandwidth limit limits', async () => {
  const { copy, write } = scene({})
  write('big', 'x'.repeat(4 * 2 ** 20))
  const started = Date.now()
  await copy({ bandwidthBytesPerSecond: 2 * 2 ** 20 })
  assert.ok(Date.now() - started >= 1000)
})

rsync('nice and ionice reach rsync, and only when asked for', async () => {
  const { directory, copy } = scene({ a: '1' })
  // Stands before rsync on PATH and writes down what it is run with.
  mkdirSync(`${directory}/bin`)
  const seen = `${directory}/seen`
  const real = spawnSync('sh', ['-c', 'command -v rsync'], { encoding: 'utf8' }).stdout.trim()
  writeFileSync(
    `${directory}/bin/rsync`,
    `#!/bin/sh\n(nice; ionice; echo) > ${seen}\nexec ${real} "$@"\n`,
    { mode: 0o755 },
  )
  const path = process.env['PATH']
  process.env['PATH'] = `${directory}/bin:${path}`
  try {
    await copy()
    const before = readFileSync(seen, 'utf8')
    await copy({ nice: 9, ionice: 'idle' })
    assert.match(readFileSync(seen, 'utf8'), `${Math.min(19, getPriority() + 9)}\nidle`)
    await copy({ ionice: 'low' })
    assert.match(readFileSync(seen, 'utf8'), /best-effort: prio 7/)
    await copy({ nice: 0, ionice: 'normal' })
    assert.is(readFileSync(seen, 'utf8'), before)
  } finally {
    process.env['PATH'] = path
  }
})

rsync('leaves out exactly the paths it is given, whatever their characters', async () => {
  const names = ['a*b', 'a[b]', 'a\\b', 'a\\*b', '[', '?', 'é', 'line\nbreak', '# x', 'end ']
  const decoys = ['aXb', 'ab', 'a\\Xb', 'X', 'a', 'deep/a*b', 'deep/[']
  const { copy, data } = scene(Object.fromEntries([...names, ...decoys].map((name) => [name, '1'])))
  mkdirSync(`${data}/gone*`)
  writeFileSync(`${data}/gone*/file`, '1')
  mkdirSync(`${data}/goneX`)
  const paths = names.map((name) => ({
    path: rawPathFromText(`/data/${name}`),
    isDirectory: false,
  }))
  const leftOutPaths = [...paths, { path: '/data/gone*', isDirectory: true }]
  // The user's rules come after: they cannot take it back.
  const { target } = await copy({ leftOutPaths, exclusions: ['+ gone*/', '+ a[*]b'] })
  assert.equal(tree(`${target}/data`), [...decoys, 'deep', 'goneX'].sort())
})

rsync('a source stays though it is itself such a path', async () => {
  const { copy, root } = scene({ a: '1', b: '1' })
  const source = (path: string, isDirectory: boolean) => {
    return { root: rawPathFromText(root), path, isDirectory }
  }
  const { target, outcome } = await copy({
    sources: [source('/data/a', false), source('/data/b', false)],
    leftOutPaths: [{ path: '/data/b', isDirectory: false }],
  })
  assert.equal(tree(`${target}`), ['data', 'data/a', 'data/b'])
  assert.equal(outcome.missing, [])
})

rsync('into a snapshot: changes what changed, deletes what is gone or excluded now', async () => {
  if (!canRunAsRoot('btrfs loop mount')) return
  const device = loopDevice({ sizeMib: 256, type: 'btrfs' })
  const { copy, data, write } = scene({
    same: '1',
    changed: '1',
    'gone/deep': '1',
    'new-rule.swp': '1',
    turns: '1',
  })
  const first = `${device.path}/first`
  const second = `${device.path}/second`
  spawnSync('btrfs', ['subvolume', 'create', first])
  const base = await copy({ target: first })
  assert.ok(base.item('same')?.copied)
  spawnSync('btrfs', ['subvolume', 'snapshot', first, second])
  const before = tree(first)
  write('changed', '22')
  chmodSync(`${data}/same`, 0o600)
  rmSync(`${data}/gone`, { recursive: true })
  unlinkSync(`${data}/turns`)
  write('turns/into/directory', '1')
  const { items, item } = await copy({ target: second, intoExisting: true, exclusions: ['*.swp'] })
  assert.equal(
    tree(`${second}/data`),
    ['changed', 'same', 'turns', 'turns/into', 'turns/into/directory'].sort(),
  )
  assert.is(readFileSync(`${second}/data/changed`, 'utf8'), '22')
  assert.is(lstatSync(`${second}/data/same`).mode & 0o777, 0o600)
  assert.is(item('same')?.copied, false)
  assert.equal(
    items.filter(({ copied }) => copied).map(({ path }) => path),
    ['data/changed', 'data/turns/into/directory'],
  )
  assert.equal(tree(first), before)
  assert.is(readFileSync(`${first}/data/changed`, 'utf8'), '1')
  device.unmount()
})

rsync('a list of paths: copies and deletes these, and no others', async () => {
  const { copy, data, write } = scene({
    listed: '1',
    unlisted: '1',
    'gone/deep/file': '1',
    'gone-unlisted': '1',
    'kept.swp': '1',
    'cache/known': '1',
    'dir/a': '1',
  })
  const exclusions = ['cache/', '*.swp']
  const { target } = await copy({ exclusions })
  for (const name of ['listed', 'unlisted', 'dir/a']) write(name, '22')
  for (const name of ['gone', 'gone-unlisted']) rmSync(`${data}/${name}`, { recursive: true })
  write('new\nname', '1')
  write('new.swp', '1')
  write('cache/new', '1')
  write('cache/deep/new', '1')
  symlinkSync('nowhere', `${data}/link`)
  const names = [
    ...['listed', 'gone', 'gone/deep/file', 'new\nname', 'new.swp', 'dir', 'link', 'never-there'],
    ...['cache', 'cache/new', 'cache/deep', 'cache/deep/new'],
  ]
  const list = names.map((name) => `data/${name}`)
  const { items, outcome } = await copy({
    target,
    intoExisting: true,
    exclusions,
    filesFrom: [...list, 'elsewhere/file', 'data-not'],
  })
  assert.equal(outcome, { missing: [], vanished: [], targetFull: false })
  assert.equal(
    tree(`${target}/data`),
    ['dir', 'dir/a', 'gone-unlisted', 'link', 'listed', 'new\nname', 'unlisted'].sort(),
  )
  const copied = items.filter(({ copied }) => copied).map(({ path }) => path)
  assert.equal(copied.sort(), ['data/listed', 'data/new\nname'])
  assert.is(readFileSync(`${target}/data/unlisted`, 'utf8'), '1')
  assert.is(readFileSync(`${target}/data/dir/a`, 'utf8'), '1')
})

rsync('a list gives way to a walk where it cannot say everything', async () => {
  const { copy, write } = scene({ 'big/file': '1', small: '1' })
  const { target } = await copy()
  write('small', '22')
  const leftOutPaths = [{ path: '/data/big', isDirectory: true }]
  const call = { target, intoExisting: true, leftOutPaths }
  await copy({ ...call, filesFrom: ['data/big/file', 'data/small'] })
  assert.equal(tree(`${target}/data`), ['small'])
  write('small', '333')
  // What is left out already needs no walk.
  const { items } = await copy({ ...call, filesFrom: ['data/big', 'data/big/file'] })
  assert.equal(items, [])
  const exclusions = Array.from({ length: 3000 }, (_, index) => `é-${index}`)
  await copy({ ...call, exclusions, filesFrom: ['data/small'] })
  assert.is(readFileSync(`${target}/data/small`, 'utf8'), '333')
  write('small', '4444')
  write('é-1', '1')
  const filesFrom = ['data/small', rawPathFromText('data/é-1')]
  await copy({ ...call, exclusions: ['é-1'], filesFrom })
  assert.equal(tree(`${target}/data`), ['small'])
  assert.is(readFileSync(`${target}/data/small`, 'utf8'), '4444')
})

rsync('a list with nothing in it that a walk would reach runs nothing', async () => {
  const { copy } = scene({ 'cache/file': '1' })
  const exclusions = ['cache/']
  const filesFrom = ['data/cache/file', 'other']
  const { items, target } = await copy({ exclusions, filesFrom, intoExisting: true })
  assert.equal(items, [])
  assert.not.ok(existsSync(target))
})

rsync('a list knows a source below an excluded name, and the root as a source', async () => {
  const { copy, root, write } = scene({ 'cache/mine/file': '1', 'cache/other': '1' })
  const exclusions = ['cache/']
  const filesFrom = ['data/cache/mine/file', 'data/cache/other']
  const source = { root: rawPathFromText(root), isDirectory: true }
  const sources = [{ ...source, path: '/data/cache/mine' }]
  const { target } = await copy({ sources, exclusions, filesFrom, intoExisting: true })
  const expected = ['data', 'data/cache', 'data/cache/mine', 'data/cache/mine/file']
  assert.equal(tree(target), expected)
  write('plain', '1')
  const all = await copy({
    sources: [{ ...source, path: '/' }],
    exclusions,
    filesFrom: [...filesFrom, 'data/plain'],
    intoExisting: true,
  })
  assert.equal(tree(all.target), ['data', 'data/plain'])
})

const TEXT = `rsync  version 3.2.7  protocol version 31
Copyright (C) 1996-2022 by Andrew Tridgell, Wayne Davison, and others.
Web site: https://rsync.samba.org/
Capabilities:
    64-bit files, 64-bit inums, 64-bit timestamps, 64-bit long ints,
    socketpairs, symlinks, symtimes, hardlinks, hardlink-specials,
    hardlink-symlinks, IPv6, atimes, batchfiles, inplace, append, ACLs,
    xattrs, optional secluded-args, iconv, prealloc, stop-at, no crtimes
Optimizations:
    SIMD-roll, no asm-roll, openssl-crypto, no asm-MD5
`

const OPENRSYNC = 'openrsync: protocol version 29\nrsync version 2.6.9 compatible\n'

rsync('reads the version and what it can do, from text and from JSON', () => {
  const capabilities = { hardLinks: true, xattrs: true, acls: true, crtimes: false, symtimes: true }
  assert.equal(parseRsyncVersion(TEXT), { kind: 'rsync', version: '3.2.7', capabilities })
  const json = {
    program: 'rsync',
    version: '3.4.1',
    capabilities: { symtimes: true, hardlinks: true, ACLs: true, xattrs: true, crtimes: false },
  }
  const parsed = parseRsyncVersion(JSON.stringify(json))
  assert.equal(parsed, { kind: 'rsync', version: '3.4.1', capabilities })
  const none = { hardLinks: false, xattrs: false, acls: false, crtimes: false, symtimes: false }
  assert.equal(parseRsyncVersion(OPENRSYNC), {
    kind: 'openrsync',
    version: '2.6.9',
    capabilities: none,
  })
  for (const strange of ['', '{', '{}', 'busybox', '{"program":"x","version":null}']) {
    assert.is(parseRsyncVersion(strange).kind, 'unknown', strange)
  }
})

rsync('says the same of the rsync that is installed as its own text does', async () => {
  const { stdout } = spawnSync('rsync', ['--version'], { encoding: 'utf8' })
  assert.equal(await rsyncVersion(), parseRsyncVersion(stdout))
  assert.is((await checkRsync()).kind, 'rsync')
})

rsync('refuses openrsync, an old rsync, and one without what we need, with the fix', async () => {
  const { directory } = scene({})
  mkdirSync(`${directory}/bin`)
  const path = process.env['PATH']
  const cases: readonly (readonly [string, RegExp | undefined])[] = [
    [OPENRSYNC, /openrsync/],
    [TEXT.replace('3.2.7', '3.1.3'), /3\.1\.3/],
    [TEXT.replace('3.2.7', '2.6.9'), /2\.6\.9/],
    [TEXT.replace(' xattrs', ' no xattrs'), /built without/],
    ['something else\n', /does not say/],
    [TEXT.replace('3.2.7', '3.2.0pre1'), undefined],
    [TEXT.replace('3.2.7', '4.0.0'), undefined],
    [TEXT.replace('3.2.7', 'v3.10.1'), undefined],
  ]
  process.env['PATH'] = `${directory}/bin:${path}`
  try {
    for (const [printed, message] of cases) {
      const program = `${directory}/bin/rsync`
      writeFileSync(program, `#!/bin/sh\ncat <<'EOF'\n${printed}EOF\n`, { mode: 0o755 })
      const result = await checkRsync().catch((error: unknown) => error)
      if (message === undefined) {
        assert.not.instance(result, BackupError)
        continue
      }
      assert.instance(result, BackupError)
      assert.is((result as BackupError).code, 'PROGRAM_ABSENT')
      assert.match((result as BackupError).message, message)
      assert.match((result as BackupError).hint ?? '', /brew install rsync.*apt install rsync/)
    }
  } finally {
    process.env['PATH'] = path
  }
})

rsync.run()
