import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import {
  addCosts,
  type Cost,
  groupObjects,
  monthlyCost,
  type ObjectGroup,
  paysToRewrite,
  pruneCost,
  restoreCost,
  runCost,
  uploadCost,
  verifyCost,
} from '../../lib/model/cost.ts'
import { isOverLimit, refuseOverLimit } from '../../lib/model/cost-limit.ts'
import {
  describeCost,
  describePrices,
  describePrune,
  describeRestore,
  describeUpload,
  formatMoney,
} from '../../lib/model/cost-text.ts'
import { NO_PRICES, parsePrices, pricesFor, type RegionPrices } from '../../lib/model/prices.ts'
import * as assert from '../helpers/assert.ts'

const GIB = 2 ** 30
const KIB = 2 ** 10
const MIB = 2 ** 20

/** Amazon's form with figures that are easy to compute with; UNPRICED has rules and no prices. */
const LIST = {
  sources: {
    one: { url: 'https://example.org/one', date: '2026-05-31', certainty: 'reported' },
    two: { url: 'https://example.org/two', date: '2026-07-01', certainty: 'published' },
  },
  tables: [
    {
      provider: 'Example',
      hosts: ['example.org'],
      regions: ['here'],
      source: 'one',
      currency: 'USD',
      gb_bytes: GIB,
      list: 0.005,
      egress: { free_gb: 100, bands: [{ up_to_gb: 200, price: 0.09 }, { price: 0.05 }] },
      classes: {
        STANDARD: { storage: 0.023, requests: { put: 0.005, get: 0.0004 }, read: 0 },
        STANDARD_IA: {
          storage: 0.0125,
          minimum_days: 30,
          minimum_bytes: 128 * KIB,
          requests: { put: 0.01, get: 0.001 },
          read: 0.01,
        },
        INTELLIGENT_TIERING: {
          storage: 0.023,
          monitoring: 0.0025,
          monitored_from_bytes: 128 * KIB,
          requests: { put: 0.005, get: 0.0004 },
          read: 0,
        },
        GLACIER: {
          storage: 0.0036,
          minimum_days: 90,
          overhead: { own_bytes: 32 * KIB, standard_bytes: 8 * KIB },
          requests: { put: 0.03, get: 0.0004, parts_as: 'STANDARD' },
          tiers: {
            Bulk: { price: 0, requests: 0, within: '12h' },
            Standard: { price: 0.01, requests: 0.05, within: '5h' },
            Expedited: { price: 0.03, requests: 10, within: '5min' },
          },
        },
        DEEP_ARCHIVE: {
          storage: 0.00099,
          minimum_days: 180,
          requests: { put: 0.05, get: 0.0004, parts_as: 'STANDARD' },
          tiers: {
            Bulk: { price: 0.0025, requests: 0.025, within: '48h' },
            Standard: { price: 0.02, requests: 0.1, within: '12h' },
          },
        },
        UNPRICED: { minimum_days: 10, tiers: { Bulk: { within: '12h' } } },
      },
    },
    {
      provider: 'Flat',
      hosts: ['flat.example'],
      source: 'two',
      currency: 'EUR',
      list: 0,
      base_month: 6.49,
      egress: { free_times_stored: 3, bands: [{ up_to_gb: 5000, price: 0.01 }] },
      classes: {
        STANDARD: { storage: 0.006, included_gb: 1000, requests: { put: 0, get: 0 }, read: 0 },
      },
    },
  ],
}

const list = parsePrices(LIST)
const amazon = found({ endpoint: 'https://s3.example.org', region: 'here' })
const flat = found({ endpoint: 'flat.example', region: undefined })

function found(where: { endpoint: string; region: string | undefined }): RegionPrices {
  const prices = pricesFor(list, where)
  if (prices === undefined) throw new Error('the list lacks its own tables')
  return prices
}

function group(storageClass: string, of: Partial<ObjectGroup> = {}): ObjectGroup {
  return { storageClass, kind: 'data', objects: 1, bytes: 0, ...of }
}

function micros(cost: Cost): number {
  assert.equal(cost.unknown, [])
  assert.ok(cost.known)
  return cost.micros
}

const cost = suite('cost')

