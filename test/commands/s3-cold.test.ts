// Bundles in archive classes, end to end: exported by checksum alone, never thawed by accident,
// thawed as far as they are needed, restored when they can be read. Promises 2 and 10.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { type CloudScenario, makeCloud } from '../helpers/cloud-scenario.ts'
import { writePriceList } from '../helpers/price-list.ts'
import { randomFrom } from '../helpers/random.ts'
import { assertNoLeftovers, configure, inventory, jsonLines, namesIn } from '../helpers/scenario.ts'

const cold = suite('commands/s3-cold')
const random = randomFrom('s3-cold')

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS

/** A few bundles that are large enough for the class, and perhaps a short one that is not. */
async function frozen(storageClass: string): Promise<CloudScenario> {
  const cloud = await makeCloud({ target: { storage_class: storageClass, hot_below: '1 MiB' } })
  try {
    configure(cloud, (properties) => {
      properties['targets'][0].prices = writePriceList(cloud.directory)
    })
    for (let i = 0; i < 4; i++) writeFileSync(`${cloud.source}/${i}`, random.bytes(4_500_000))
    mkdirSync(`${cloud.source}/small`)
    writeFileSync(`${cloud.source}/small/note`, 'short\n')
    await cloud.generation()
    assert.ok(coldKeys(cloud).length >= 2, [...cloud.server.objects().keys()].join('\n'))
    cloud.server.resetRequests()
    return cloud
  } catch (error) {
    await cloud.server.close()
    throw error
  }
}

function coldKeys({ server }: CloudScenario): string[] {
  return [...server.objects()]
    .filter(([, { storageClass }]) => storageClass !== 'STANDARD')
    .map(([key]) => key)
}

function asked({ server }: CloudScenario, action = 'RestoreObject'): string[] {
  return server.requests.filter((one) => one.action === action).map(({ key }) => key)
}

cold('only data bundles that are large enough go there, and none is read to prove it', async () => {
  for (const storageClass of ['DEEP_ARCHIVE']) {
    const cloud = await makeCloud({ target: { storage_class: storageClass, hot_below: '1 MiB' } })
    try {
      for (let i = 0; i < 4; i++) writeFileSync(`${cloud.source}/${i}`, random.bytes(4_500_000))
      await cloud.generation()
      const keys = coldKeys(cloud)
      assert.ok(keys.length >= 2)
      for (const [key, { storageClass: found, body }] of cloud.server.objects()) {
        const isCold = /\/data-\d+\.tar\.zst\.age$/.test(key) && body.length >= 2 ** 20
        assert.is(found, isCold ? storageClass : 'STANDARD', key)
      }
      const reads = cloud.server.requests.filter(({ action, key }) => {
        return action === 'GetObject' && /\/data-/.test(key)
      })
      assert.equal(reads, [])
      // What is sent has the checksum that the service compares.
      const sent = cloud.server.requests.filter(({ action, key }) => {
        return action === 'PutObject' && keys.includes(key)
      })
      assert.is(sent.length, keys.length)
      for (const { headers } of sent) assert.ok(headers['x-amz-checksum-crc32'])
    } finally {
      await cloud.server.close()
    }
  }
})

cold('a service that ignores checksums gets no bundle that could not be read back', async () => {
  const cloud = await makeCloud({
    quirks: { checksums: 'ignored', md5: 'ignored', fullObjectMultipart: false },
    target: { storage_class: 'GLACIER', hot_below: '100 KiB' },
  })
  try {
    writeFileSync(`${cloud.source}/one`, random.bytes(4_500_000))
    assert.is((await cloud.collect()).status, 0)
    const exported = await cloud.external()
    assert.is.not(exported.status, 0, exported.stdout)
    assert.match(exported.stderr, /proven/)
    const manifests = [...cloud.server.objects().keys()].filter((key) => /manifest/.test(key))
    assert.equal(manifests, [], 'no export exists')
  } finally {
    await cloud.server.close()
  }
})

