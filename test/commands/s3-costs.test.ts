// Money, end to end: told before it is spent, counted afterwards, and stopped by `cost_limit`
// before anything is.

import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { type CloudScenario, makeCloud } from '../helpers/cloud-scenario.ts'
import { writePriceList } from '../helpers/price-list.ts'
import { randomFrom } from '../helpers/random.ts'
import { configure, jsonLines, type Properties } from '../helpers/scenario.ts'

const costs = suite('commands/s3-costs')
const random = randomFrom('s3-costs')

const BUNDLE = /\/data-\d+\.tar\.zst\.age$/

/** A bucket with prices, and a collection that is not exported yet. */
async function withPrices(work: (cloud: CloudScenario) => Promise<void>): Promise<void> {
  const cloud = await makeCloud()
  try {
    setTarget(cloud, { prices: writePriceList(cloud.directory) })
    writeFileSync(`${cloud.source}/file`, random.bytes(1_000_000))
    assert.is((await cloud.collect()).status, 0)
    await work(cloud)
  } finally {
    await cloud.server.close()
  }
}

function setTarget(cloud: CloudScenario, change: Properties): void {
  configure(cloud, (properties) => {
    Object.assign(properties['targets'][0] as Properties, change)
  })
}

costs('an export says before it what it costs, and after it what it did', async () => {
  await withPrices(async (cloud) => {
    const outcome = await cloud.external('--json')
    assert.is(outcome.status, 0, outcome.stderr)
    const lines = outcome.stdout.split('\n')
    const estimates = jsonLines(outcome, 'notice').filter(({ code }) => code === 'COST_ESTIMATE')
    assert.is(estimates.length, 1)
    const { message, facts } = estimates[0] as { message: string; facts: Properties }
    const form =
      /about €0\.\d+ to upload, €0\.\d+ a month \(data €0\.\d+, metadata €0\.\d+\) more; /
    assert.match(message, form)
    assert.match(message, 'prices of 2026-10')
    assert.ok(facts['bytes'] >= 1_000_000)
    // At least a bundle, a catalog, a list, its signature, and a manifest, 0.001 each.
    assert.ok(facts['micros'] >= 5000)
    const [result = ''] = lines.filter((line) => line.includes('"outcome":"exported"'))
    const [estimate = ''] = lines.filter((line) => line.includes('COST_ESTIMATE'))
    assert.ok(lines.indexOf(estimate) < lines.indexOf(result))

    const ended = jsonLines(outcome, 'result').find((line) => line['outcome'] === 'ended')
    const cost = ended!['cost'] as Properties
    assert.is(cost['currency'], 'EUR')
    assert.is(cost['known'], true)
    // What is there, by its size: a millionth of a Euro for each kB, once for data, once for all.
    const objects = [...cloud.server.objects()].filter(([key]) => !key.includes('/.probe/'))
    const bytesOf = (isData: boolean): number => {
      const ours = objects.filter(([key]) => BUNDLE.test(key) === isData)
      return ours.reduce((sum, [, { body }]) => sum + body.length, 0)
    }
    assert.ok(Math.abs(cost['monthlyDataMicros'] - bytesOf(true) / 1000) <= 2)
    assert.ok(Math.abs(cost['monthlyMetadataMicros'] - bytesOf(false) / 1000) <= 2)
    // Each is rounded for itself.
    const parts = cost['monthlyDataMicros'] + cost['monthlyMetadataMicros']
    assert.ok(Math.abs(cost['monthlyMicros'] - parts) <= 1)
    // And what was asked for: no request of the run is left out.
    const charged = cloud.server.requests.filter(({ action }) => !/^Delete|^Abort/.test(action))
    assert.ok(cost['spentMicros'] >= 5000)
    assert.ok(cost['spentMicros'] <= charged.length * 1000 + 1000, 'no more than it asked for')

    const text = await cloud.external()
    assert.is(text.status, 0)
    assert.match(
      text.stdout + text.stderr,
      /this run cost €0\.\d+; what is there costs €0\.\d+ a month/,
    )
  })
})