cost('each object is a request of its class, and of one in parts the parts are of STANDARD', () => {
  // 1000 × 0.03 / 1000 = 0.03
  const single = group('GLACIER', { objects: 1000 })
  assert.is(micros(uploadCost({ prices: amazon, groups: [single] })), 30_000)
  // One of them in 20 parts: 1000 × 0.03 / 1000 + 21 × 0.005 / 1000 = 0.030105
  const parts = { ...single, multipart: { objects: 1, parts: 20 } }
  assert.is(micros(uploadCost({ prices: amazon, groups: [parts] })), 30_105)
  // 20 lists and 50 reads besides: 0.0001 + 0.00002
  const all = uploadCost({ prices: amazon, groups: [parts], lists: 20, reads: 50 })
  assert.is(micros(all), 30_225)
})

cost('objects are grouped by class and kind, and go up in parts above the part size only', () => {
  const sizes = [8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 24 * MIB]
  const objects = sizes.map((sizeBytes) => {
    return { storageClass: 'GLACIER', kind: 'data', sizeBytes } as const
  })
  const manifest = { storageClass: 'STANDARD', kind: 'metadata', sizeBytes: 100 } as const
  const groups = groupObjects([...objects, manifest], { prices: amazon, partBytes: 8 * MIB })
  assert.is(groups.length, 2)
  const bytes = 48 * MIB
  const multipart = { objects: 2, parts: 2 + 3 }
  const kind = 'data'
  assert.equal(groups[0], {
    ...{ storageClass: 'GLACIER', kind, objects: 4, bytes, billedBytes: bytes },
    ...{ monitored: 4, multipart },
  })
  assert.is(groups[1]?.kind, 'metadata')
  assert.is(groups[1]?.multipart?.parts, 0)
})

cost('a month is told for data apart from metadata', () => {
  const stored = [
    group('STANDARD', { bytes: 10 * GIB }),
    group('STANDARD', { kind: 'metadata', bytes: GIB / 2 }),
  ]
  const { total, data, metadata } = monthlyCost({ prices: amazon, stored })
  assert.is(micros(data), 230_000)
  assert.is(micros(metadata), 11_500)
  assert.is(micros(total), 241_500)
  const upload = uploadCost({ prices: amazon, groups: [group('STANDARD', { objects: 2400 })] })
  const text = '$0.012 to upload, $0.24 a month (data $0.23, metadata $0.012)'
  assert.is(describeUpload(upload, { total, data, metadata }), text)
})

for (const [sizeBytes, billed] of [
  [128 * KIB - 1, 128 * KIB],
  [128 * KIB, 128 * KIB],
  [128 * KIB + 1, 128 * KIB + 1],
] as const) {
  cost(`STANDARD_IA charges ${sizeBytes} bytes as ${billed}`, () => {
    const object = { storageClass: 'STANDARD_IA', kind: 'data', sizeBytes } as const
    const [one] = groupObjects([object], { prices: amazon, partBytes: MIB })
    assert.is(one?.billedBytes, billed)
    // 2^24 of them, so that a byte shows: 2^24 × billed × 0.0125 / 2^30.
    const stored = [{ ...one!, objects: 2 ** 24, billedBytes: 2 ** 24 * billed }]
    const { total } = monthlyCost({ prices: amazon, stored })
    assert.is(micros(total), Math.round((2 ** 24 * billed * 12_500) / GIB))
  })
}

cost('a small object does not take from what a large one of its group is charged for', () => {
  const sizes = [1, 255 * KIB]
  const objects = sizes.map((sizeBytes) => {
    return { storageClass: 'STANDARD_IA', kind: 'data', sizeBytes } as const
  })
  const [both] = groupObjects(objects, { prices: amazon, partBytes: MIB })
  assert.is(both?.billedBytes, 128 * KIB + 255 * KIB)
})

cost('without sizes small objects are charged as the least', () => {
  const stored = [group('STANDARD_IA', { objects: 8192, bytes: 8192 })]
  // 8192 × 128 KiB = 1 GiB.
  assert.is(micros(monthlyCost({ prices: amazon, stored }).total), 12_500)
})

