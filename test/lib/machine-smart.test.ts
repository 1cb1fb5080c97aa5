import { truncateSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import {
  describeSmart,
  diskOf,
  readSmart,
  type SmartFinding,
  type SmartHealth,
} from '../../lib/machine/smart.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { withPrograms } from '../helpers/stand-in.ts'
import { stock } from '../helpers/stock.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const smart = suite('machine/smart')
const signal = new AbortController().signal

/** What smartctl 7.3 prints, without what is never read. */
const head = (messages: readonly string[], status: number) => ({
  json_format_version: [1, 0],
  smartctl: {
    version: [7, 3],
    messages: messages.map((string) => ({ string, severity: 'error' })),
    exit_status: status,
  },
})

const attribute = (id: number, name: string, value: number) => ({
  id,
  name,
  value: 100,
  worst: 100,
  thresh: 10,
  when_failed: '',
  flags: { value: 51, string: 'PO--CK ', prefailure: true },
  raw: { value, string: String(value) },
})

const sata = (counts: { reallocated: number; pending: number }, passed: boolean) => ({
  ...head([], 0),
  device: { name: '/dev/sdb', info_name: '/dev/sdb [SAT]', type: 'sat', protocol: 'ATA' },
  model_name: 'Samsung SSD 870 EVO 1TB',
  serial_number: 'S6PTNM0R000000A',
  rotation_rate: 0,
  smart_status: { passed },
  ata_smart_attributes: {
    revision: 1,
    table: [
      attribute(5, 'Reallocated_Sector_Ct', counts.reallocated),
      attribute(9, 'Power_On_Hours', 4321),
      attribute(190, 'Airflow_Temperature_Cel', 31),
      attribute(197, 'Current_Pending_Sector', counts.pending),
      attribute(198, 'Offline_Uncorrectable', 0),
    ],
  },
  power_on_time: { hours: 4321 },
  temperature: { current: 31 },
})

const nvme = (log: Readonly<Record<string, number>>) => ({
  ...head([], 0),
  device: { name: '/dev/sdb', info_name: '/dev/sdb [USB NVMe ASMedia]', type: 'sntasmedia' },
  model_name: 'Samsung PSSD T9',
  smart_status: { passed: true, nvme: { value: 0 } },
  nvme_smart_health_information_log: {
    critical_warning: 0,
    temperature: 44,
    available_spare: 100,
    percentage_used: 3,
    media_errors: 0,
    num_err_log_entries: 0,
    ...log,
  },
  temperature: { current: 44 },
  power_on_time: { hours: 120 },
})

interface Stand {
  readonly json: object
  readonly status: number
}

/** What is read where smartctl answers `first`, and `second` when it is told `-d sat`. */
async function readWith(first: Stand, second: Stand = first): Promise<SmartHealth> {
  const directory = tempDirectory()
  writeFileSync(`${directory}/first`, JSON.stringify(first.json))
  writeFileSync(`${directory}/second`, JSON.stringify(second.json))
  let health: SmartHealth | undefined
  const script = `case "$*" in
    '--json -a -- /dev/none') cat ${directory}/first; exit ${first.status};;
    '--json -a -d sat -- /dev/none') cat ${directory}/second; exit ${second.status};;
    esac; exit 99`
  await withPrograms({ smartctl: script }, async () => {
    health = await readSmart('/dev/none', { signal })
  })
  return health!
}

const said = (health: SmartHealth): string[] =>
  describeSmart(health).map(({ verdict, message }: SmartFinding) => `${verdict}: ${message}`)

smart('a good SATA drive says so, with its age', async () => {
  const health = await readWith({ json: sata({ reallocated: 0, pending: 0 }, true), status: 0 })
  assert.is(health.health, 'passed')
  assert.is(health.reallocatedSectors, 0)
  assert.is(health.powerOnHours, 4321)
  assert.equal(said(health), [
    'ok: Samsung SSD 870 EVO 1TB says that it is well, 4321 hours on, 31 °C, no sector replaced',
  ])
})

smart('an NVMe drive behind USB is judged by its own log', async () => {
  const good = await readWith({ json: nvme({}), status: 0 })
  assert.is(good.percentageUsed, 3)
  const well = 'ok: Samsung PSSD T9 says that it is well, 120 hours on, 44 °C, '
  assert.equal(said(good), [`${well}3 % of its rated life used`])
  const worn = await readWith({ json: nvme({ percentage_used: 90, media_errors: 2 }), status: 0 })
  assert.equal(said(worn), [
    'failure: 2 times it could not read its data',
    'warning: 90 % of its rated life is used',
  ])
  const almost = await readWith({ json: nvme({ percentage_used: 89 }), status: 0 })
  assert.match(said(almost)[0]!, /^ok: /)
})

smart('a failing drive fails, by its verdict, its sectors and its logs', async () => {
  const json = sata({ reallocated: 1834, pending: 12 }, false)
  const health = await readWith({ json, status: 8 | 16 | 64 | 128 })
  assert.is(health.health, 'failed')
  assert.equal(said(health), [
    'failure: the drive itself says that it is failing',
    'failure: 12 sectors wait to be replaced',
    'warning: 1834 sectors were replaced',
    'warning: one of its self-tests failed',
    'warning: its log holds errors; often of the cable, or of long ago',
  ])
  assert.ok(describeSmart(health).every(({ fix }) => fix !== undefined))
})

smart('the exit status alone tells that a drive fails', async () => {
  const { smart_status: _, ...rest } = sata({ reallocated: 0, pending: 0 }, true)
  assert.is((await readWith({ json: rest, status: 8 })).health, 'failed')
  assert.is((await readWith({ json: rest, status: 0 })).health, 'unknown')
  const prefail = await readWith({ json: sata({ reallocated: 0, pending: 0 }, true), status: 16 })
  assert.equal(said(prefail), ['warning: an attribute that announces failure is at its limit'])
})

const UNKNOWN_BRIDGE = [
  '/dev/none: Unknown USB bridge [0x1234:0x5678 (0x100)]',
  'Please specify device type with the -d option.',
]

smart('behind a bridge that smartctl does not know it is asked with -d sat', async () => {
  const first = { json: head(UNKNOWN_BRIDGE, 1), status: 1 }
  const second = { json: sata({ reallocated: 3, pending: 0 }, true), status: 0 }
  assert.equal(said(await readWith(first, second)), ['warning: 3 sectors were replaced'])
})

smart('what cannot be asked is no failure, and says why', async () => {
  const bridge = { json: head(UNKNOWN_BRIDGE, 1), status: 1 }
  const mute = { json: head(['Read Device Identity failed: scsi error'], 2), status: 2 }
  assert.equal(said(await readWith(bridge, mute)), [
    'ok: not looked at: its USB bridge does not pass SMART on',
  ])
  const denied = 'Smartctl open device: /dev/none failed: Permission denied'
  const message = head([denied], 2)
  assert.equal(said(await readWith({ json: message, status: 2 })), [
    'ok: not looked at: smartctl needs root',
  ])
  assert.equal(said(await readWith({ json: head([], 4), status: 4 })), [
    'ok: not looked at: the drive did not answer SMART commands',
  ])
})

smart('output that is no JSON, or another one, is nothing known', async () => {
  for (const json of [{}, [], { smart_status: 7, ata_smart_attributes: { table: [null, 5] } }]) {
    assert.equal(said(await readWith({ json, status: 0 })), [
      'ok: not looked at: the drive has no SMART',
    ])
  }
  await withPrograms({ smartctl: 'echo Segmentation fault; exit 0' }, async () => {
    assert.match(said(await readSmart('/dev/none', { signal }))[0]!, /^ok: not looked at/)
  })
})

smart('without smartctl the finding says what to install', async () => {
  const program = '/no/such/smartctl'
  const answer = said(await readSmart('/dev/none', { signal, program }))
  assert.equal(answer, ['ok: not looked at: install smartmontools'])
})

smart('an interruption is none of the drive', async () => {
  const aborter = new AbortController()
  aborter.abort()
  try {
    await readSmart('/dev/none', { signal: aborter.signal })
    assert.unreachable()
  } catch (error) {
    assert.ok(error instanceof BackupError)
    assert.is(error.code, 'INTERRUPTED')
  }
})

smart('a device that is no partition, or not there, is its own disk', () => {
  assert.is(diskOf('/dev/none'), '/dev/none')
  assert.is(diskOf('/dev/null'), '/dev/null')
})

if (canRunAsRoot('the disk of a partition')) {
  smart('a partition is asked for by its disk', () => {
    const image = `${tempDirectory()}/image`
    writeFileSync(image, '')
    truncateSync(image, 16 * 2 ** 20)
    stock('sfdisk', ['--quiet', image], { input: ',,L\n' })
    const disk = stock('losetup', ['--find', '--show', image]).trim()
    try {
      stock('partx', ['--add', disk])
      assert.is(diskOf(`${disk}p1`), disk)
    } finally {
      stock('partx', ['--delete', disk])
      stock('losetup', ['--detach', disk])
    }
  })
}

smart.run()
