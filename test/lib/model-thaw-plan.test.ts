import { isAlwaysHot } from '../../lib/model/storage-class.ts'
import { suite } from 'uvu'
import { loadPriceList } from '../../lib/machine/price-list.ts'
import {
  type BundleJoin,
  bundlesToJoin,
  joiningPays,
  type ShortBundle,
} from '../../lib/model/join-bundles.ts'
import { NO_PRICES, pricesFor } from '../../lib/model/prices.ts'
import {
  daysToFetch,
  describeThawPlan,
  estimateFetchMs,
  isExpiringSoon,
  itemsToRequest,
  latestThawMs,
  makeThawPlan,
  parseTier,
  priceOfThaw,
  type ThawItem,
  type ThawState,
} from '../../lib/model/thaw-plan.ts'
import * as assert from '../helpers/assert.ts'

const plan = suite('model/thaw-plan')
const list = await loadPriceList()
const prices = pricesFor(list, { endpoint: undefined, region: 'us-east-1' })!
const HOUR_MS = 3_600_000
const MIB = 2 ** 20

function item(path: string, storageClass: string, state: ThawState): ThawItem {
  return { path, sizeBytes: 100 * MIB, storageClass, versionId: undefined, state }
}

const cold = { kind: 'cold' } as const
const hours = (offers: readonly { tier: string; minMs: number; maxMs: number }[]) =>
  offers.map(({ tier, minMs, maxMs }) => [tier, minMs / HOUR_MS, maxMs / HOUR_MS])

plan('counts what is hot, thawed, thawing and cold, by class', () => {
  const made = makeThawPlan({
    items: [
      item('a', 'STANDARD', { kind: 'hot' }),
      item('b', 'GLACIER', { kind: 'thawed', untilMs: 70 }),
      item('c', 'GLACIER', { kind: 'thawed', untilMs: 60 }),
      item('d', 'DEEP_ARCHIVE', { kind: 'thawing' }),
      item('e', 'GLACIER', cold),
      item('f', 'GLACIER', cold),
    ],
    missing: ['g'],
    days: 7,
  })
  assert.equal(
    [made.hot, made.thawed, made.thawing, made.cold].map(({ count }) => count),
    [1, 2, 1, 2],
  )
  assert.is(made.firstUntilMs, 60)
  assert.equal(made.coldByClass, [{ storageClass: 'GLACIER', count: 2, bytes: 200 * MIB }])
  assert.is(latestThawMs(made), 48 * HOUR_MS, 'whoever asked may have taken the slowest')
  assert.equal(
    describeThawPlan(made)[0],
    '6 bundles are needed (600 MiB): 3 (300 MiB) can be read now, 1 (100 MiB) are being thawed, '
      + '2 (200 MiB) are in cold storage (GLACIER), 1 are missing',
  )
})

plan('offers the documented hours, and only what every class has', () => {
  const glacier = item('a', 'GLACIER', cold)
  assert.equal(hours(makeThawPlan({ items: [glacier], days: 7 }).offers), [
    ['Bulk', 5, 12],
    ['Standard', 3, 5],
    ['Expedited', 1 / 60, 5 / 60],
  ])
  const deep = item('b', 'DEEP_ARCHIVE', cold)
  const both = makeThawPlan({ items: [glacier, deep], days: 7 })
  assert.equal(hours(both.offers), [
    ['Bulk', 5, 48],
    ['Standard', 3, 12],
  ])
  const unknown = makeThawPlan({ items: [item('c', 'SOME_ARCHIVE', cold)], days: 7 })
  assert.equal(hours(unknown.offers), hours(makeThawPlan({ items: [deep], days: 7 }).offers))
  assert.equal(
    makeThawPlan({ items: [item('d', 'GLACIER_IR', { kind: 'hot' })], days: 7 }).offers,
    [],
  )
})

plan('asks for prices by class, tier and days, and shows what is not known', () => {
  const asked: unknown[] = []
  const made = makeThawPlan({
    items: [item('a', 'GLACIER', cold), item('b', 'STANDARD', { kind: 'hot' })],
    days: 3,
    priceOf: (request) => {
      asked.push(request)
      return request.tier === 'Bulk'
        ? { micros: 1_200_000, isWhole: true, text: '$1.20' }
        : undefined
    },
  })
  const amounts = [{ storageClass: 'GLACIER', count: 1, bytes: 100 * MIB }]
  const readable = [{ storageClass: 'STANDARD', count: 1, bytes: 100 * MIB }]
  assert.equal(asked[0], { tier: 'Bulk', days: 3, cold: amounts, readable })
  assert.equal(describeThawPlan(made).slice(1), [
    '  --thaw bulk       5 to 12 hours   $1.20',
    '  --thaw standard   3 to 5 hours    price not known',
    '  --thaw expedited  1 to 5 minutes  price not known',
  ])
})

plan('prices are those of the list, and what it lacks is said', () => {
  const items = [item('a', 'DEEP_ARCHIVE', cold), item('b', 'STANDARD', { kind: 'hot' })]
  const { offers } = makeThawPlan({ items, days: 7, priceOf: priceOfThaw(prices) })
  const [bulk, standard] = offers.map(({ price }) => price)
  assert.ok(bulk?.isWhole === true && standard?.isWhole === true)
  assert.ok(0 < bulk.micros && bulk.micros < standard.micros)
  assert.match(bulk.text, /^\$\d/)
  const none = makeThawPlan({ items, days: 7, priceOf: priceOfThaw(NO_PRICES) })
  assert.is(none.offers[0]?.price, undefined)
})