cost('each object in GLACIER is charged for 32 KiB more, and for 8 KiB in STANDARD', () => {
  // 2^20 objects of nothing: 32 GiB × 0.0036 + 8 GiB × 0.023 = 0.1152 + 0.184
  const stored = [group('GLACIER', { objects: 2 ** 20 })]
  assert.is(micros(monthlyCost({ prices: amazon, stored }).total), 299_200)
})

cost('INTELLIGENT_TIERING monitors what is large enough', () => {
  const sizes = [128 * KIB - 1, 128 * KIB, 128 * KIB + 1]
  const objects = sizes.map((sizeBytes) => {
    return { storageClass: 'INTELLIGENT_TIERING', kind: 'data', sizeBytes } as const
  })
  const [three] = groupObjects(objects, { prices: amazon, partBytes: MIB })
  assert.is(three?.monitored, 2)
  const stored = [group('INTELLIGENT_TIERING', { objects: 1000, bytes: 0, monitored: 1000 })]
  assert.is(micros(monthlyCost({ prices: amazon, stored }).total), 2500)
})

for (const [gb, expected] of [
  [999, 6_490_000],
  [1000, 6_490_000],
  [1001, 6_496_000],
] as const) {
  cost(`${gb} GB where the base price has 1000 cost ${expected / 1e6}`, () => {
    const stored = [group('STANDARD', { bytes: gb * 1e9 })]
    const monthly = monthlyCost({ prices: flat, stored })
    assert.is(micros(monthly.total), expected)
    assert.match(
      describeUpload(uploadCost({ prices: flat, groups: stored }), monthly),
      'base price',
    )
  })
}

cost('what is added costs nothing as long as the account is below what the base price has', () => {
  const stored = [group('STANDARD', { bytes: 10e9 })]
  const added = (gb: number) => {
    const besides = [{ storageClass: 'STANDARD', bytes: gb * 1e9 }]
    return micros(monthlyCost({ prices: flat, stored, besides }).total)
  }
  assert.is(added(0), 0)
  assert.is(added(990), 0)
  // 5 of the 10 GB: 0.03
  assert.is(added(995), 30_000)
  assert.is(added(2000), 60_000)
})

for (const [bytes, expected] of [
  [100 * GIB - 1, 0],
  [100 * GIB, 0],
  // 2^20 bytes are 0.00009 / 1.024…: 0.09 × 2^20 / 2^30 = 0.000088
  [100 * GIB + MIB, 88],
  [200 * GIB, 9_000_000],
  // The second band: 100 × 0.09 + 20 × 0.05
  [220 * GIB, 10_000_000],
] as const) {
  cost(`of ${bytes} bytes out in a month 100 GB are free: ${expected}`, () => {
    const read = [{ storageClass: 'STANDARD', requests: 0, bytes }]
    assert.is(micros(verifyCost({ prices: amazon, read })), expected)
  })
}

cost('what went out before has used up the free egress', () => {
  const read = [{ storageClass: 'STANDARD', requests: 1000, bytes: 10 * GIB }]
  const after = (gb: number) => {
    return micros(verifyCost({ prices: amazon, read, egress: { usedBytes: gb * GIB } }))
  }
  // The requests: 0.0004
  assert.is(after(90), 400)
  assert.is(after(91), 400 + 90_000)
  assert.is(after(100), 400 + 900_000)
  assert.is(after(195), 400 + 5 * 90_000 + 5 * 50_000)
})

cost('where three times the stored is free, one read of all of it costs nothing', () => {
  const read = [{ storageClass: 'STANDARD', requests: 5, bytes: 1000e9 }]
  assert.is(micros(verifyCost({ prices: flat, read })), 0)
  const stored = (gb: number) =>
    verifyCost({ prices: flat, read, egress: { storedBytes: gb * 1e9 } })
  assert.is(micros(stored(334)), 0)
  // 1000 - 3 × 300 = 100 GB × 0.01
  assert.is(micros(stored(300)), 1_000_000)
})

cost('what has no band has no price', () => {
  const read = [{ storageClass: 'STANDARD', requests: 0, bytes: 6000e9 }]
  const far = verifyCost({ prices: flat, read, egress: { storedBytes: 0 } })
  assert.not.ok(far.known)
  assert.equal(far.unknown, ['egress beyond 5000 GB'])
  assert.is(far.micros, 50_000_000)
})

