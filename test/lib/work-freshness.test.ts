import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { generateSigningKey, publicKeyText, sign } from '../../lib/format/minisign.ts'
import type { TargetConfiguration } from '../../lib/machine/config.ts'
import {
  fleetExitCode,
  type FleetMachine,
  parseFreshness,
  type SetFreshness,
} from '../../lib/model/freshness.ts'
import { formatStamp, type Stamp } from '../../lib/model/stamp.ts'
import { openDirectoryTarget } from '../../lib/target/directory.ts'
import type { Target } from '../../lib/target/target.ts'
import { readFleet } from '../../lib/work/fleet.ts'
import {
  type ExportedSet,
  recordFreshness,
  removeOldFreshness,
  writeFreshness,
} from '../../lib/work/freshness.ts'
import { createRepository, enterMachine, type Repository } from '../../lib/work/repository.ts'
import { writeReceipt } from '../../lib/work/receipts.ts'
import type { Signer } from '../../lib/work/signing.ts'
import * as assert from '../helpers/assert.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { stock } from '../helpers/stock.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

process.env['TZ'] = 'UTC'

const freshness = suite('work/freshness')

const NOW_MS = Date.parse('2026-05-20T02:00:00Z')
const DAY_MS = 86_400_000
const root = tempDirectory()
let made = 0

const at = (daysAgo: number): Stamp => formatStamp(NOW_MS - daysAgo * DAY_MS)

async function newSigner(): Promise<Signer> {
  const key = await generateSigningKey()
  return {
    publicKey: publicKeyText(key),
    sign: async (bytes, of) => await sign({ bytes, key, ...of }),
  }
}

interface Store {
  readonly directory: string
  readonly repository: Repository
}

async function newStore(): Promise<Store> {
  const directory = `${root}/${++made}`
  mkdirSync(directory)
  const target = openDirectoryTarget({ name: 'store', path: directory, mustBeMounted: false })
  return { directory, repository: await createRepository(target, { nowMs: NOW_MS }) }
}

interface Machine {
  readonly name: string
  readonly signer: Signer
}

/** A machine with exports of the set `home`: as far as a listing goes. */
async function enter(
  { repository }: Store,
  name: string,
  stamps: readonly Stamp[],
): Promise<Machine> {
  const signer = await newSigner()
  await enterMachine(repository, { machine: name, signer })
  for (const stamp of stamps) await addExport(repository, { machine: name, stamp })
  return { name, signer }
}

async function addExport(
  { target }: Repository,
  { machine, stamp, set = 'home' }: { machine: string; stamp: Stamp; set?: string },
): Promise<void> {
  const directory = `machines/${machine}/${set}/${stamp}`
  await target.write(`${directory}/data-0001.tar.zst.age`, Buffer.alloc(100))
  await target.write(`${directory}/manifest.tar.zst.age`, Buffer.alloc(10))
}

const homeOf = (stamp: Stamp): ReadonlyMap<string, SetFreshness> => {
  const nextExpected = at(-7)
  const none = { complete: true, verified: undefined }
  return new Map([['home', { stamp, exports: 1, bytes: 110, nextExpected, ...none }]])
}

async function report(
  { repository }: Store,
  { name, signer }: Machine,
  { stamp = at(1), nowMs = NOW_MS }: { stamp?: Stamp; nowMs?: number } = {},
): Promise<Stamp> {
  const sets = homeOf(stamp)
  const nextExpected = at(-7)
  return await writeFreshness(repository, { machine: name, signer, sets, nextExpected, nowMs })
}

async function fleetOf(
  { repository }: Store,
  trusted: readonly Machine[] = [],
  nowMs = NOW_MS,
): Promise<readonly FleetMachine[]> {
  return await readFleet(repository, {
    trustedKeys: async (name) => {
      const ours = trusted.filter((machine) => machine.name === name)
      return await Promise.resolve(ours.map(({ signer }) => signer.publicKey))
    },
    nowMs,
  })
}

const codes = (machine: FleetMachine | undefined): string[] =>
  (machine?.problems ?? []).map(({ code }) => code)