cold(
  'without --thaw a restore shows a plan with prices and hours, and asks for nothing',
  async () => {
    for (const storageClass of ['DEEP_ARCHIVE', 'GLACIER']) {
      const cloud = await frozen(storageClass)
      try {
        const into = `${cloud.directory}/back`
        const said = await cloud.restore('--into', into)
        assert.is(said.status, 4, said.stdout + said.stderr)
        assert.match(said.stdout, /\d bundles are needed .*are in cold storage/)
        assert.match(said.stdout, storageClass)
        if (storageClass === 'GLACIER') {
          assert.match(said.stdout, /--thaw bulk +5 to 12 hours +€0\.\d+/)
          assert.match(said.stdout, /--thaw standard +3 to 5 hours +€0\.\d+/)
          assert.match(said.stdout, /--thaw expedited +1 to 5 minutes +€\d+\.\d+/)
        } else {
          assert.match(said.stdout, /--thaw bulk +within 48 hours +€0\.\d+/)
          assert.match(said.stdout, /--thaw standard +within 12 hours +€0\.\d+/)
          assert.not.match(said.stdout, 'expedited')
        }
        assert.equal(asked(cloud), [])
        assert.equal(namesIn(into, /./), [], 'nothing was written')

        const json = await cloud.restore('--into', into, '--json')
        assert.is(json.status, 4)
        assert.equal(asked(cloud), [])
      } finally {
        await cloud.server.close()
      }
    }
  },
)

cold(
  'a dry run from cold storage shows the plan, with --thaw too, and asks for nothing',
  async () => {
    const cloud = await frozen('DEEP_ARCHIVE')
    try {
      const into = `${cloud.directory}/back`
      for (const words of [[], ['--thaw', 'bulk', '--wait']]) {
        const said = await cloud.restore('--into', into, '--dry-run', ...words)
        assert.is(said.status, 0, said.stdout + said.stderr)
        assert.match(said.stdout, /--thaw bulk +within 48 hours +€0\.\d+/)
        assert.match(said.stdout + said.stderr, /would be restored/)
        assert.equal(asked(cloud), [])
        assert.equal(
          asked(cloud, 'GetObject').filter((key) => coldKeys(cloud).includes(key)),
          [],
        )
        assert.not.ok(existsSync(into))
      }
    } finally {
      await cloud.server.close()
    }
  },
)

cold('what is thawed is what --path needs, and --resume goes on once it is ready', async () => {
  const cloud = await frozen('DEEP_ARCHIVE')
  const into = `${cloud.directory}/back`
  const path = `${cloud.source}/2`
  const restore = ['--path', path, '--into', into]
  try {
    const asking = await cloud.restore(...restore, '--thaw', 'bulk')
    assert.is(asking.status, 75, asking.stdout + asking.stderr)
    const by = new Date(cloud.server.nowMs() + 48 * HOUR_MS).toISOString().slice(0, 10)
    assert.match(asking.stderr, `ready by ${by}`)
    assert.match(asking.stderr, '--resume')
    const requested = asked(cloud)
    assert.ok(requested.length >= 1 && requested.length < coldKeys(cloud).length)
    assert.is(new Set(requested).size, requested.length)
    assert.equal(namesIn(into, /./), [])

    // Too early, in every way of saying it.
    for (const words of [['--resume'], ['--thaw', 'bulk', '--resume'], []]) {
      const early = await cloud.restore(...restore, ...words)
      assert.is(early.status, 75, early.stdout + early.stderr)
      assert.is(asked(cloud).length, requested.length, 'nothing is asked for twice')
      assert.equal(namesIn(into, /./), [])
    }
    cloud.server.advance(48 * HOUR_MS + 1)
    const done = await cloud.restore(...restore, '--resume')
    assert.is(done.status, 0, done.stdout + done.stderr)
    assert.ok(readFileSync(`${into}${path}`).equals(readFileSync(path)))
    assert.is(asked(cloud).length, requested.length)
    assert.not.ok(existsSync(`${into}${cloud.source}/0`), 'only what was asked for')

    // The others are as cold as before.
    const all = await cloud.restore('--into', into, '--resume')
    assert.is(all.status, 4, all.stdout + all.stderr)
    assert.is(asked(cloud).length, requested.length)
    assertNoLeftovers(into)
  } finally {
    await cloud.server.close()
  }
})