plan('knows which classes never have to be asked about', () => {
  for (const name of ['STANDARD', 'STANDARD_IA', 'GLACIER_IR']) assert.ok(isAlwaysHot(name), name)
  for (const name of ['GLACIER', 'DEEP_ARCHIVE', 'INTELLIGENT_TIERING', 'NEW_COLD']) {
    assert.not(isAlwaysHot(name), name)
  }
  assert.is(parseTier('bulk'), 'Bulk')
  assert.is(parseTier('fast'), undefined)
})

plan('asks for what is cold and what would go before it is fetched, and for nothing else', () => {
  const fetchMs = 10 * HOUR_MS
  const untilMs = 1000 + 2 * fetchMs + HOUR_MS
  const at = (ms: number): ThawState => ({ kind: 'thawed', untilMs: ms })
  const when = { nowMs: 1000, fetchMs }
  assert.is(isExpiringSoon(at(untilMs), when), false)
  assert.is(isExpiringSoon(at(untilMs - 1), when), true)
  assert.is(isExpiringSoon(cold, when), false)
  const items = [
    item('hot', 'STANDARD', { kind: 'hot' }),
    item('thawing', 'GLACIER', { kind: 'thawing' }),
    item('long', 'GLACIER', at(untilMs)),
    item('short', 'GLACIER', at(untilMs - 1)),
    item('cold', 'GLACIER', cold),
  ]
  const wanted = itemsToRequest(makeThawPlan({ items, days: 7 }), when)
  assert.equal(
    wanted.map(({ path }) => path),
    ['short', 'cold'],
  )
})

plan('keeps copies for as long as a slow line needs', () => {
  assert.is(estimateFetchMs({ bytes: 4 * MIB, bytesPerSecond: 2 * MIB }), 2000)
  assert.is(daysToFetch(estimateFetchMs({ bytes: 0 })), 1)
  assert.is(daysToFetch(11.5 * HOUR_MS), 1)
  assert.is(daysToFetch(11.5 * HOUR_MS + 1), 2)
})

const short = (name: string, sizeMib: number, neededMib = sizeMib): ShortBundle => {
  const [, stamp = ''] = name.split('/')
  return { name, sizeBytes: Math.round(sizeMib * MIB), neededBytes: neededMib * MIB, stamp }
}
const rules = { hotBelowBytes: 64 * MIB, bundleSizeBytes: 256 * MIB, pays: () => true }
const namesOf = (join: BundleJoin | undefined) => join?.bundles.map(({ name }) => name)

plan('joins short bundles once they make a long one, the oldest first', () => {
  const bundles = [short('a/2/data-0001', 30), short('b/1/data-0002', 30)]
  assert.is(bundlesToJoin(bundles, rules), undefined, '60 MiB is short itself')
  const more = [...bundles, short('a/3/data-0001', 7), short('a/0/data-0001', 64)]
  assert.is(bundlesToJoin(more, rules), undefined, '67 MiB might come out short')
  const enough = [...more, short('a/4/data-0001', 1)]
  assert.equal(namesOf(bundlesToJoin(enough, rules)), [
    ...['b/1/data-0002', 'a/2/data-0001', 'a/3/data-0001', 'a/4/data-0001'],
  ])
  assert.is(bundlesToJoin(enough, rules)?.bytes, 68 * MIB)
})

plan('counts only what is still needed, and never fills more than one bundle', () => {
  const halves = [short('a/1/data-0001', 60, 30), short('a/2/data-0001', 60, 30)]
  assert.is(bundlesToJoin(halves, rules), undefined)
  const many = Array.from({ length: 9 }, (_, day) => short(`a/${day}/data-0001`, 60))
  assert.is(bundlesToJoin(many, rules)?.bytes, 240 * MIB)
  assert.is(bundlesToJoin([...many, short('a/9/data-0001', 60, 0)], rules)?.bundles.length, 4)
})

plan('does not join what does not pay, nor where no bundle is ever long enough', () => {
  const bundles = [short('a/1/data-0001', 60), short('a/2/data-0001', 60)]
  const seen: BundleJoin[] = []
  const pays = (join: BundleJoin): boolean => seen.push(join) < 0
  assert.is(bundlesToJoin(bundles, { ...rules, pays }), undefined)
  assert.is(seen[0]?.bytes, 120 * MIB)
  assert.is(bundlesToJoin(bundles, { ...rules, bundleSizeBytes: 64 * MIB }), undefined)
})

plan('joining pays where a year in the cold is cheaper, and never where nobody knows', () => {
  const pair = [short('a/1/data-0001', 60), short('a/2/data-0001', 60)]
  const join = { bundles: pair, bytes: 120 * MIB }
  assert.ok(joiningPays(join, { prices, storageClass: 'DEEP_ARCHIVE' }))
  assert.not(joiningPays(join, { prices, storageClass: 'STANDARD' }))
  assert.not(joiningPays(join, { prices: NO_PRICES, storageClass: 'DEEP_ARCHIVE' }))
  const tiny = { bundles: [short('a/1/data-0001', 0.01), short('a/2/data-0001', 0.01)], bytes: 2e4 }
  assert.not(joiningPays(tiny, { prices, storageClass: 'DEEP_ARCHIVE' }))
})

plan.run()