const recordsIn = ({ directory }: Store, machine: string): string[] => {
  const path = `${directory}/machines/${machine}/freshness`
  return existsSync(path) ? readdirSync(path).sort() : []
}

freshness('every machine is read, each with the key that is trusted for it', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(2), at(1)])
  const desktop = await enter(store, 'desktop', [at(1)])
  await report(store, laptop)
  await report(store, desktop)
  const fleet = await fleetOf(store, [laptop, desktop])
  assert.equal(
    fleet.map(({ machine, standing, key }) => ({ machine, standing, key })),
    [
      { machine: 'desktop', standing: 'fresh', key: 'trusted' },
      { machine: 'laptop', standing: 'fresh', key: 'trusted' },
    ],
  )
  assert.is(fleetExitCode(fleet), 0)
})

freshness('stock minisign verifies a record, bound to its name and repository', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(1)])
  const stamp = await report(store, laptop)
  const file = `${store.directory}/machines/laptop/freshness/${stamp}.json`
  const said = stock('minisign', ['-V', '-P', laptop.signer.publicKey, '-m', file])
  assert.match(said, `file:laptop/freshness/${stamp}.json\trepository:${store.repository.id}`)
})

freshness('without a key to trust, the one of machine.json counts and is told', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(1)])
  await report(store, laptop)
  const [machine] = await fleetOf(store)
  assert.is(machine?.standing, 'fresh')
  assert.is(machine?.key, 'untrusted')
  assert.equal(codes(machine), ['KEY_UNTRUSTED'])
})

freshness('a record signed by any other key is no record', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(1)])
  await report(store, { name: 'laptop', signer: await newSigner() })
  for (const trusted of [[laptop], []]) {
    const [machine] = await fleetOf(store, trusted)
    assert.is(machine?.standing, 'unknown')
    assert.is(machine?.key, undefined)
    assert.equal(codes(machine), ['SIGNER_UNKNOWN'])
    assert.is(fleetExitCode([machine!]), 13)
  }
})

freshness('a changed record is an alarm, and the one before it is shown', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(1)])
  const good = await report(store, laptop, { nowMs: NOW_MS - DAY_MS })
  const stamp = await report(store, laptop)
  const file = `${store.directory}/machines/laptop/freshness/${stamp}.json`
  writeFileSync(file, readFileSync(file, 'utf8').replace('"exports":1', '"exports":0'))
  const [machine] = await fleetOf(store, [laptop])
  assert.is(machine?.written, good)
  assert.equal(codes(machine), ['SIGNATURE_WRONG'])
  rmSync(`${file}.minisig`)
  assert.equal(codes((await fleetOf(store, [laptop]))[0]), ['SIGNATURE_WRONG'])
})

freshness('a record cannot be moved to another date, machine or repository', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(1)])
  const old = await report(store, laptop, { nowMs: NOW_MS - 30 * DAY_MS })
  const directory = `${store.directory}/machines/laptop/freshness`
  for (const suffix of ['.json', '.json.minisig']) {
    renameSync(`${directory}/${old}${suffix}`, `${directory}/${at(0)}${suffix}`)
  }
  const [redated] = await fleetOf(store, [laptop])
  assert.equal(codes(redated), ['SIGNATURE_WRONG'])
  assert.is(redated?.standing, 'unknown')

  const other = await newStore()
  await report(store, laptop, { nowMs: NOW_MS + 1000 })
  cpSync(`${store.directory}/machines`, `${other.directory}/machines`, { recursive: true })
  const [moved] = await fleetOf(other, [laptop], NOW_MS + 1000)
  assert.is(moved?.standing, 'unknown')
  assert.is(fleetExitCode([moved!]), 13)
})

freshness('an export that is claimed and was removed is an alarm', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(2), at(1)])
  await report(store, laptop)
  rmSync(`${store.directory}/machines/laptop/home/${at(1)}/manifest.tar.zst.age`)
  const [machine] = await fleetOf(store, [laptop])
  assert.equal(codes(machine), ['CLAIM_WRONG'])
  assert.match(machine!.problems[0]!.what, `claims home ${at(1)}, which is not there`)
})

