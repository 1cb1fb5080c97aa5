// Parity that is made for exports: by the real par2, and judged by the stock one.

import { Buffer } from 'node:buffer'
import { randomBytes } from 'node:crypto'
import {
  closeSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { basename, dirname } from 'node:path'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { loadConfiguration } from '../../lib/machine/config.ts'
import {
  judgeParity,
  parityBytes,
  parityShape,
  readParity,
  repairByParity,
} from '../../lib/machine/par2.ts'
import type { ReportEvent } from '../../lib/model/report.ts'
import type { Target } from '../../lib/target/target.ts'
import { type ParityOutcome, addParity } from '../../lib/work/parity.ts'
import { salvage } from '../../lib/work/repair.ts'
import { openSigner } from '../../lib/work/signing.ts'
import { openTarget, repositoryToRead } from '../../lib/work/target-access.ts'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { runStock, stock } from '../helpers/stock.ts'
import {
  type Scenario,
  assertNoLeftovers,
  assertWhole,
  configure,
  inventory,
  makeScenario,
  namesIn,
} from '../helpers/scenario.ts'
import { withPrograms } from '../helpers/stand-in.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const parity = suite('work/parity')
const { signal } = new AbortController()
const MIB = 1024 * 1024
const IS_PROTECTED = /\.age$/
const IS_PARITY = /\.age\.par2$/

let exported: Promise<{ readonly scenario: Scenario; readonly copy: string }> | undefined

/** An export of several bundles, without parity, freshly put back. */
async function freshExport(): Promise<Scenario> {
  exported ??= (async () => {
    const scenario = await makeScenario()
    configure(scenario, (c) => {
      c['targets'][0].bundle_size = '1 MiB'
    })
    for (const name of 'abc') writeFileSync(`${scenario.source}/${name}`, randomBytes(MIB))
    await scenario.generation()
    const copy = `${scenario.directory}/copy`
    cpSync(scenario.target, copy, { recursive: true, preserveTimestamps: true })
    return { scenario, copy }
  })()
  const { scenario, copy } = await exported
  rmSync(scenario.target, { recursive: true })
  cpSync(copy, scenario.target, { recursive: true, preserveTimestamps: true })
  return scenario
}

interface Added {
  readonly outcome: ParityOutcome | undefined
  readonly error: BackupError | undefined
  readonly notices: readonly string[]
}

/** Adds parity as after an export; `change` may put something in the target's way. */
async function add(
  { configuration: path, home, staging }: Scenario,
  { percent = 10, change = () => {} }: { percent?: number; change?: (target: Target) => void } = {},
): Promise<Added> {
  const environment = { HOME: home }
  const configuration = await loadConfiguration({ path, environment, home, hostName: 'tester' })
  const target = await openTarget(configuration.targets[0]!, configuration)
  change(target)
  const repository = await repositoryToRead(target)
  const notices: string[] = []
  const report = (event: ReportEvent): void => {
    if (event.kind === 'notice') notices.push(`${event.code} ${event.message}`)
  }
  const publicKeys = [(await openSigner(configuration)).publicKey]
  const { machine } = configuration
  const options = { machine, percent, publicKeys, staging, report, signal }
  try {
    const outcome = await addParity(repository, options)
    return { outcome, error: undefined, notices }
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    return { outcome: undefined, error, notices }
  }
}

const protectedIn = ({ target }: Scenario): string[] => namesIn(target, IS_PROTECTED)
const parityIn = ({ target }: Scenario): string[] => namesIn(target, IS_PARITY)

function assertNoScratch({ staging }: Scenario): void {
  assert.equal(namesIn(staging, /parity-/), [])
}

/** Overwrites bytes at each place. */
function damage(path: string, places: readonly number[], bytes = Buffer.from('DAMAGE')): void {
  const fd = openSync(path, 'r+')
  for (const place of places) writeSync(fd, bytes, 0, bytes.length, place)
  closeSync(fd)
}

parity('one bad sector of the smallest file can be mended, and par2 takes every shape', () => {
  const sizes = [1, 1024, 1025, 4096, 262_144, 262_145, 4096 * 1000, 4096 * 1000 + 1, 2 ** 30]
  for (const sizeBytes of sizes) {
    for (const percent of [1, 10, 100]) {
      const shape = parityShape({ sizeBytes, percent })
      const what = `${sizeBytes} ${percent} ${JSON.stringify(shape)}`
      assert.is(shape.blockBytes % 4, 0, what)
      assert.ok(shape.dataBlocks * shape.blockBytes >= sizeBytes, what)
      assert.ok(shape.dataBlocks <= 1000, what)
      assert.ok(shape.recoveryBlocks * shape.blockBytes >= 4096 + shape.blockBytes, what)
      assert.ok(shape.recoveryBlocks >= (shape.dataBlocks * percent) / 100, what)
      assert.ok(shape.recoveryBlocks <= 1000, what)
    }
  }
})

parity('every bundle and manifest gets one file, and nothing else appears', async () => {
  const scenario = await freshExport()
  const before = inventory(scenario.target)
  const { outcome, notices } = await add(scenario)
  assert.equal(notices, [])
  const files = protectedIn(scenario)
  assert.ok(files.length >= 3, 'bundles of data, a catalog, a manifest')
  assert.equal(
    parityIn(scenario),
    files.map((name) => `${name}.par2`),
  )
  const sizes = parityIn(scenario).map((name) => statSync(`${scenario.target}/${name}`).size)
  const bytes = sizes.reduce((sum, size) => sum + size, 0)
  assert.equal(outcome, { files: files.length, bytes, damaged: [], withoutRoom: 0 })
  for (const name of parityIn(scenario)) {
    const sizeBytes = statSync(`${scenario.target}/${name.replace('.par2', '')}`).size
    const limit = parityBytes(parityShape({ sizeBytes, percent: 10 }))
    const size = statSync(`${scenario.target}/${name}`).size
    assert.ok(size <= limit && size > limit / 3, `${name}: ${size} of ${limit}`)
  }
  const after = inventory(scenario.target)
  for (const name of parityIn(scenario)) after.delete(name)
  assert.equal(after, before)
  assertNoLeftovers(scenario.staging, scenario.target)
  assertNoScratch(scenario)
  await assertWhole(scenario)
})

parity('what is there already is neither read nor made again', async () => {
  const scenario = await freshExport()
  await add(scenario)
  const before = inventory(scenario.target)
  const change = (target: Target): void => {
    target.publish = async () => await Promise.reject(new Error('something was made'))
  }
  const { outcome } = await add(scenario, { change })
  assert.equal(outcome, { files: 0, bytes: 0, damaged: [], withoutRoom: 0 })
  assert.equal(inventory(scenario.target), before)
})

parity('without percent nothing is made', async () => {
  const scenario = await freshExport()
  const { outcome } = await add(scenario, { percent: 0 })
  assert.is(outcome?.files, 0)
  assert.equal(parityIn(scenario), [])
})

parity('the stock par2 alone verifies and mends, from a copied directory', async () => {
  const scenario = await freshExport()
  await add(scenario)
  const name = protectedIn(scenario).find((file) => file.includes('data-0001'))!
  const directory = `${scenario.directory}/stock`
  cpSync(dirname(`${scenario.target}/${name}`), directory, { recursive: true })
  const path = `${directory}/${basename(name)}`
  const whole = readFileSync(path)
  stock('par2', ['verify', `${path}.par2`])
  damage(path, [5000], randomBytes(Math.floor(whole.length / 20)))
  assert.is(runStock('par2', ['verify', `${path}.par2`]).status, 1)
  stock('par2', ['repair', `${path}.par2`])
  assert.ok(readFileSync(path).equals(whole))
})

parity('a damaged bundle gets none, which is told, and the others get theirs', async () => {
  const scenario = await freshExport()
  const name = protectedIn(scenario).find((file) => file.includes('data-0001'))!
  damage(`${scenario.target}/${name}`, [20_000])
  const { outcome, notices } = await add(scenario)
  assert.equal(outcome?.damaged, [name])
  assert.is(notices.length, 1)
  assert.match(notices[0]!, `BUNDLE_DAMAGED ${name} on drive is damaged`)
  const others = protectedIn(scenario).filter((file) => file !== name)
  assert.equal(
    parityIn(scenario),
    others.map((file) => `${file}.par2`),
  )
})

parity('a run that ends in the middle is completed by the next', async () => {
  const scenario = await freshExport()
  let published = 0
  const change = (target: Target): void => {
    const publish = target.publish.bind(target)
    target.publish = async (path) => {
      published += 1
      if (published > 1) throw new BackupError('INTERRUPTED', 'interrupted')
      await publish(path)
    }
  }
  const { error } = await add(scenario, { change })
  assert.is(error?.code, 'INTERRUPTED')
  assert.is(parityIn(scenario).length, 1)
  assert.is(namesIn(scenario.target, /\.par2\.partial$/).length, 1)
  // What a process that is dead left in staging.
  mkdirSync(`${scenario.staging}/.state/parity-999999999`)
  const { outcome } = await add(scenario)
  assert.is(outcome?.files, protectedIn(scenario).length - 1)
  assert.is(parityIn(scenario).length, protectedIn(scenario).length)
  assertNoLeftovers(scenario.target)
  assertNoScratch(scenario)
})

parity('a medium that gives other bytes the second time gets no parity', async () => {
  const scenario = await freshExport()
  const par2 = stock('sh', ['-c', 'command -v par2']).trim()
  const script = `for last; do :; done
    printf DAMAGE | dd of="$last" bs=1 seek=300 conv=notrunc status=none
    exec ${par2} "$@"`
  await withPrograms({ par2: script }, async () => {
    const { error } = await add(scenario)
    assert.is(error?.code, 'READ_BACK')
    assert.match(error?.message ?? '', 'read differently the second time')
  })
  assert.equal(parityIn(scenario), [])
  assertNoLeftovers(scenario.target)
  assertNoScratch(scenario)
})

parity('a whole parity file says what it is made of; a damaged one says nothing', async () => {
  const scenario = await freshExport()
  await add(scenario)
  const path = `${scenario.target}/${parityIn(scenario)[0]}`
  const bundle = readFileSync(path.replace('.par2', ''))
  const facts = await readParity(path, { signal })
  assert.is(facts?.sizeBytes, bundle.length)
  assert.is(facts?.md5, stock('md5sum', [path.replace('.par2', '')]).slice(0, 32))
  const { size } = statSync(path)
  const copy = `${scenario.directory}/parity-copy`
  for (const place of [0, 9, 20, 70, Math.floor(size / 2), size - 1]) {
    copyFileSync(path, copy)
    damage(copy, [place], Buffer.from([(readFileSync(copy)[place] ?? 0) ^ 1]))
    assert.is(await readParity(copy, { signal }), undefined, `${place}`)
  }
  for (const length of [0, 63, 64, size - 1, size - 104]) {
    copyFileSync(path, copy)
    truncateSync(copy, length)
    assert.is(await readParity(copy, { signal }), undefined, `of ${length} bytes`)
  }
})

parity('par2 says by its exit code what it means', async () => {
  const said = `echo 'You have 5 out of 20 data blocks available.'
    echo 'You have 1 recovery block available.'
    echo 'You need 14 more recovery blocks to be able to repair.'`
  const judge = async (exitCode: number) => {
    let verdict: unknown
    await withPrograms({ par2: `${said}\nexit ${exitCode}` }, async () => {
      try {
        verdict = await judgeParity({ parity: '/none/x.par2', besides: [], signal })
      } catch (error) {
        if (!(error instanceof BackupError)) throw error
        verdict = `${error.code} ${error.message}`
      }
    })
    return verdict
  }
  const blocks = { dataBlocks: 20, usableBlocks: 5, recoveryBlocks: 1, missingBlocks: 14 }
  assert.equal(await judge(0), { kind: 'whole' })
  assert.equal(await judge(1), { kind: 'repairable', ...blocks })
  assert.equal(await judge(2), { kind: 'too damaged', ...blocks })
  assert.equal(await judge(4), { kind: 'parity damaged' })
  for (const [exitCode, pattern] of [
    [3, /^PROGRAM_FAILED par2 does not understand/],
    [5, /^PROGRAM_FAILED par2 mended the file, and/],
    [6, /^PROGRAM_FAILED par2 could not read or write/],
    [7, /^PROGRAM_FAILED par2 failed by a fault/],
    [8, /^PROGRAM_FAILED par2 ran out of memory/],
    [99, /^PROGRAM_FAILED par2 verify ended with exit code 99/],
  ] as const) {
    assert.match(String(await judge(exitCode)), pattern)
  }
  await withPrograms({ par2: 'exit 1' }, async () => {
    try {
      await repairByParity({ parity: '/none/x.par2', besides: [], signal })
      assert.unreachable()
    } catch (error) {
      assert.is((error as BackupError).code, 'PROGRAM_FAILED', 'a repair that only judges')
    }
  })
})

parity('a medium that cannot be read costs its sectors only', async () => {
  const directory = tempDirectory()
  const [from, to] = [`${directory}/from`, `${directory}/to`]
  const bytes = randomBytes(2 * MIB + 5000)
  writeFileSync(from, bytes)
  const bad = [4096, MIB + 8192, 2 * MIB + 4096]
  const isThere = await salvage({
    from,
    to,
    signal,
    reader: (handle) => async (buffer, length, offset) => {
      const isBad = bad.some((start) => offset < start + 4096 && start < offset + length)
      if (isBad) throw Object.assign(new Error('EIO'), { code: 'EIO' })
      return (await handle.read(buffer, 0, length, offset)).bytesRead
    },
  })
  assert.ok(isThere)
  for (const start of bad) bytes.fill(0, start, Math.min(start + 4096, bytes.length))
  assert.ok(readFileSync(to).equals(bytes))
  assert.not.ok(await salvage({ from: `${directory}/none`, to: `${directory}/other`, signal }))
  assert.not.ok(existsSync(`${directory}/other`))
})

if (canRunAsRoot('parity on a full drive')) {
  for (const isKnown of [true, false]) {
    const how = isKnown ? 'that says so' : 'that does not say so'
    parity(`a full target ${how} costs the parity, and no export`, async () => {
      const device = loopDevice({ sizeMib: 16 })
      const scenario = await makeScenario({ target: device.path })
      writeFileSync(`${scenario.source}/a`, randomBytes(4 * MIB))
      await scenario.generation()
      // Everything but a little is taken: the small files get theirs.
      const free = Number(stock('stat', ['-f', '-c', '%a', device.path])) * 4096
      writeFileSync(`${device.path}/filler`, Buffer.alloc(free - 200_000))
      const before = inventory(scenario.target)
      const change = (target: Target): void => {
        if (!isKnown) target.freeBytes = async () => await Promise.resolve(undefined)
      }
      const { outcome, notices } = await add(scenario, { change })
      assert.ok((outcome?.withoutRoom ?? 0) > 0)
      assert.is(notices.length, 1)
      assert.match(notices[0]!, /^PARITY_MISSING drive has no room for the parity of \d file/)
      const after = inventory(scenario.target)
      for (const name of parityIn(scenario)) after.delete(name)
      assert.equal(after, before)
      assertNoLeftovers(scenario.staging, scenario.target)
      assertNoScratch(scenario)
      await assertWhole(scenario)
      rmSync(`${device.path}/filler`)
      assert.is((await add(scenario)).outcome?.withoutRoom, 0)
      assert.is(parityIn(scenario).length, protectedIn(scenario).length)
      device.unmount()
    })
  }
}

parity.run()