cold('a file in a bundle that stayed hot is restored at once', async () => {
  const cloud = await frozen('DEEP_ARCHIVE')
  try {
    writeFileSync(`${cloud.source}/late`, 'late\n')
    await sleep(1000)
    await cloud.generation()
    cloud.server.resetRequests()
    const into = `${cloud.directory}/back`
    const restored = await cloud.restore('--path', `${cloud.source}/late`, '--into', into)
    assert.is(restored.status, 0, restored.stdout + restored.stderr)
    assert.is(readFileSync(`${into}${cloud.source}/late`, 'utf8'), 'late\n')
    assert.equal(asked(cloud), [])
  } finally {
    await cloud.server.close()
  }
})

cold('everything is thawed and comes back byte for byte', async () => {
  const cloud = await frozen('GLACIER')
  const into = `${cloud.directory}/back`
  try {
    const asking = await cloud.restore('--into', into, '--thaw', 'standard')
    assert.is(asking.status, 75, asking.stderr)
    assert.equal(asked(cloud).sort(), coldKeys(cloud).sort())
    cloud.server.advance(5 * HOUR_MS + 1)
    const done = await cloud.restore('--into', into, '--resume')
    assert.is(done.status, 0, done.stdout + done.stderr)
    assert.equal(inventory(`${into}${cloud.source}`), inventory(cloud.source))
    assertNoLeftovers(into)
  } finally {
    await cloud.server.close()
  }
})

cold('--wait waits until the copies can be read', async () => {
  const cloud = await frozen('GLACIER')
  const into = `${cloud.directory}/back`
  try {
    // Whoever asked first: with --wait the program looks again after a minute, unless all is there.
    const asking = await cloud.restore('--into', into, '--thaw', 'bulk')
    assert.is(asking.status, 75)
    const before = asked(cloud).length
    cloud.server.resetRequests()
    const ended = cloud.server.fault({
      ...{ kind: 'slow', ms: 1500 },
      ...{ action: 'HeadObject', key: /\/data-/, times: 1 },
    })
    const waiting = cloud.restore('--into', into, '--wait')
    while (asked(cloud, 'HeadObject').length === 0) await sleep(20)
    cloud.server.advance(12 * HOUR_MS + 1)
    const done = await waiting
    ended()
    assert.is(done.status, 0, done.stdout + done.stderr)
    assert.ok(before > 0)
    assert.equal(asked(cloud), [], 'nothing is asked for again')
    assert.equal(inventory(`${into}${cloud.source}`), inventory(cloud.source))
  } finally {
    await cloud.server.close()
  }
})

cold('copies that expired are asked for again only where --thaw says so', async () => {
  const cloud = await frozen('GLACIER')
  const into = `${cloud.directory}/back`
  try {
    assert.is((await cloud.restore('--into', into, '--thaw', 'bulk')).status, 75)
    const keys = coldKeys(cloud).sort()
    cloud.server.advance(30 * DAY_MS)
    cloud.server.resetRequests()
    const late = await cloud.restore('--into', into, '--resume')
    assert.is(late.status, 4, late.stdout + late.stderr)
    assert.equal(asked(cloud), [])
    assert.equal(namesIn(into, /./), [])
    const again = await cloud.restore('--into', into, '--resume', '--thaw', 'bulk')
    assert.is(again.status, 75, again.stdout + again.stderr)
    assert.equal(asked(cloud).sort(), keys)
    cloud.server.advance(12 * HOUR_MS + 1)
    const done = await cloud.restore('--into', into, '--resume')
    assert.is(done.status, 0, done.stdout + done.stderr)
    assert.equal(inventory(`${into}${cloud.source}`), inventory(cloud.source))
  } finally {
    await cloud.server.close()
  }
})