freshness('a wrong clock hides nothing that comes after it', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(1)])
  const ahead = await report(store, laptop, { nowMs: NOW_MS + 400 * DAY_MS })
  const [alone] = await fleetOf(store, [laptop])
  assert.is(alone?.standing, 'unknown')
  assert.ok(codes(alone).includes('RECORD_AHEAD'))
  const stamp = await report(store, laptop)
  assert.is(stamp, at(0))
  const [machine] = await fleetOf(store, [laptop])
  assert.is(machine?.written, stamp)
  assert.is(machine?.standing, 'fresh')
  await removeOldFreshness(store.repository, { machine: 'laptop', nowMs: NOW_MS })
  assert.ok(recordsIn(store, 'laptop').includes(`${ahead}.json`), 'it is not deleted for its date')
})

freshness('no record is ever overwritten, and all but three go', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(1)])
  const stamps: Stamp[] = []
  for (let run = 0; run < 5; run++) stamps.push(await report(store, laptop))
  assert.is(new Set(stamps).size, 5)
  const directory = `${store.directory}/machines/laptop/freshness`
  appendFileSync(`${directory}/notes.json`, 'not ours')
  // Of a run that was killed before its record came.
  appendFileSync(`${directory}/${at(9)}.json.minisig`, 'left')
  assert.is(await removeOldFreshness(store.repository, { machine: 'laptop', nowMs: NOW_MS }), 3)
  const expected = stamps.slice(-3).flatMap((stamp) => [`${stamp}.json`, `${stamp}.json.minisig`])
  assert.equal(recordsIn(store, 'laptop'), [...expected, 'notes.json'].sort())
  assert.is(await removeOldFreshness(store.repository, { machine: 'laptop', nowMs: NOW_MS }), 0)
})

freshness('one machine that is damaged hides no other', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(1)])
  const huge = await enter(store, 'huge', [at(1)])
  await enter(store, 'never', [at(1)])
  await report(store, laptop)
  const stamp = await report(store, huge)
  writeFileSync(
    `${store.directory}/machines/huge/freshness/${stamp}.json`,
    Buffer.alloc(2 ** 20 + 1),
  )
  mkdirSync(`${store.directory}/machines/empty`)
  const fleet = await fleetOf(store, [laptop, huge])
  const told = fleet.map((machine) => [machine.machine, machine.standing, ...codes(machine)])
  assert.equal(told, [
    ['empty', 'unknown', 'RECORD_MISSING'],
    ['huge', 'unknown', 'UNREADABLE'],
    ['laptop', 'fresh'],
    ['never', 'unknown', 'RECORD_MISSING'],
  ])
})

const directoryTarget: TargetConfiguration = {
  name: 'store',
  bundleSizeBytes: 1,
  compressionLevel: 3,
  priority: 0,
  parityPercent: 0,
  drill: 'auto',
  kind: 'directory',
  path: '/none',
  mustBeMounted: undefined,
}

const bucketTarget: TargetConfiguration = {
  ...directoryTarget,
  kind: 's3',
  bucket: 'store',
  path: '',
  region: undefined,
  endpoint: undefined,
  isPathStyle: false,
  profile: undefined,
  adminProfile: undefined,
  storageClass: 'STANDARD',
  hotBelowBytes: 0,
  lockMs: undefined,
  costLimit: undefined,
  pricesPath: undefined,
  streams: 1,
  bandwidthLimitBytes: undefined,
  spoolLimitBytes: 1,
}

async function recordRun(
  store: Store,
  { name, signer }: Machine,
  of: {
    target?: TargetConfiguration
    nowMs?: number
    staging?: string
    repository?: Repository
    exported?: readonly ExportedSet[]
  } = {},
): Promise<void> {
  const { target = directoryTarget, nowMs = NOW_MS, repository = store.repository } = of
  const staging = of.staging ?? `${root}/staging-${++made}`
  mkdirSync(staging, { recursive: true })
  const configuration = configurationOf(setConfiguration(), { staging, machine: name })
  const { exported = [{ set: 'home', stamp: at(1), complete: false }] } = of
  await recordFreshness({ configuration, target, repository, signer, exported, nowMs })
}

