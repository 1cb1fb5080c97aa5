import { Buffer } from 'node:buffer'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { parse } from 'yaml'
import { BackupError } from '../../lib/errors.ts'
import { withoutSecrets } from '../../lib/machine/config-document.ts'
import type { ReportEvent } from '../../lib/model/report.ts'
import { openDirectoryTarget } from '../../lib/target/directory.ts'
import { configurationMember, configurationOf } from '../../lib/work/configuration-member.ts'
import { chooseMachine, findHome, placeOfText, textFor } from '../../lib/work/init-from.ts'
import { createRepository } from '../../lib/work/repository.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const secrets = suite('work/init-from: secrets')
const places = suite('work/init-from: places')
const texts = suite('work/init-from: texts')

const root = tempDirectory()
const example = readFileSync(new URL('../../../config/example.yaml', import.meta.url), 'utf8')

async function failureOf(action: () => unknown): Promise<BackupError> {
  try {
    await action()
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('it did not fail')
}

secrets('the example keeps every byte but the address of its webhook', () => {
  const address = 'https://example.org/hook'
  assert.is(withoutSecrets(example), example.replace(address, '"https://removed.invalid/"'))
})

secrets('no way of writing an address or a password keeps it', () => {
  for (const text of [
    'notify: { ping: { url: https://x.example/SECRET } }',
    'notify:\n  ping:\n    url: "https://x.example/SECRET" # mine\n',
    'notify:\n  ping:\n    url: >-\n      https://x.example/SECRET\n  desktop: true\n',
    'notify:\n  ping:\n    url:\n      https://x.example/SECRET\n',
    'anchor: &ping https://x.example/SECRET\nnotify: { ping: { url: *ping } }',
    'anchor: &all { ping: { url: https://x.example/SECRET } }\nnotify: *all\n',
    '{"notify": {"webhook": {"url": "https://x.example/SECRET"}}}',
    '# webhook: { url: https://x.example/SECRET }\na: 1',
    'a: 1 # token = SECRET',
    'password: SECRET',
    'api_key: [SECRET, { x: SECRET }]',
    'AWS_SECRET_ACCESS_KEY: SECRET',
    'secrets:\n  one: SECRET\n  two: |\n    SECRET\n    SECRET\nlast: 1',
    'endpoint: https://me:SECRET@s3.example.org',
    'endpoint: https://SECRET@s3.example.org',
    'from: rsync://me:SECRET@host/x',
    '# AGE-SECRET-KEY-1SECRET\na: AGE-SECRET-KEY-1SECRET',
    'a: 1 # old: https://me:SECRET@host/',
  ]) {
    const out = withoutSecrets(text)
    // The name of a variable and the head of an identity are no secrets.
    assert.not.match(out.replaceAll(/AWS_SECRET_|AGE-SECRET-/g, ''), 'SECRET', text)
    assert.ok(parse(out), text)
  }
})

secrets('what only looks alike stays as it is', () => {
  for (const text of [
    'exclusions: ["a #url: b", "#token: x", \'it is url: y\']\n',
    'notify:\n  ping: { url_file: ~/ping.url }\npassword_file: /etc/pw\n',
    'targets:\n  - { name: nas, host_key: SHA256:abc, ssh_key: ~/.ssh/id, profile: backup }\n',
    'trusted_signing_keys:\n  - { machine: a, key: RWQ } # a comment that stays\n',
    'hooks: { before: [ssh, "ssh://git@host/x"] }\n',
    'text: |\n  # token: in a block\n  x\n',
  ]) {
    assert.is(withoutSecrets(text), text)
  }
})

secrets('a file that is no YAML is left out with a warning, and fails nothing', async () => {
  const events: ReportEvent[] = []
  const path = `${root}/broken.yaml`
  writeFileSync(path, 'a: [1\nb: SECRET')
  assert.is(await configurationMember(path, (event) => events.push(event)), undefined)
  assert.is(
    await configurationMember(`${root}/none.yaml`, (event) => events.push(event)),
    undefined,
  )
  assert.equal(
    events.map((event) => 'code' in event && event.code),
    ['CONFIGURATION_LEFT_OUT', 'CONFIGURATION_LEFT_OUT'],
  )
  assert.not.match(JSON.stringify(events), 'SECRET')
  writeFileSync(path, 'a: 1 # stays\n')
  const member = await configurationMember(path, (event) => events.push(event))
  assert.is(configurationOf(new Map([['configuration.yaml', member!]])), 'a: 1 # stays\n')
  assert.is(configurationOf(new Map([['manifest.json', Buffer.alloc(0)]])), undefined)
  assert.is(events.length, 2)
})

places('a text leads to a place', () => {
  assert.equal(placeOfText('/a/$b/../c', {}), { kind: 'directory', path: '/a/c' })
  assert.equal(placeOfText('/a/$b', {}), { kind: 'directory', path: '/a/$$b' })
  const bucket = { kind: 's3', bucket: 'b', endpoint: undefined }
  assert.equal(placeOfText('s3://b', {}), { ...bucket, path: undefined })
  assert.equal(placeOfText('s3://b/', {}), { ...bucket, path: undefined })
  assert.equal(
    placeOfText('s3://b/x/y/', { endpoint: 'http://h:1', region: 'r', isPathStyle: true }),
    { ...bucket, path: 'x/y', endpoint: 'http://h:1', region: 'r', path_style: true },
  )
  assert.equal(placeOfText('sftp://nas/backups', {}), {
    ...{ kind: 'sftp', host: 'nas', path: 'backups', port: undefined },
  })
  const words = { hostKey: 'SHA256:x', sshKey: '/k' }
  assert.equal(placeOfText('sftp://me@[::1]:2222//srv/b', words), {
    ...{ kind: 'sftp', host: '::1', path: '/srv/b', port: 2222, user: 'me' },
    ...{ host_key: 'SHA256:x', ssh_key: '/k' },
  })
})

places('what is no place is refused, without its password', async () => {
  for (const text of ['s3://', 's3:b', 'sftp://host', 'sftp://me:pw@host/x', 'ftp://host/x']) {
    const { code, message } = await failureOf(() => placeOfText(text, {}))
    assert.is(code, 'USAGE', text)
    assert.not.match(message, 'pw')
  }
  for (const [text, options] of [
    ['/a', { region: 'r' }],
    ['s3://b', { hostKey: 'SHA256:x' }],
    ['sftp://h/x', { isPathStyle: true }],
  ] as const) {
    assert.is((await failureOf(() => placeOfText(text, options))).code, 'USAGE', text)
  }
})

const here = { environment: {}, home: '/home/me', hostName: 'new' }

places('the only machine is meant, of several one is to be named', async () => {
  const path = `${root}/store`
  const place = { kind: 'directory', path }
  const staging = `${root}/none`
  const nowhere = await failureOf(() => findHome(place, { staging, ...here }))
  assert.match(nowhere.hint ?? '', 'plugged in')
  assert.not.match(nowhere.hint ?? '', 'mkdir')
  mkdirSync(path)
  const absent = await failureOf(() => findHome(place, { staging, ...here }))
  assert.is(absent.code, 'TARGET_ABSENT')
  const target = openDirectoryTarget({ name: 'x', path, mustBeMounted: false })
  await createRepository(target, { nowMs: 0 })
  const repository = await findHome(place, { staging, ...here })
  const codeOf = async (name?: string): Promise<string> =>
    (await failureOf(() => chooseMachine(repository, name))).code
  assert.is(await codeOf(), 'NOTHING_FOUND')
  mkdirSync(`${path}/machines/laptop`, { recursive: true })
  assert.is(await chooseMachine(repository, undefined), 'laptop')
  assert.is(await codeOf('other'), 'NOTHING_FOUND')
  mkdirSync(`${path}/machines/desktop`)
  assert.is(await chooseMachine(repository, 'desktop'), 'desktop')
  const several = await failureOf(() => chooseMachine(repository, undefined))
  assert.is(several.code, 'USAGE')
  assert.match(several.message, 'desktop, laptop')
})

const found = (text: string) => ({
  place: { machine: 'laptop', set: 'home', stamp: '2026-05-20T020000Z' },
  text,
  sets: ['home'],
})

const base = `# mine
machine: laptop
staging: /staging
backup_sets:
  - { name: home, sources: [/home/me] } # all
`

async function textOf(text: string, change: Partial<Parameters<typeof textFor>[0]> = {}) {
  const place = { kind: 'directory', path: '/found' }
  return await textFor({
    ...{ found: found(text), place, path: '/c.yaml', as: undefined, trusted: [], ...here },
    ...change,
  })
}

texts('a target that is where it was found changes nothing', async () => {
  const text = `${base}targets:\n  - { name: disk, kind: directory, path: /found }\n`
  const made = await textOf(text)
  assert.is(made.text, text)
  assert.is(made.target, 'disk')
  assert.is(made.lacksAddresses, false)
})

texts('the only target of its kind is the one that moved', async () => {
  const made = await textOf(`${base}targets:
  - { name: disk, kind: directory, path: /old, priority: 3 } # a disk
  - { name: t9, kind: drive, label: T9 }
`)
  assert.is(made.target, 'disk')
  assert.match(made.text, '# a disk')
  const { targets } = parse(made.text) as { targets: unknown[] }
  assert.equal(targets[0], { name: 'disk', kind: 'directory', path: '/found', priority: 3 })
  assert.equal(targets[1], { name: 't9', kind: 'drive', label: 'T9' })
})

texts('among several, or without any, a new one is added', async () => {
  for (const [targets, name, count] of [
    ['', 'found', 1],
    ['targets: []\n', 'found', 1],
    ['targets:\n  - { name: t9, kind: drive, label: T9 }\n', 'found', 2],
    [
      'targets:\n  - { name: found, kind: directory, path: /a }\n'
        + '  - { name: b, kind: directory, path: /b }\n',
      'found-2',
      3,
    ],
  ] as const) {
    const made = await textOf(base + targets)
    assert.is(made.target, name)
    const all = (parse(made.text) as { targets: { name: string; path?: string }[] }).targets
    assert.is(all.length, count)
    assert.is(all.find((target) => target.name === name)?.path, '/found')
    assert.not.instance(made.configuration, BackupError)
  }
})

texts('a bucket that was found elsewhere loses the endpoint it had', async () => {
  const place = placeOfText('s3://b/x', { profile: 'p' })
  const bucket = '{ name: s, kind: s3, bucket: b, path: x, endpoint: "http://old", region: r }'
  const made = await textOf(`${base}targets:\n  - ${bucket}\n`, { place })
  const { targets } = parse(made.text) as { targets: unknown[] }
  const expected = { name: 's', kind: 's3', bucket: 'b', path: 'x', region: 'r', profile: 'p' }
  assert.equal(targets, [expected])
})

texts('the name of the host does not become the name of the machine', async () => {
  const made = await textOf(base.replace('machine: laptop\n', ''))
  assert.is((parse(made.text) as { machine: string }).machine, 'laptop')
})

texts('under another name it has another key, and trusts the one it had', async () => {
  const key = 'RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3'
  const as = { machine: 'laptop-2', signingKey: '/k/$x/signing.key' }
  const made = await textOf(base, { as, trusted: [key] })
  assert.is(made.machine, 'laptop-2')
  const { configuration } = made
  if (configuration instanceof BackupError) throw configuration
  assert.is(configuration.machine, 'laptop-2')
  assert.is(configuration.signingKey, '/k/$x/signing.key')
  assert.equal(configuration.trustedSigningKeys, [{ machine: 'laptop', key }])
  const again = await textOf(made.text, { as, trusted: [key] })
  assert.is(again.text, made.text, 'a key is added once')
})

texts('what does not read here yet comes back all the same, and is told', async () => {
  const made = await textOf(base.replace('/staging', '$NOT_SET_HERE'))
  assert.instance(made.configuration, BackupError)
  assert.match(made.text, '$NOT_SET_HERE')
})

secrets.run()
places.run()
texts.run()