cold('a copy that expires in the middle ends the restore, and the next one finishes', async () => {
  const cloud = await frozen('GLACIER')
  const into = `${cloud.directory}/back`
  try {
    assert.is((await cloud.restore('--into', into, '--thaw', 'bulk')).status, 75)
    cloud.server.advance(12 * HOUR_MS + 1)
    const gone = coldKeys(cloud)[1]!
    const ended = cloud.server.fault({
      ...{ kind: 'error', status: 403, code: 'InvalidObjectState' },
      ...{ action: 'GetObject', key: new RegExp(gone.replaceAll('.', '\\.')) },
    })
    const broken = await cloud.restore('--into', into, '--resume')
    assert.is(broken.status, 4, broken.stdout + broken.stderr)
    assert.match(broken.stderr, gone)
    const wanted = inventory(cloud.source)
    for (const [name, digest] of inventory(`${into}${cloud.source}`)) {
      if (!name.endsWith('.partial')) assert.is(digest, wanted.get(name), 'no half file')
    }
    ended()
    const done = await cloud.restore('--into', into, '--resume')
    assert.is(done.status, 0, done.stdout + done.stderr)
    assert.equal(inventory(`${into}${cloud.source}`), wanted)
    assertNoLeftovers(into)
  } finally {
    await cloud.server.close()
  }
})

cold('verify never thaws, names what it did not read, and is no proof', async () => {
  const cloud = await frozen('DEEP_ARCHIVE')
  try {
    const receipts = `${cloud.staging}/.state`
    const before = JSON.stringify([...inventory(receipts).keys()].filter((n) => /receipt/.test(n)))
    const verified = await cloud.restore('--verify')
    assert.is(verified.status, 3, verified.stdout + verified.stderr)
    const said = verified.stdout + verified.stderr
    for (const key of coldKeys(cloud)) {
      const bundle = /data\/[^/]+\/data-\d+/.exec(key)?.[0]
      assert.match(said, bundle!, `${key} is named`)
    }
    assert.not.match(verified.stdout, /: whole/)
    assert.equal(asked(cloud), [])
    const after = JSON.stringify([...inventory(receipts).keys()].filter((n) => /receipt/.test(n)))
    assert.is(after, before, 'no receipt')
    // One that is gone is told all the same.
    cloud.server.lose('bucket', coldKeys(cloud)[0]!)
    const missing = await cloud.restore('--verify')
    assert.is(missing.status, 13, missing.stdout + missing.stderr)
    assert.equal(asked(cloud), [])
  } finally {
    await cloud.server.close()
  }
})

cold('a tier that the class lacks is refused, and nothing is asked for', async () => {
  const cloud = await frozen('DEEP_ARCHIVE')
  try {
    const into = `${cloud.directory}/back`
    for (const tier of ['expedited', 'soon']) {
      const refused = await cloud.restore('--into', into, '--thaw', tier)
      assert.is(refused.status, 2, refused.stdout + refused.stderr)
      assert.match(refused.stderr, tier)
    }
    assert.equal(asked(cloud), [])
    assert.not.ok(existsSync(`${into}${cloud.source}`))
  } finally {
    await cloud.server.close()
  }
})

cold('a limit stops a thaw before anything is asked for', async () => {
  const cloud = await frozen('GLACIER')
  try {
    configure(cloud, (properties) => {
      properties['targets'][0].cost_limit = 5
    })
    const into = `${cloud.directory}/back`
    // Ten a request.
    const refused = await cloud.restore('--into', into, '--thaw', 'expedited')
    assert.is(refused.status, 4, refused.stdout + refused.stderr)
    assert.match(refused.stderr, /the limit is €5/)
    assert.equal(asked(cloud), [])
    const bulk = await cloud.restore('--into', into, '--thaw', 'bulk')
    assert.is(bulk.status, 75, bulk.stdout + bulk.stderr)
  } finally {
    await cloud.server.close()
  }
})

cold('the machine goes on exporting without reading what is cold', async () => {
  const cloud = await frozen('DEEP_ARCHIVE')
  try {
    writeFileSync(`${cloud.source}/new`, random.bytes(4_500_000))
    await sleep(1000)
    const next = await cloud.generation()
    assert.not.ok(next.full)
    assert.equal(asked(cloud), [])
    const read = asked(cloud, 'GetObject').filter((key) => coldKeys(cloud).includes(key))
    assert.equal(read, [])
    assert.ok(jsonLines(await cloud.restore('--list', '--json'), 'result').length > 0)
  } finally {
    await cloud.server.close()
  }
})

cold.run()