freshness('a run records sets, schedule and proof, and no name of a file', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(2), at(1)])
  await addExport(store.repository, { machine: 'laptop', stamp: at(40), set: 'gone' })
  const staging = `${root}/staging-${++made}`
  mkdirSync(staging)
  await writeReceipt({
    staging,
    signer: laptop.signer,
    receipt: {
      format: 1,
      kind: 'verification',
      machine: 'laptop',
      target: 'store',
      drive: undefined,
      repository: store.repository.id,
      exports: [`laptop/home/${at(2)}`],
      start: '2026-05-19T02:00:00.000Z',
      end: '2026-05-19T02:00:07.000Z',
      how: 'checksums',
      bundles: 1,
      files: 0,
      bytes: 10,
      totalBytes: 10,
      seed: undefined,
      result: 'good',
      damaged: [],
    },
  })
  await recordRun(store, laptop, { staging })
  const [file = ''] = recordsIn(store, 'laptop')
  const bytes = readFileSync(`${store.directory}/machines/laptop/freshness/${file}`)
  assert.not.match(bytes.toString(), /data-|manifest|\//)
  assert.equal(parseFreshness(bytes), {
    machine: 'laptop',
    repository: store.repository.id,
    written: at(0),
    nextExpected: at(-7),
    sets: new Map([
      [
        'gone',
        {
          ...{ stamp: at(40), complete: undefined, exports: 1, bytes: 110 },
          ...{ nextExpected: undefined, verified: undefined },
        },
      ],
      [
        'home',
        {
          ...{ stamp: at(1), complete: false, exports: 2, bytes: 220, nextExpected: at(-6) },
          verified: { stamp: '2026-05-19T020007Z', how: 'checksums', result: 'good' },
        },
      ],
    ]),
  })
})

freshness('a drive gets no record', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(1)])
  const drive = { path: '', drives: [], isPool: false, everyMs: undefined }
  const target = { ...directoryTarget, ...drive, kind: 'drive', afterwards: 'unmount' } as const
  await recordRun(store, laptop, { target })
  assert.equal(recordsIn(store, 'laptop'), [])
})

freshness('old records go where the run may delete, and nowhere else', async () => {
  const admin = { ...bucketTarget, adminProfile: 'admin' }
  for (const [target, kept] of [
    [directoryTarget, 6],
    [bucketTarget, 6],
    [admin, 10],
  ] as const) {
    const store = await newStore()
    const laptop = await enter(store, 'laptop', [at(1)])
    for (let run = 0; run < 5; run++) await recordRun(store, laptop, { target })
    assert.is(recordsIn(store, 'laptop').length, kept, target.kind)
  }
})

freshness('a run that exported nothing lets nothing go', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(1)])
  for (let run = 0; run < 5; run++) await recordRun(store, laptop, { exported: [] })
  assert.is(recordsIn(store, 'laptop').length, 10)
  await recordRun(store, laptop)
  assert.is(recordsIn(store, 'laptop').length, 6)
})

freshness('credentials that may not delete are no failure', async () => {
  const store = await newStore()
  const laptop = await enter(store, 'laptop', [at(1)])
  const denying = (code: 'TARGET_DENIED' | 'TARGET_FAILED'): Repository => {
    const { target } = store.repository
    const remove: Target['remove'] = async () => {
      return await Promise.reject(new BackupError(code, 'no'))
    }
    const bound = new Proxy(target, {
      get: (of, name) => {
        if (name === 'remove') return remove
        const value: unknown = Reflect.get(of, name)
        return typeof value === 'function' ? (value.bind(of) as unknown) : value
      },
    })
    return { ...store.repository, target: bound }
  }
  const repository = denying('TARGET_DENIED')
  for (let run = 0; run < 5; run++) {
    await recordRun(store, laptop, { target: bucketTarget, repository })
  }
  assert.is(recordsIn(store, 'laptop').length, 10)
  let told: unknown
  try {
    await recordRun(store, laptop, { target: bucketTarget, repository: denying('TARGET_FAILED') })
  } catch (error) {
    told = error
  }
  assert.ok(
    told instanceof BackupError && told.code === 'TARGET_FAILED',
    'any other failure is one',
  )
})

freshness.run()
