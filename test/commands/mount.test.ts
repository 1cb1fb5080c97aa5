// `backup mount`, as the kernel, stock programs and HTTP clients see it.

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import {
  closeSync,
  existsSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import { rawPathToBytes } from '../../lib/model/raw-path.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomFrom } from '../helpers/random.ts'
import { MAIN } from '../helpers/run-cli.ts'
import {
  assertSameTree,
  exportStamps,
  jsonLines,
  makeScenario,
  type Scenario,
  script,
  setDirectory,
} from '../helpers/scenario.ts'

const mount = suite('backup mount')
const random = randomFrom('mount')
const isRoot = canRunAsRoot('backup mount through FUSE')
const asRoot = isRoot ? mount : mount.skip

let scenario: Scenario
/** Where FUSE mounts. */
let point: string
const children: ChildProcess[] = []

mount.before(async () => {
  scenario = await makeScenario()
  point = `${scenario.directory}/mount point`
  mkdirSync(point)
  await fill()
})

// Whatever a test left: nothing may stay mounted, nor run on.
const cleanUp = (): void => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
  if (isMounted()) spawnSync('umount', ['-l', point])
}
mount.after.each(cleanUp)

/** Two generations; the first lacks one file. */
async function fill(): Promise<void> {
  const { source } = scenario
  mkdirSync(`${source}/a/b`, { recursive: true })
  mkdirSync(`${source}/many`)
  for (let i = 0; i < 1200; i++) writeFileSync(`${source}/many/${i}`, '')
  writeFileSync(`${source}/a/file`, 'content')
  linkSync(`${source}/a/file`, `${source}/a/link`)
  symlinkSync('../a/file', `${source}/a/symlink`)
  symlinkSync('/etc/passwd', `${source}/outside`)
  symlinkSync('.', `${source}/circle`)
  writeFileSync(rawPathToBytes(`${source}/\xff\xfe&<>"`), 'no text')
  writeFileSync(`${source}/new\nline`, 'two lines')
  writeFileSync(`${source}/big`, random.bytes(12 * 2 ** 20))
  writeFileSync(`${source}/z-last`, 'whole')
  writeFileSync(`${source}/sparse`, 'begin')
  truncateSync(`${source}/sparse`, 2 ** 21)
  if (isRoot) {
    script(
      `cd "$1"; mkfifo -m 640 fifo; mknod null c 1 3; chown 12:34 a/b; chmod 4711 a/file
       setfattr -n user.note -v kept a/file; setfacl -m u:1234:rw a/file
       touch -d '2001-02-03 04:05:06.123456789' a/file; touch -d '1950-01-01' z-last`,
      source,
    )
  }
  await scenario.generation()
  writeFileSync(`${source}/later`, 'new')
  await scenario.generation()
}

interface Running {
  readonly child: ChildProcess
  readonly output: () => string
  /** The exit status, when it has ended. */
  readonly ended: Promise<number | null>
}

async function start(...words: string[]): Promise<Running> {
  const child = spawn(process.execPath, [MAIN, 'mount', ...words], {
    env: { PATH: process.env['PATH'] ?? '', ...scenario.environment },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  children.push(child)
  let text = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream!.setEncoding('utf8').on('data', (part: string) => (text += part))
  }
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve))
  const running = { child, output: () => text, ended }
  await until(() => /Ctrl-C/.test(text) || child.exitCode !== null)
  assert.is(child.exitCode, null, text)
  return running
}

async function until(holds: () => boolean): Promise<void> {
  for (let moments = 0; !holds(); moments++) {
    assert.ok(moments < 1000, 'it did not happen in time')
    await sleep(20)
  }
}

function isMounted(): boolean {
  return readFileSync('/proc/mounts', 'utf8').includes(point.replace(' ', '\\040'))
}