cost('STANDARD_IA charges for reading, beside requests and egress', () => {
  const read = [{ storageClass: 'STANDARD_IA', requests: 1000, bytes: 10 * GIB }]
  // 1000 × 0.001 / 1000 + 10 × 0.01
  assert.is(micros(verifyCost({ prices: amazon, read })), 101_000)
})

cost('a restore is offered by every tier that all classes have', () => {
  const glacier = { storageClass: 'GLACIER', objects: 1000, bytes: 50 * GIB }
  const deep = { storageClass: 'DEEP_ARCHIVE', objects: 1000, bytes: 100 * GIB }
  const both = restoreCost({ prices: amazon, cold: [glacier, deep], hot: [], days: 7 })
  assert.equal(
    both.map(({ tier, hours }) => [tier, hours]),
    [
      ['Bulk', 48],
      ['Standard', 12],
    ],
  )
  const one = restoreCost({ prices: amazon, cold: [glacier], hot: [], days: 7 })
  assert.equal(
    one.map(({ tier }) => tier),
    ['Bulk', 'Standard', 'Expedited'],
  )
  const by = { prices: amazon, hot: [], days: 7, tier: 'Expedited' } as const
  assert.equal(restoreCost({ ...by, cold: [glacier, deep] }), [])
  assert.equal(restoreCost({ ...by, cold: [glacier] })[0]?.tier, 'Expedited')
})

cost('a restore costs retrieval, its requests, the copies, requests and egress', () => {
  const cold = [{ storageClass: 'DEEP_ARCHIVE', objects: 1000, bytes: 110 * GIB }]
  const hot = [{ storageClass: 'STANDARD', requests: 500, bytes: 5 * GIB }]
  const [bulk, standard] = restoreCost({ prices: amazon, cold, hot, days: 3, lists: 100 })
  // 1000 × 0.025/1000 + 110 × 0.0025 + 110 × 3/30 × 0.023 = 0.025 + 0.275 + 0.253
  assert.is(micros(bulk!.thaw), 553_000)
  // (110 + 5 - 100) × 0.09
  assert.is(micros(bulk!.egress), 1_350_000)
  // 1500 GETs: 0.0006; 100 lists: 0.0005
  assert.is(micros(bulk!.cost), 553_000 + 1_350_000 + 400 + 200 + 500)
  // 0.1 + 2.2 + 0.253
  assert.is(micros(standard!.thaw), 2_553_000)
  assert.is(describeRestore(bulk!), 'Bulk: $1.90, of it $1.35 egress, within 48 h')
})

cost('of a thawed object only what is read goes out', () => {
  const cold = [{ storageClass: 'GLACIER', objects: 1, bytes: GIB, reads: 3, readBytes: 5 * MIB }]
  const [offer] = restoreCost({
    ...{ prices: amazon, cold, hot: [], days: 1, tier: 'Standard' },
    egress: { usedBytes: 100 * GIB },
  })
  // 5 MiB × 0.09 / GiB
  assert.is(micros(offer!.egress), 439)
  // 0.00005 + 0.01 + 0.023/30
  assert.is(micros(offer!.thaw), 50 + 10_000 + 767)
})

cost('where nothing is cold there is one offer, without a tier and without waiting', () => {
  const hot = [{ storageClass: 'STANDARD', requests: 1000, bytes: GIB }]
  const offers = restoreCost({ prices: amazon, cold: [], hot, days: 7 })
  assert.is(offers.length, 1)
  assert.is(offers[0]?.tier, undefined)
  assert.is(offers[0]?.hours, 0)
  assert.is(micros(offers[0]!.thaw), 0)
  assert.is(describeRestore(offers[0]!), '$0.0004')
})

for (const [storageClass, nano, days] of [
  ['GLACIER', 3_600_000, 90],
  ['DEEP_ARCHIVE', 990_000, 180],
  ['STANDARD_IA', 12_500_000, 30],
] as const) {
  cost(`deleting from ${storageClass} is free after ${days} days and not a day before`, () => {
    const sizeBytes = 300 * GIB
    const at = (ageDays: number) => {
      return pruneCost({ prices: amazon, objects: [{ storageClass, sizeBytes, ageDays }] })
    }
    // 300 × price × 1/30; in GLACIER there are 32 KiB more, too little to show.
    assert.is(micros(at(days - 1).earlyDeletion), nano / 100)
    assert.is(at(days - 1).freeInDays, 1)
    assert.is(at(days - 1).earlyObjects, 1)
    // A part of a day is a day that is charged for.
    assert.is(micros(at(days - 0.5).earlyDeletion), nano / 100)
    for (const age of [days, days + 1]) {
      assert.is(micros(at(age).earlyDeletion), 0)
      assert.is(at(age).freeInDays, 0)
      assert.is(at(age).earlyObjects, 0)
    }
    assert.is(micros(at(0).earlyDeletion), (nano / 100) * days)
  })
}

