// recover.sh: an incremental export comes back whole with stock programs only, whatever happened
// between exports, and damage costs what it has to and is named. The examples of
// docs/restore-without-us.md run here too.

import { Buffer } from 'node:buffer'
import { createHash, randomBytes } from 'node:crypto'
import {
  appendFileSync,
  chmodSync,
  chownSync,
  closeSync,
  copyFileSync,
  cpSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from './helpers/assert.ts'
import { type Outcome, runCli } from './helpers/run-cli.ts'
import { onlyPrograms, runStock, stock } from './helpers/stock.ts'
import { tempDirectory } from './helpers/temp-dir.ts'

const recover = suite('recover.sh')
const isRoot = process.getuid?.() === 0
const root = tempDirectory()
// Spaces, because the ways of a script with them are well known.
const home = `${root}/a home`
const other = `${root}/other`
const repository = `${root}/a drive/backups`
const identity = `${root}/the keys/identity.txt`
const config = `${root}/config.yaml`
const script = fileURLToPath(new URL('../../config/recover.sh', import.meta.url))
const document = fileURLToPath(new URL('../../docs/restore-without-us.md', import.meta.url))
const environment = { HOME: root, LANG: 'C.UTF-8' }
const MIB = 1024 * 1024

/** What recover.sh says it needs, and the small change that every system has. */
const PROGRAMS = [
  'age',
  'zstd',
  'jq',
  'awk',
  'dd',
  'sha256sum',
  'tar',
  'sh',
  'b2sum',
  'cat',
  'comm',
  'cp',
  'cut',
  'df',
  'dirname',
  'grep',
  'head',
  'id',
  'ls',
  'mkdir',
  'mktemp',
  'mv',
  'rm',
  'rmdir',
  'sed',
  'sort',
  'stty',
  'tail',
  'tr',
  'wc',
  'xargs',
  'dash',
]
const stamps: string[] = []
let recoveries = 0

async function backup(...words: readonly string[]): Promise<void> {
  const { status, stderr } = await runCli(words, { environment })
  assert.is(status, 0, `backup ${words.join(' ')}: ${stderr}`)
}

async function collectAndExport(): Promise<void> {
  await backup('collect', '--config', config, '--quiet')
  await backup('external', '--config', config, '--quiet')
  const newest = readFileSync(`${repository}/machines/here/home/latest`, 'utf8').trim()
  stamps.push(newest)
  copyTree(home, `${root}/${newest}`)
}

interface Recovery extends Outcome {
  readonly directory: string
  /** Where home is in it. */
  readonly home: string
}

/** Runs the repository's script with dash; nothing of ours takes part. */
function recovery(
  words: readonly string[],
  options: {
    readonly paths?: readonly string[]
    readonly from?: string
    readonly path?: string
    readonly input?: string
    readonly identity?: string
  } = {},
): Recovery {
  const { paths = [], from = repository, path, input = '' } = options
  const directory = `${root}/recovered ${++recoveries}`
  const outcome = runStock(
    'dash',
    [
      `${from}/recover.sh`,
      '-i',
      options.identity ?? identity,
      '-o',
      directory,
      ...words,
      '--',
      ...paths,
    ],
    { input, environment: { ...environment, ...(path === undefined ? {} : { PATH: path }) } },
  )
  const scratch = readdirSync(root).filter((name) => name.startsWith('recover.'))
  assert.equal(scratch, [], 'scratch is gone')
  return { ...outcome, directory, home: `${directory}${home}` }
}

function copyTree(from: string, to: string): void {
  stock('rsync', ['-aHAXS', `${from}/`, `${to}/`])
}

/** What rsync would change in the second tree to make it the first. */
function differences(expected: string, actual: string, flags = '-aHAXSnic'): string {
  return stock('rsync', [flags, '--delete', '--modify-window=-1', `${expected}/`, `${actual}/`])
}

/** Raw paths below a directory, in latin1, each with its modification time in nanoseconds. */
function times(directory: string): Map<string, bigint> {
  const found = new Map<string, bigint>()
  const walk = (path: string): void => {
    const raw = Buffer.from(`${directory}/${path}`, 'latin1')
    const { mtimeNs } = lstatSync(raw, { bigint: true })
    found.set(path, mtimeNs)
    if (!lstatSync(raw).isDirectory()) return
    for (const name of readdirSync(raw, { encoding: 'latin1' })) {
      walk(path === '' ? name : `${path}/${name}`)
    }
  }
  walk('')
  return found
}

/** The repository, copied to be damaged. */
function damagedCopy(): string {
  const copy = `${root}/damaged ${++recoveries}`
  cpSync(repository, copy, { recursive: true })
  return copy
}

function flipByte(path: string, offset: number): void {
  const bytes = readFileSync(path)
  const at = offset < 0 ? bytes.length + offset : offset
  bytes[at] = bytes[at]! ^ 1
  writeFileSync(path, bytes)
}

/** The first data bundle of a stamp that the last export still needs. */
function neededBundle(at: string, stamp: string): string {
  const sums = readFileSync(`${at}/machines/here/home/${stamps[2]}/verification.sha256`, 'utf8')
  const name = new RegExp(`^\\S+ {2}\\.\\./(${stamp}/data-.*)$`, 'm').exec(sums)?.[1]
  assert.ok(name !== undefined, `the last export needs nothing of ${stamp}`)
  return `${at}/machines/here/home/${name}`
}

/** Every file under a directory with the digest of its content. */
function fingerprint(directory: string): string {
  const lines = readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .sort()
    .map((path) => {
      const whole = `${directory}/${path}`
      if (!statSync(whole).isFile()) return path
      return `${path} ${createHash('sha256').update(readFileSync(whole)).digest('hex')}`
    })
  return lines.join('\n')
}

function makeHome(): void {
  const big = randomBytes(9 * MIB)
  for (const name of ['docs', 'docs/letters', 'empty', 'odd', 'links', 'acl', 'many']) {
    mkdirSync(`${home}/${name}`, { recursive: true })
  }
  writeFileSync(`${home}/big.img`, big)
  writeFileSync(`${home}/docs/plan.txt`, 'the plan\n'.repeat(1000))
  writeFileSync(`${home}/docs/letters/one.txt`, 'letter one')
  writeFileSync(`${home}/docs/nothing`, '')
  writeFileSync(`${home}/shared.bin`, readFileSync(`${other}/shared.bin`))
  const odd = ['new\nline', 'quo"te\'s $(x) `y`', '-rf', 'back\\slash', ' blank ', 'é']
  for (const name of [...odd, 'x'.repeat(255)]) {
    writeFileSync(`${home}/odd/${name}`, `content of ${name}`)
  }
  const latin = Buffer.concat([Buffer.from(`${home}/odd/caf`), Buffer.from([0xe9])])
  writeFileSync(latin, 'not UTF-8')
  symlinkSync(latin, Buffer.concat([Buffer.from(`${home}/links/to`), Buffer.from([0xff])]))
  symlinkSync('../docs/plan.txt', `${home}/links/plan`)
  symlinkSync('nowhere', `${home}/links/dangling`)
  writeFileSync(`${home}/links/a-first`, randomBytes(5000))
  linkSync(`${home}/links/a-first`, `${home}/links/b-second`)
  linkSync(`${home}/links/a-first`, `${home}/docs/third`)
  // It shares the fate of big.img, whichever bundle is damaged.
  linkSync(`${home}/big.img`, `${home}/links/large`)
  const sparse = openSync(`${home}/sparse.img`, 'w')
  writeSync(sparse, randomBytes(8192), 0, 8192, 3 * MIB)
  writeSync(sparse, 'end', 40 * MIB)
  closeSync(sparse)
  for (let n = 0; n < 300; n++) writeFileSync(`${home}/many/${n}`, randomBytes(n))
  stock('mkfifo', [`${home}/pipe`])
  chmodSync(`${home}/docs/plan.txt`, 0o4750)
  chmodSync(`${home}/docs/letters`, 0o2700)
  if (process.platform === 'linux') {
    stock('setfattr', ['-n', 'user.origin', '-v', '0x00ff0a3d', `${home}/docs/plan.txt`])
    stock('setfattr', ['-n', 'user.a=b%c', '-v', 'odd name', `${home}/docs/letters`])
    stock('setfacl', ['-m', 'u:12345:r-x', `${home}/docs/letters/one.txt`])
    stock('setfacl', ['-d', '-m', 'g:23456:rwx', `${home}/acl`])
  }
  stock('touch', ['-d', '1965-03-01T00:00:00.123456789Z', `${home}/odd/-rf`])
  if (isRoot) chownSync(`${home}/docs/letters/one.txt`, 300000, 300001)
}

function firstChanges(): void {
  renameSync(`${home}/docs/letters`, `${home}/docs/renamed letters`)
  chmodSync(`${home}/docs/plan.txt`, 0o600)
  writeFileSync(`${home}/second.bin`, randomBytes(1_500_000))
  rmSync(`${home}/docs/third`)
  const big = readFileSync(`${home}/big.img`)
  big.fill(1, 5 * MIB, 5 * MIB + 8)
  writeFileSync(
    `${home}/big.img`,
    Buffer.concat([big.subarray(0, 3 * MIB), Buffer.from('inserted'), big.subarray(3 * MIB)]),
  )
  if (process.platform === 'linux') {
    stock('setfattr', ['-n', 'user.later', '-v', 'x', `${home}/odd/back\\slash`])
  }
}

function secondChanges(): void {
  rmSync(`${home}/links/a-first`)
  renameSync(`${home}/many/200`, `${home}/empty/two hundred`)
  rmSync(`${home}/many/100`)
  appendFileSync(`${home}/big.img`, randomBytes(1000))
  writeFileSync(`${home}/new.txt`, 'new')
  mkdirSync(`${home}/.pieces`)
  writeFileSync(`${home}/.pieces/mine`, 'a name like one of ours')
  rmSync(`${home}/links/dangling`)
  symlinkSync('somewhere else', `${home}/links/dangling`)
  if (process.platform === 'linux') stock('setfacl', ['-m', 'u:54321:rw-', `${home}/many/5`])
}

recover('has a repository of three incremental exports to work on', async () => {
  for (const directory of [other, `${root}/the keys`, repository]) {
    mkdirSync(directory, { recursive: true })
  }
  writeFileSync(`${other}/shared.bin`, randomBytes(700_000))
  makeHome()
  await backup(
    'init',
    '--config',
    config,
    '--machine',
    'here',
    '--staging',
    `${root}/staging`,
    '--source',
    home,
    '--target',
    repository,
    '--identity',
    identity,
    '--no-passphrase',
    '--quiet',
  )
  // The set `other` comes first, so that content of `home` lies in its bundles.
  writeFileSync(
    config,
    readFileSync(config, 'utf8')
      .replace('backup_sets:\n', `$&  - name: other\n    sources: [${JSON.stringify(other)}]\n`)
      .replace('- name: data', '- name: home')
      .replace('    kind: directory\n', '    kind: directory\n    bundle_size: 2 MiB\n'),
  )
  await collectAndExport()
  firstChanges()
  await collectAndExport()
  secondChanges()
  await collectAndExport()
})

recover('rebuilds the last of three incremental exports, to the last bit', () => {
  const before = fingerprint(repository)
  const { status, stderr, home: recovered } = recovery(['-s', 'home'])
  assert.is(status, 0, stderr)
  for (const stamp of stamps.slice(0, 2)) neededBundle(repository, stamp)
  assert.match(stderr, 'unpacking other/', 'content of another set takes part')
  assert.is(differences(home, recovered), '')
  assert.equal(times(recovered), times(home))
  assert.ok(lstatSync(`${recovered}/sparse.img`).blocks * 512 < MIB, 'holes are holes')
  assert.is(lstatSync(`${recovered}/links/b-second`).nlink, 1)
  assert.is(fingerprint(repository), before, 'nothing in the repository changes')
})

recover('rebuilds an earlier stamp as it was', () => {
  for (const stamp of stamps.slice(0, 2)) {
    const { status, stderr, home: recovered } = recovery(['-s', 'home', '-t', stamp])
    assert.is(status, 0, stderr)
    assert.is(differences(`${root}/${stamp}`, recovered), '')
    assert.equal(times(recovered), times(`${root}/${stamp}`))
  }
})

recover('works with bsdtar, but for what bsdtar cannot', () => {
  const programs = [...PROGRAMS.filter((name) => name !== 'tar'), 'bsdtar']
  const bin = onlyPrograms(`${root}/bin-bsdtar`, programs)
  const { status, stderr, home: recovered } = recovery(['-s', 'home', '-k', 'none'], { path: bin })
  assert.is(status, 0, stderr)
  // bsdtar 3.6 misreads times before 1970, and xattrs with `=` in their name.
  const left = differences(home, recovered, '-aHASnic')
    .split('\n')
    .filter((line) => line !== '')
  assert.equal(
    left.filter((line) => !line.endsWith(' odd/-rf')),
    [],
  )
})

recover('restores only the paths that are given, with what their links need', () => {
  const inside = home.slice(1)
  const paths = ['links/b-second', 'docs/letters/', 'odd/new\nline'].map(
    (path) => `/${inside}/${path}`,
  )
  const words = ['-s', 'home', '-t', stamps[0]!]
  const { status, stderr, home: recovered } = recovery(words, { paths })
  assert.is(status, 0, stderr)
  const found = [...times(recovered).keys()].sort()
  assert.equal(found, [
    '',
    'docs',
    'docs/letters',
    'docs/letters/one.txt',
    'docs/third',
    'links',
    'links/b-second',
    'odd',
    'odd/new\nline',
  ])
  const at = (path: string): Buffer => readFileSync(`${recovered}/${path}`)
  assert.equal(at('links/b-second'), readFileSync(`${home}/links/b-second`))
  assert.is(lstatSync(`${recovered}/docs/letters`).mode & 0o7777, 0o2700)

  const absent = recovery(['-s', 'home'], { paths: [`${inside}/docs`, `${inside}/do`] })
  assert.is(absent.status, 2)
  assert.match(absent.stderr, `not in this export: ${inside}/do`)
  assert.not(existsSync(absent.directory))
})

recover('lists machines, sets and stamps without an identity', () => {
  const { status, stdout } = runStock('dash', [`${repository}/recover.sh`, '-l'])
  assert.is(status, 0)
  const lines = stdout.trim().split('\n')
  const ofHome = lines.filter((line) => line.startsWith('here home '))
  assert.equal(
    ofHome,
    stamps.map((stamp) => `here home ${stamp}`),
  )
  assert.ok(lines.every((line) => /^here (home|other) \S+$/.test(line)))
})

function isBelow(path: string, directory: string): boolean {
  return directory === '' || path.startsWith(`${directory}/`)
}

recover('names what is lost with a damaged bundle, and restores everything else', () => {
  const copy = damagedCopy()
  const bundle = neededBundle(copy, stamps[0]!)
  flipByte(bundle, statSync(bundle).size / 2)
  for (const words of [
    ['-s', 'home'],
    ['-s', 'home', '-k', 'none'],
  ]) {
    const { status, stderr, directory, home: recovered } = recovery(words, { from: copy })
    assert.is(status, 13, stderr)
    assert.match(stderr, bundle)
    const missing = listedMissing(directory)
    assert.ok(missing.length > 0)
    const there = times(recovered)
    const expected = times(home)
    for (const path of missing) {
      const lost = path.slice(home.length)
      // A lost directory is made again by tar where something below it is there.
      const isImplied = [...there.keys()].some((one) => one !== lost && isBelow(one, lost))
      if (!isImplied) expected.delete(lost)
    }
    assert.equal([...there.keys()].sort(), [...expected.keys()].sort(), 'there, or called missing')
    const changed = differences(home, recovered)
      .split('\n')
      .filter((line) => line !== '' && !/^(c|[>h]f|cd|cL|cS)\+{9}|^hf\+/.test(line))
    // A directory whose header is lost is made by tar, without what it had.
    assert.equal(
      changed.filter((line) => !/^\.d/.test(line)),
      [],
    )
  }
})

/** The list that a recovery left beside the directory, as raw paths in latin1. */
function listedMissing(directory: string): string[] {
  const start = `${directory.slice(root.length + 1)}.missing.`
  const list = readdirSync(root).find((name) => name.startsWith(start))
  assert.ok(list !== undefined, 'the list of what is missing')
  return readFileSync(`${root}/${list}`, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => {
      const path = JSON.parse(line) as string
      const [, base64] = /^base64:(.*)$/.exec(path) ?? []
      return Buffer.from(base64 ?? path, base64 === undefined ? 'utf8' : 'base64').toString(
        'latin1',
      )
    })
}

recover('takes nothing unsigned, and says how to take it', () => {
  const copy = damagedCopy()
  // A bundle that decrypts but is not the one that was signed: whoever has the recipient makes it.
  const recipient = /^# public key: (\S+)$/m.exec(readFileSync(identity, 'utf8'))![1]!
  const bundle = neededBundle(copy, stamps[0]!)
  const forge = 'age -d -i "$1" "$2" | age -r "$3" >"$2.new"; mv "$2.new" "$2"'
  stock('bash', ['-euo', 'pipefail', '-c', forge, 'bash', identity, bundle, recipient])
  const checked = recovery(['-s', 'home'], { from: copy })
  assert.is(checked.status, 13)
  assert.match(checked.stderr, '-k none')
  assert.ok(times(checked.home).size < times(home).size)
  const unchecked = recovery(['-s', 'home', '-k', 'none'], { from: copy })
  assert.is(unchecked.status, 13)
  assert.is(differences(home, unchecked.home), '')
})

recover('goes on with what it has of a damaged verification file, manifest or catalog', () => {
  const last = `machines/here/home/${stamps[2]}`
  const names = ['verification.sha256', 'verification.sha256.minisig', 'manifest.tar.zst.age']
  for (const name of names) {
    const copy = damagedCopy()
    flipByte(`${copy}/${last}/${name}`, name.startsWith('manifest') ? -300 : 80)
    const { status, stderr, home: recovered } = recovery(['-s', 'home'], { from: copy })
    assert.is(status, 13, `${name}: ${stderr}`)
    assert.match(stderr, name.replace('.minisig', ''))
    assert.is(differences(home, recovered), '', name)
  }
  const copy = damagedCopy()
  flipByte(`${copy}/${last}/catalog-0001.tar.zst.age`, -300)
  const { status, stderr } = recovery(['-s', 'home'], { from: copy })
  assert.is(status, 13, stderr)
  assert.match(stderr, 'try another stamp')
  const earlier = recovery(['-s', 'home', '-t', stamps[1]!], { from: copy })
  assert.is(earlier.status, 0, earlier.stderr)
})

recover('says that a bundle is missing', () => {
  const copy = damagedCopy()
  const bundle = neededBundle(copy, stamps[1]!)
  rmSync(bundle)
  const { status, stderr } = recovery(['-s', 'home'], { from: copy })
  assert.is(status, 13)
  assert.match(stderr, `${bundle} is missing`)
})

recover('ends with 12, and leaves nothing, when the identity does not open it', () => {
  const wrong = `${root}/wrong.txt`
  stock('age-keygen', ['-o', wrong])
  const cases = [
    [wrong, 'does not open'],
    [config, 'no line AGE-SECRET-KEY'],
  ] as const
  for (const [file, said] of cases) {
    const { status, stderr, directory } = recovery(['-s', 'home'], { identity: file })
    assert.is(status, 12, stderr)
    assert.match(stderr, said)
    assert.not(existsSync(directory))
  }
})

recover('refuses what another key signed', () => {
  const signer = `${root}/another`
  stock('minisign', ['-G', '-W', '-p', `${signer}.pub`, '-s', `${signer}.key`])
  const { status, stderr, directory } = recovery(['-s', 'home', '-k', `${signer}.pub`])
  assert.is(status, 13, stderr)
  assert.match(stderr, 'not from your machine')
  assert.not(existsSync(directory))
})

recover('names a program that is missing, and its package', () => {
  const cases = [
    ['jq', 'apt-get install jq'],
    ['zstd', 'zstd'],
    ['tar', 'GNU tar'],
  ] as const
  for (const [name, said] of cases) {
    const programs = PROGRAMS.filter((one) => one !== name)
    const bin = onlyPrograms(`${root}/bin-without-${name}`, programs)
    const { status, stderr, directory } = recovery(['-s', 'home'], { path: bin })
    assert.is(status, 2, stderr)
    assert.match(stderr, said)
    assert.match(stderr, 'not installed')
    assert.not(existsSync(directory))
  }
})

recover('overwrites nothing, and asks which set when there are two', () => {
  mkdirSync(`${root}/occupied`)
  writeFileSync(`${root}/occupied/mine`, 'mine')
  const run = (...words: readonly string[]): Outcome =>
    runStock('dash', [`${repository}/recover.sh`, '-i', identity, ...words], { environment })
  const occupied = run('-s', 'home', '-o', `${root}/occupied`)
  assert.is(occupied.status, 2)
  assert.match(occupied.stderr, 'is not empty')
  assert.equal(readdirSync(`${root}/occupied`), ['mine'])
  const ambiguous = run('-o', `${root}/none`)
  assert.is(ambiguous.status, 2)
  assert.match(ambiguous.stderr, /more than one set[^]*home[^]*other/)
})

recover('asks for the passphrase of a protected identity once', async () => {
  const passphrase = 'six words that only I know'
  const file = `${root}/protected.age`
  writeFileSync(`${root}/passphrase`, `${passphrase}\n`)
  const salt = 'abcdefghijkmnpqr'
  const recipe = `argon2 ${salt} -id -t 3 -m 18 -p 1 -l 32 -r`
  const digits = stock('sh', ['-c', recipe], { input: passphrase }).trim()
  writeFileSync(`${file}.salt`, `# the recipe\n${recipe}\n`)
  const protect = `age -p -o ${file} '${identity}'`
  stock('script', ['-qec', protect, '/dev/null'], { input: `${digits}\n${digits}\n` })
  const right = recovery(['-s', 'other'], { identity: file, input: `${passphrase}\n` })
  assert.is(right.status, 0, right.stderr)
  assert.is(differences(other, `${right.directory}${other}`), '')
  assert.not.match(`${right.stdout}${right.stderr}`, digits)
  const wrong = recovery(['-s', 'other'], { identity: file, input: 'no idea\n' })
  assert.is(wrong.status, 12, wrong.stderr)
  assert.match(wrong.stderr, 'the passphrase does not open')
  assert.not(existsSync(wrong.directory))
})

recover('is the script that the project has, and any shell takes it', () => {
  assert.equal(readFileSync(`${repository}/recover.sh`), readFileSync(script))
  for (const shell of ['dash', 'bash']) stock(shell, ['-n', script])
  const text = readFileSync(script, 'utf8')
  assert.not.match(text, /\[\[ |\blocal [a-z]|^function\b|<<<|\$'\\|\becho -/m)
})

recover('has a document whose every example runs', () => {
  const blocks = [...readFileSync(document, 'utf8').matchAll(/^```sh\n([^]*?)^```$/gm)].map(
    (match) => match[1]!,
  )
  assert.ok(blocks.length >= 7)
  assert.match(blocks[0]!, /^REPOSITORY=.*\nIDENTITY=.*\nWORK=.*\n$/)
  const work = `${root}/by hand`
  mkdirSync(work)
  // It speaks of a repository with one set.
  const copy = `${work}/drive`
  cpSync(repository, copy, { recursive: true })
  const otherSet = `${copy}/machines/here/other`
  for (const stamp of readdirSync(otherSet).filter((name) => name !== 'latest')) {
    rmSync(`${otherSet}/${stamp}/manifest.tar.zst.age`)
  }
  const set = { REPOSITORY: copy, IDENTITY: identity, WORK: work }
  const { status, stdout, stderr } = runStock('bash', ['-euc', blocks.slice(1).join('\n')], {
    environment: { ...environment, ...set },
  })
  assert.is(status, 0, `${stdout}\n${stderr}`)
  assert.is(differences(home, `${work}/newest${home}`), '')
  assert.ok(readFileSync(`${work}/file`).equals(readFileSync(`${home}/big.img`)))
  copyFileSync(script, `${work}/recover.sh`)
  assert.match(stock('dash', [`${work}/recover.sh`, '-r', copy, '-l']), 'here home')
})

recover.run()