/** Runs a program away from this process, which must not wait for what it may have to end. */
async function run(program: string, ...words: string[]) {
  const child = spawn(program, words, { stdio: ['ignore', 'pipe', 'pipe'] })
  let [stdout, stderr] = ['', '']
  child.stdout.setEncoding('latin1').on('data', (part: string) => (stdout += part))
  child.stderr.setEncoding('latin1').on('data', (part: string) => (stderr += part))
  const status = await new Promise<number | null>((resolve) => child.once('close', resolve))
  return { status, stdout, stderr }
}

async function stop({ child, ended, output }: Running): Promise<void> {
  child.kill('SIGTERM')
  assert.is(await ended, 130, output())
}

asRoot('through FUSE both a target and staging show exactly what was collected', async () => {
  for (const words of [['--source', 'external'], []]) {
    const running = await start(point, ...words)
    const shown = `${point}/data/latest${scenario.source}`
    script('rsync -aHAXSnic --delete "$1/" "$2/" | diff /dev/null -', scenario.source, shown)
    const names = 'cd "$1"; find . -mindepth 1 -printf "%P %y %T@ %m %U:%G %s %l\\0" | sort -z'
    const list = `${names.replace('%s %l', '%l')}; find . -type f -printf "%P %s\\0" | sort -z`
    assert.is(script(list, shown), script(list, scenario.source))
    const xattrs = 'cd "$1"; getfattr -R -P -h -d -m - -e hex . | sort; getfacl -R -P -n . | sort'
    assert.is(script(xattrs, shown), script(xattrs, scenario.source))
    const [inode, other] = script('stat -c %i "$1/a/file" "$1/a/link"', shown).split('\n')
    assert.is(inode, other, 'two names of one file')
    const [first, second] = readdirSync(`${point}/data`)
    assert.is(existsSync(`${point}/data/${first}${scenario.source}/later`), false)
    assert.is(readFileSync(`${point}/data/${second}${scenario.source}/later`, 'utf8'), 'new')
    const marks = script('getfattr -d "$1"', `${point}/data/${first}`)
    assert.match(marks, new RegExp(`user.backup.stamp="${first}"`))
    await stop(running)
    assert.is(isMounted(), false)
    assert.equal(readdirSync(point), [])
  }
})

asRoot('what is copied out of it with stock tools is the source again', async () => {
  const running = await start(point, '--source', 'external')
  const copy = `${scenario.directory}/copy`
  const copying = `cp -a --sparse=always "$1" "$2"; rm "$2/a/link"
    ln "$2/a/file" "$2/a/link"; touch -r "$1/a" "$2/a"`
  script(copying, `${point}/data/latest${scenario.source}`, copy)
  assertSameTree(copy, scenario.source)
  await stop(running)
})

asRoot('nothing in it can be changed', async () => {
  const running = await start(point, '--source', 'external')
  const file = `${point}/data/latest${scenario.source}/a/file`
  const tries = [
    ['touch', `${point}/new`],
    ['mkdir', `${point}/data/new`],
    ['rm', '-f', file],
    ['rmdir', `${point}/data`],
    ['chmod', '600', file],
    ['chown', '1', file],
    ['mv', file, `${file}2`],
    ['ln', file, `${file}2`],
    ['truncate', '-s', '0', file],
    ['setfattr', '-n', 'user.x', '-v', 'y', file],
    ['mkfifo', `${point}/fifo`],
  ]
  for (const [program, ...words] of tries) {
    const { status, stderr } = await run(program!, ...words)
    assert.is.not(status, 0, program)
    assert.match(stderr, /Read-only file system/, program)
  }
  const { status } = await run('su', '-s', '/bin/sh', 'nobody', '-c', `cat '${file}'`)
  assert.is.not(status, 0, 'who may not read a file may not read its copy')
  await stop(running)
})