cost('a prune says what it saves, what it costs, and when it costs nothing', () => {
  const objects = [
    { storageClass: 'STANDARD', sizeBytes: 10 * GIB, ageDays: 0 },
    { storageClass: 'DEEP_ARCHIVE', sizeBytes: 100 * GIB, ageDays: 150 },
    { storageClass: 'DEEP_ARCHIVE', sizeBytes: 100 * GIB, ageDays: 400 },
  ]
  const prune = pruneCost({ prices: amazon, objects })
  // 10 × 0.023 + 200 × 0.00099
  assert.is(micros(prune.savesMonthly), 428_000)
  // 100 × 0.00099 × 30/30
  assert.is(micros(prune.earlyDeletion), 99_000)
  assert.is(
    describePrune(prune),
    'saves $0.43 a month; deleting 1 object early costs $0.099, in 30 days nothing',
  )
  const free = pruneCost({ prices: amazon, objects: objects.slice(0, 1) })
  assert.is(describePrune(free), 'saves $0.23 a month')
})

cost('below what the base price has, deleting saves nothing', () => {
  const objects = [{ storageClass: 'STANDARD', sizeBytes: 100e9, ageDays: 9 }]
  const saves = (gb: number) => {
    const remaining = [{ storageClass: 'STANDARD', bytes: gb * 1e9 }]
    return micros(pruneCost({ prices: flat, objects, remaining }).savesMonthly)
  }
  assert.is(saves(900), 0)
  assert.is(saves(950), 300_000)
  assert.is(saves(1000), 600_000)
})

cost('ten thousand objects are added up before they are rounded', () => {
  const object = { storageClass: 'DEEP_ARCHIVE', sizeBytes: MIB, ageDays: 179 }
  const objects = Array.from({ length: 10_240 }, () => object)
  // 10 GiB × 0.00099 / 30 = 0.00033; each by itself is 0.000000 03.
  assert.is(micros(pruneCost({ prices: amazon, objects }).earlyDeletion), 330)
})

cost('a run costs its requests by class, the others as of STANDARD, and what it received', () => {
  const uploaded = [
    group('GLACIER', { objects: 10, bytes: 10 * GIB, multipart: { objects: 10, parts: 320 } }),
    group('STANDARD', { kind: 'metadata', objects: 5, bytes: 0 }),
  ]
  const usage = { writes: 350, lists: 4, reads: 100, bytesSent: 10 * GIB, bytesReceived: MIB }
  const { spent, addsMonthly } = runCost({ prices: amazon, usage, uploaded })
  // 10 × 0.03 + 330 × 0.005 + 5 × 0.005 + 5 others × 0.005 + 4 × 0.005 + 100 × 0.0004, all / 1000:
  // 0.0003 + 0.00165 + 0.000025 + 0.000025 + 0.00002 + 0.00004
  assert.is(micros(spent), 2060)
  // 10 × 0.0036, and 10 × 32 KiB × 0.0036 + 10 × 8 KiB × 0.023 = 0.0000011 + 0.0000018
  assert.is(micros(addsMonthly.total), 36_003)
})