costs('a limit of nothing stops an upload before more than small objects are there', async () => {
  await withPrices(async (cloud) => {
    setTarget(cloud, { cost_limit: 0 })
    const stopped = await cloud.external()
    assert.is(stopped.status, 4, stopped.stdout + stopped.stderr)
    assert.match(stopped.stderr, /the upload would cost €0\.\d+, the limit is €0/)
    const objects = [...cloud.server.objects()]
    assert.equal(
      objects.filter(([key]) => /\/data\//.test(key)),
      [],
      'nothing of the export',
    )
    for (const [key, { body }] of objects) assert.ok(body.length < 100_000, key)
    assert.equal(cloud.server.uploads(), [])
    const sent = cloud.server.requests.reduce((sum, { bytesIn }) => sum + bytesIn, 0)
    assert.ok(sent < 200_000, `${sent} bytes were sent`)
    // Exactly the limit is done.
    setTarget(cloud, { cost_limit: 1 })
    assert.is((await cloud.external()).status, 0)
  })
})

costs('a restore and a verification say what they cost, and hold to the limit', async () => {
  await withPrices(async (cloud) => {
    assert.is((await cloud.external()).status, 0)
    const into = `${cloud.directory}/back`
    const restored = await cloud.restore('--into', into, '--json')
    const said = jsonLines(restored, 'notice').filter(({ code }) => code === 'COST_ESTIMATE')
    assert.is(said.length, 1, restored.stdout)
    assert.match(said[0]!['message'] as string, /reading it from cloud costs about €0\.\d+.*egress/)
    const verified = await cloud.restore('--verify', '--json')
    assert.is(verified.status, 0, verified.stderr)
    const told = jsonLines(verified, 'notice').filter(({ code }) => code === 'COST_ESTIMATE')
    assert.is(told.length, 1, verified.stdout)

    setTarget(cloud, { cost_limit: 0 })
    cloud.server.resetRequests()
    const nowhere = `${cloud.directory}/nowhere`
    const stopped = await cloud.restore('--into', nowhere)
    assert.is(stopped.status, 4, stopped.stdout + stopped.stderr)
    assert.match(stopped.stderr, /the restore would cost €0\.\d+/)
    assert.equal(existsSync(nowhere) ? readdirSync(nowhere) : [], [])
    const unread = await cloud.restore('--verify')
    assert.is(unread.status, 4, unread.stdout + unread.stderr)
    assert.match(unread.stderr, /the verification would cost €0\.\d+/)
    const read = cloud.server.requests.filter(({ action, key }) => {
      return action === 'GetObject' && BUNDLE.test(key)
    })
    assert.equal(read, [], 'no bundle was read')
  })
})

costs('without prices nothing is told, and a limit that cannot be judged stops', async () => {
  const cloud = await makeCloud()
  try {
    writeFileSync(`${cloud.source}/file`, random.bytes(100_000))
    assert.is((await cloud.collect()).status, 0)
    setTarget(cloud, { cost_limit: 1000 })
    const stopped = await cloud.external()
    assert.is(stopped.status, 4, stopped.stdout + stopped.stderr)
    assert.match(stopped.stderr, 'unknown')
    assert.match(stopped.stderr, 'prices')
    assert.equal(
      [...cloud.server.objects().keys()].filter((key) => /\/data\//.test(key)),
      [],
    )
    configure(cloud, (properties) => {
      delete properties['targets'][0].cost_limit
    })
    const exported = await cloud.external('--json')
    assert.is(exported.status, 0, exported.stderr)
    assert.not.match(exported.stdout, 'COST_ESTIMATE')
    assert.not.match(exported.stdout, '"cost"')
    const verified = await cloud.restore('--verify', '--json')
    assert.is(verified.status, 0, verified.stderr)
    assert.not.match(verified.stdout, 'COST_ESTIMATE')
  } finally {
    await cloud.server.close()
  }
})

costs('a price list that is wrong ends the run before anything is sent', async () => {
  const cloud = await makeCloud()
  try {
    writeFileSync(`${cloud.source}/file`, random.bytes(100_000))
    assert.is((await cloud.collect()).status, 0)
    const prices = `${cloud.directory}/wrong.yaml`
    writeFileSync(prices, 'tables:\n  - provder: x\n')
    setTarget(cloud, { prices })
    const refused = await cloud.external()
    assert.is.not(refused.status, 0)
    assert.is.not(refused.status, 70, refused.stderr)
    assert.match(refused.stderr, 'wrong.yaml')
    assert.equal(
      [...cloud.server.objects().keys()].filter((key) => /\/data\//.test(key)),
      [],
    )
  } finally {
    await cloud.server.close()
  }
})

costs.run()