asRoot('whoever stands in it or is killed does not keep the next mount from working', async () => {
  const first = await start(point, '--set', 'data')
  const standing = spawn('sleep', ['60'], { cwd: `${point}/data`, stdio: 'ignore' })
  children.push(standing)
  await stop(first)
  assert.is(isMounted(), false)
  standing.kill()
  const killed = await start(point)
  // What the kernel remembers of the directory now outlives whom it asked.
  statSync(point)
  killed.child.kill('SIGKILL')
  await killed.ended
  assert.match((await run('ls', point)).stderr, /not connected/)
  const running = await start(point)
  assert.equal((await run('ls', point)).stdout, 'data\n')
  const twice = await scenario.run('mount', point)
  assert.is(twice.status, 1)
  assert.match(twice.stderr, /is not empty\n.*nothing was mounted/)
  assert.is((await run('umount', point)).status, 0)
  assert.is(await running.ended, 0, 'somebody else may unmount it, too')
  assert.is(isMounted(), false)
})

/** Flips a bit in the middle of the largest bundle: amid the large file. */
async function whileDamaged(action: () => Promise<void>): Promise<void> {
  const directory = `${setDirectory(scenario)}/${exportStamps(scenario)[0]}`
  const names = readdirSync(directory).filter((name) => name.startsWith('data-'))
  const size = (name: string): number => statSync(`${directory}/${name}`).size
  const bundle = `${directory}/${names.sort((a, b) => size(b) - size(a))[0]}`
  const bytes = readFileSync(bundle)
  const middle = Math.floor(bytes.length / 2)
  const write = (byte: number): void => {
    const fd = openSync(bundle, 'r+')
    writeSync(fd, Buffer.from([byte]), 0, 1, middle)
    closeSync(fd)
  }
  write(bytes[middle]! ^ 1)
  try {
    await action()
  } finally {
    write(bytes[middle]!)
  }
}

asRoot(
  'a damaged file is an input/output error and a warning, and the others are whole',
  async () => {
    await whileDamaged(async () => {
      const running = await start(point, '--source', 'external')
      const shown = `${point}/data/latest${scenario.source}`
      const { status, stderr } = await run('cmp', `${shown}/big`, `${scenario.source}/big`)
      assert.is(status, 2)
      assert.match(stderr, /Input\/output error/)
      for (const name of ['a/file', 'z-last', 'sparse']) {
        assert.is((await run('cmp', `${shown}/${name}`, `${scenario.source}/${name}`)).status, 0)
      }
      await stop(running)
      assert.match(running.output(), /warning: data\/\S+\/big: .*; nothing of it is shown/)
      assert.is(running.output().match(/warning/g)!.length, 1, running.output())
    })
  },
)

asRoot('a user mounts by fusermount3 and sees everything, alone', async () => {
  const { directory, home } = scenario
  const preparation = `chmod a+x "$1" "$(dirname "$1")" "$(dirname "$(dirname "$1")")" 2>/dev/null || true
    cp -a "$2" "$1/user"; mkdir "$1/user/point"; sed -i "s|$2|$1/user|g" "$1/user/.config/backup/"*.yaml
    chown -R nobody "$1/user" "$1/drive"`
  script(preparation, directory, home)
  const own = `${directory}/user`
  const words = ['mount', `${own}/point`, '--source', 'external']
  const child = spawn(
    'setpriv',
    ['--reuid', '65534', '--clear-groups', process.execPath, MAIN, ...words],
    { env: { PATH: process.env['PATH'] ?? '', HOME: own }, stdio: ['ignore', 'pipe', 'pipe'] },
  )
  children.push(child)
  let text = ''
  child.stderr.setEncoding('utf8').on('data', (part: string) => (text += part))
  const ended = new Promise((resolve) => child.once('close', resolve))
  await until(() => /Ctrl-C/.test(text) || child.exitCode !== null)
  const file = `${own}/point/data/latest${scenario.source}/a/file`
  const seen = await run('setpriv', '--reuid', '65534', '--clear-groups', 'cat', file)
  assert.is(seen.stdout, 'content', text + seen.stderr)
  assert.is.not((await run('cat', file)).status, 0, 'not even root')
  child.kill('SIGTERM')
  await ended
  assert.is(readFileSync('/proc/mounts', 'utf8').includes(`${own}/point`), false)
})