cost('rewriting pays as soon as the storage of a year is dearer than fee and request', () => {
  const sizeBytes = 256 * MIB
  const at = (storageClass: string, ageDays: number, neededBytes: number) => {
    return paysToRewrite({ prices: amazon, storageClass, sizeBytes, ageDays, neededBytes })
  }
  // GLACIER: 128 MiB for a year: 0.125 × 0.0036 × 365/30 = 0.005475; the fee for 90 days of
  // 256 MiB: 0.25 × 0.0036 × 3 = 0.0027; a request 0.00003.
  const half = at('GLACIER', 0, 128 * MIB)
  assert.is(micros(half.saves), 5475)
  assert.is(micros(half.costs), 2700 + 30)
  assert.ok(half.pays)
  // DEEP_ARCHIVE: the same half saves 0.125 × 0.00099 × 365/30 = 0.001506 and costs
  // 0.25 × 0.00099 × 6 = 0.001485 and 0.00005: it does not pay on the first day,
  assert.is(micros(at('DEEP_ARCHIVE', 0, 128 * MIB).saves), 1506)
  assert.is(micros(at('DEEP_ARCHIVE', 0, 128 * MIB).costs), 1535)
  assert.is(at('DEEP_ARCHIVE', 0, 128 * MIB).pays, false)
  // 0.001460 + 0.00005 on day 3, 0.001452 + 0.00005 on day 4.
  assert.is(at('DEEP_ARCHIVE', 3, 128 * MIB).pays, false)
  assert.is(at('DEEP_ARCHIVE', 4, 128 * MIB).pays, true)
  assert.is(at('DEEP_ARCHIVE', 180, 128 * MIB).pays, true)
  assert.is(at('DEEP_ARCHIVE', 180, sizeBytes).pays, false)
  assert.is(at('DEEP_ARCHIVE', 0, 0).pays, true)
  assert.is(at('UNPRICED', 0, 0).pays, undefined)
  assert.is(at('NO_SUCH', 400, 0).pays, undefined)
})

cost('a limit holds for what is known; only where nothing is known the unknown is over it', () => {
  const at = (limit: number | undefined, groups: readonly ObjectGroup[]) => {
    return isOverLimit(uploadCost({ prices: amazon, groups }), limit)
  }
  // 1000 × 0.005 / 1000 = 0.005
  const known = group('STANDARD', { objects: 1000 })
  const unknown = group('UNPRICED', { objects: 1000 })
  assert.not.ok(at(0.005001, [known]))
  assert.not.ok(at(0.005, [known]))
  assert.ok(at(0.004999, [known]))
  assert.not.ok(at(0.005, [known, unknown]))
  assert.ok(at(0.004999, [known, unknown]))
  assert.ok(at(1000, [unknown]))
  assert.not.ok(at(undefined, [known, unknown]))
  assert.not.ok(at(undefined, [unknown]))
  assert.not.ok(at(0, []))
})

cost('what is over the limit is refused with both amounts, and says that nothing was spent', () => {
  const groups = [group('STANDARD', { objects: 1_000_000 })]
  const upload = uploadCost({ prices: amazon, groups })
  const of = { what: 'the upload', target: 'cloud' }
  refuseOverLimit(upload, { ...of, limit: 5 })
  refuseOverLimit(upload, { ...of, limit: undefined })
  const error = refused(() => refuseOverLimit(upload, { ...of, limit: 4.99 }))
  assert.is(error.code, 'COST_LIMIT')
  assert.is(error.exitCode, 4)
  assert.is(error.message, 'target cloud: the upload would cost $5.00, the limit is $4.99')
  assert.match(error.hint ?? '', 'nothing was spent')
  const nowhere = uploadCost({ prices: NO_PRICES, groups })
  const blind = refused(() => refuseOverLimit(nowhere, { ...of, limit: 4.99 }))
  assert.match(blind.message, 'what the upload would cost is unknown (no price for writing to')
  assert.match(blind.hint ?? '', 'name a price list')
})

cost('what has no price is named and never counts as nothing', () => {
  const stored = [group('UNPRICED', { bytes: GIB }), group('STANDARD', { bytes: GIB })]
  const { total } = monthlyCost({ prices: amazon, stored })
  assert.not.ok(total.known)
  assert.equal(total.unknown, ['storage in UNPRICED'])
  assert.is(describeCost(total), 'at least $0.023 (unknown: storage in UNPRICED)')
  const none = monthlyCost({ prices: NO_PRICES, stored }).total
  assert.is(none.micros, 0)
  const missing = 'storage in UNPRICED, storage in STANDARD'
  assert.is(describeCost(none), `unknown (no price for ${missing})`)
  assert.not.ok(verifyCost({ prices: NO_PRICES, read: [], lists: 1 }).known)
  const read = [{ storageClass: 'STANDARD', requests: 0, bytes: 1 }]
  assert.equal(verifyCost({ prices: NO_PRICES, read }).unknown, ['reading from STANDARD', 'egress'])
})

cost('of a class that the list lacks nobody knows the fee, nor when there is none', () => {
  const objects = [{ storageClass: 'NO_SUCH', sizeBytes: GIB, ageDays: 1000 }]
  const prune = pruneCost({ prices: amazon, objects })
  assert.not.ok(prune.earlyDeletion.known)
  assert.is(prune.freeInDays, undefined)
  assert.is(prune.earlyObjects, 1)
  const cold = [{ storageClass: 'NO_SUCH', objects: 1, bytes: GIB }]
  const [offer] = restoreCost({ prices: NO_PRICES, cold, hot: [], days: 7 })
  assert.is(offer?.hours, undefined)
  assert.not.ok(offer?.cost.known)
  assert.match(describeRestore(offer!), 'after an unknown time')
  // Rules without prices: when it is free is known.
  const ruled = [{ storageClass: 'UNPRICED', sizeBytes: GIB, ageDays: 9 }]
  assert.is(pruneCost({ prices: amazon, objects: ruled }).freeInDays, 1)
  assert.not.ok(pruneCost({ prices: amazon, objects: ruled }).earlyDeletion.known)
})

cost('several costs are one, known only if all are', () => {
  const one = uploadCost({ prices: amazon, groups: [group('STANDARD', { objects: 1000 })] })
  const other = uploadCost({ prices: NO_PRICES, groups: [group('STANDARD')] })
  assert.is(micros(addCosts([one, one])), 10_000)
  assert.not.ok(addCosts([other, one]).known)
  assert.is(addCosts([other, one]).currency, 'USD')
})

for (const [amount, text] of [
  [0, '$0'],
  [1, '$0.000001'],
  [51, '$0.000051'],
  [440, '$0.00044'],
  [5149, '$0.0051'],
  [5150, '$0.0052'],
  [9999, '$0.01'],
  [10_000, '$0.01'],
  [12_000, '$0.012'],
  [99_499, '$0.099'],
  [99_500, '$0.10'],
  [100_000, '$0.10'],
  [104_999, '$0.10'],
  [105_000, '$0.11'],
  [1_000_000, '$1.00'],
  [1_005_000, '$1.01'],
  [12_300_000, '$12.30'],
  [1_234_567_890, '$1234.57'],
] as const) {
  cost(`${amount} millionths are shown as ${text}`, () => {
    assert.is(formatMoney(amount, 'USD'), text)
  })
}

cost('money has the sign of its currency, or its letters', () => {
  assert.is(formatMoney(6_490_000, 'EUR'), '€6.49')
  assert.is(formatMoney(3_100_000, 'CHF'), 'CHF 3.10')
})

cost('no sum is a hair off: a tenth and two tenths are three', () => {
  // In binary fractions 0.1 + 0.2 is not 0.3, and 0.57 × 100 is not 57.
  const ten = uploadCost({ prices: amazon, groups: [group('STANDARD', { objects: 20_000 })] })
  const twenty = uploadCost({ prices: amazon, groups: [group('STANDARD', { objects: 40_000 })] })
  assert.is(addCosts([ten, twenty]).micros, 300_000)
  // Terabytes for a year, where a double has no digits left for bytes times price.
  const stored = [group('DEEP_ARCHIVE', { bytes: 2 ** 50 + 1 })]
  assert.is(micros(monthlyCost({ prices: amazon, stored }).total), 1_038_090_240)
})

cost('of a price nine decimals count', () => {
  const tables = [{ ...LIST.tables[1], base_month: 1.000000001 }]
  assert.is(parsePrices({ ...LIST, tables }).tables[0]?.prices.baseMonthNano, 1_000_000_001)
})

cost('prices say of when they are', () => {
  assert.is(describePrices(amazon), 'prices of 2026-05')
  assert.is(describePrices({ ...amazon, newest: '2026-07-01' }), 'prices of 2026-05 to 2026-07')
  assert.is(describePrices(NO_PRICES), 'no prices for this service')
})

function refused(work: () => void): BackupError {
  try {
    work()
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('it was not refused')
}

cost.run()