interface Response {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: string
  /** Whether it came to its end. */
  readonly isWhole: boolean
}

async function ask(
  url: string,
  of: { method?: string; headers?: Record<string, string>; path?: string } = {},
): Promise<Response> {
  const { hostname, port, pathname } = new URL(url)
  return await new Promise((resolve, reject) => {
    const path = of.path ?? pathname
    const { method = 'GET', headers = {} } = of
    request({ hostname, port, path, method, headers, agent: false }, (response) => {
      const parts: Buffer[] = []
      const { statusCode: status = 0, headers: given } = response
      const end = (isWhole: boolean) => () => {
        resolve({ status, headers: given, body: Buffer.concat(parts).toString('latin1'), isWhole })
      }
      response.on('data', (part: Buffer) => parts.push(part))
      response.on('end', end(true)).on('error', end(false))
    })
      .on('error', reject)
      .end()
  })
}

async function startWebdav(...words: string[]): Promise<Running & { readonly url: string }> {
  const running = await start('--webdav', ...words)
  const [url = ''] = /http:\S+\//.exec(running.output()) ?? []
  assert.match(url, /^http:\/\/127\.0\.0\.1:\d+\/[0-9a-f]{32}\/$/)
  return { ...running, url }
}

mount('over WebDAV files, ranges and lists are what was collected', async () => {
  for (const words of [['--source', 'external'], []]) {
    const running = await startWebdav(...words)
    const shown = `${running.url}data/latest${scenario.source}`
    const big = readFileSync(`${scenario.source}/big`).toString('latin1')
    const whole = await ask(`${shown}/big`)
    assert.ok(whole.body === big && whole.status === 200)
    const etag = String(whole.headers['etag'])
    const range = async (value: string, headers = {}) =>
      await ask(`${shown}/big`, { headers: { range: value, ...headers } })
    const middle = await range('bytes=5000000-8000000')
    assert.ok(middle.status === 206 && middle.body === big.slice(5_000_000, 8_000_001))
    assert.is((await range('bytes=-5')).body, big.slice(-5))
    assert.is((await range('bytes=0-0')).headers['content-range'], `bytes 0-0/${big.length}`)
    assert.is((await range(`bytes=${big.length - 1}-`)).body, big.slice(-1))
    assert.is((await range(`bytes=${big.length}-`)).status, 416)
    assert.is((await range('bytes=0-0', { 'if-range': '"another"' })).status, 200)
    assert.is((await ask(`${shown}/big`, { headers: { 'if-none-match': etag } })).status, 304)
    const head = await ask(`${shown}/big`, { method: 'HEAD' })
    assert.equal(
      [head.status, head.headers['content-length'], head.body],
      [200, `${big.length}`, ''],
    )
    const sparse = readFileSync(`${scenario.source}/sparse`, 'latin1')
    assert.ok((await ask(`${shown}/sparse`)).body === sparse)
    const list = await ask(`${shown}/`, { method: 'PROPFIND', headers: { depth: '1' } })
    assert.is(list.status, 207)
    const hrefs = [...list.body.matchAll(/<D:href>([^<]*)<\/D:href>/g)].map((match) => match[1]!)
    const names = hrefs.slice(1).map((href) => href.replace(/\/$/, '').replace(/.*\//, ''))
    const expected = ['%FF%FE%26%3C%3E%22', 'a', 'big', 'later', 'many', 'new%0Aline', 'sparse']
    assert.equal(names.sort(), [...expected, 'z-last'], 'no link, device or FIFO')
    const odd = await ask(running.url, { path: hrefs.find((href) => href.includes('%FF'))! })
    assert.is(odd.body, 'no text')
    assert.is((await ask(`${shown}/a/symlink`)).body, 'content', 'a link within is the file')
    for (const name of ['outside', 'circle', 'circle/big', 'a/none', 'a/file/x']) {
      assert.is((await ask(`${shown}/${name}`)).status, 404, name)
    }
    const page = await ask(`${shown}/`)
    assert.match(page.body, /&#60;&#62;&#34;/)
    assert.is(/<script|onerror/.test(page.body), false)
    await stop(running)
  }
})

mount('WebDAV refuses changes, strangers, and what is not asked properly', async () => {
  const running = await startWebdav()
  const { url } = running
  const status = async (of: Parameters<typeof ask>[1]) => (await ask(url, of)).status
  const changes = ['PUT', 'DELETE', 'MKCOL', 'MOVE', 'COPY', 'PROPPATCH', 'LOCK', 'POST', 'PATCH']
  for (const method of changes) assert.is(await status({ method }), 405, method)
  for (const host of ['evil.example', '127.0.0.1.evil.example:80', 'localhost@evil']) {
    assert.is(await status({ headers: { host } }), 403, host)
  }
  for (const host of ['localhost:1', '[::1]:1', '127.0.0.1']) {
    assert.is(await status({ headers: { host } }), 200, host)
  }
  const { pathname } = new URL(url)
  assert.is(await status({ path: '/' }), 404)
  assert.is(await status({ path: `/${'0'.repeat(32)}/` }), 404)
  const paths = ['../etc', '%2e%2e/etc', 'data/%2e%2e', 'a%00b', 'data%2flatest', '%zz', 'data//x']
  for (const path of paths) assert.is(await status({ path: `${pathname}${path}` }), 400, path)
  const propfind = { method: 'PROPFIND' }
  assert.is(await status(propfind), 403, 'infinity is what no depth means')
  assert.is(await status({ ...propfind, headers: { depth: 'infinity' } }), 403)
  assert.is(await status({ ...propfind, headers: { depth: '0' } }), 207)
  const options = await ask(url, { method: 'OPTIONS' })
  assert.is(options.headers['dav'], '1')
  await stop(running)
  assert.is(await ask(url).catch(() => 'gone'), 'gone')
})

mount('over WebDAV damage is a 500 or a transfer that breaks off, and a warning', async () => {
  await whileDamaged(async () => {
    const running = await startWebdav('--source', 'external')
    const shown = `${running.url}data/latest${scenario.source}`
    const big = readFileSync(`${scenario.source}/big`).toString('latin1')
    const { status, isWhole, body } = await ask(`${shown}/big`)
    assert.equal([status, isWhole], [200, false])
    assert.ok(body.length < big.length && big.startsWith(body), 'what came is right')
    const headers = { range: `bytes=${body.length + 2 ** 20}-` }
    const later = await ask(`${shown}/big`, { headers })
    assert.ok(later.status === 500 || big.endsWith(later.body) || !later.isWhole)
    assert.is((await ask(`${shown}/a/file`)).body, 'content')
    await stop(running)
    assert.match(running.output(), /warning: data\/\S+\/big: /)
  })
})

mount(
  'a dry run and --json say what there is; words that do not go together are refused',
  async () => {
    const stamps = exportStamps(scenario)
    const dry = await scenario.run('mount', '--webdav', '--source', 'external', '--dry-run')
    assert.is(dry.stdout, stamps.map((one) => `would show data/${one}\n`).join(''))
    const json = await scenario.run('mount', point, '--dry-run', '--json')
    const [result] = jsonLines(json, 'result')
    assert.equal(
      result!['generations'].map((one: { stamp: string }) => one.stamp),
      stamps,
    )
    const usage = async (...words: string[]) => (await scenario.run('mount', ...words)).status
    assert.is(await usage(), 2)
    assert.is(await usage(point, '--webdav'), 2)
    assert.is(await usage(point, '--port', '80'), 2)
    assert.is(await usage('--webdav', '--port', '70000'), 2)
    assert.is(await usage(point, '--machine', 'other'), 2)
    assert.is(await usage(`${scenario.staging}/x`), 2)
    assert.is(await usage(`${scenario.directory}/none`), 1)
  },
)

mount.run()
