import { writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { parseText, resolveAliases } from '../../lib/machine/config-document.ts'
import { loadPriceList, parsePriceList } from '../../lib/machine/price-list.ts'
import { monthlyCost } from '../../lib/model/cost.ts'
import { describePrices } from '../../lib/model/cost-text.ts'
import { parsePrices, pricesFor } from '../../lib/model/prices.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const OURS = new URL('../../../config/prices.yaml', import.meta.url)

const OWN = `sources:
  mine: { url: "https://example.org/offer", date: 2026-11-01, certainty: published }
tables:
  - provider: NAS of a friend
    hosts: [nas.home]
    source: mine
    currency: CHF
    classes:
      STANDARD:
        storage: 0.002
`

const prices = suite('price list')

prices('each figure of ours has a source with an address, a date and a certainty', async () => {
  const text = await readFile(OURS, 'utf8')
  const raw = resolveAliases(parseText({ path: 'prices.yaml', text }).document, 'prices.yaml')
  const { sources, tables } = raw as { sources: Mapping; tables: Mapping[] }
  for (const [name, source] of Object.entries(sources)) {
    const { url, date, certainty } = source as Mapping
    assert.match(String(url), /^https:\/\/\S+\.\S+$/, name)
    assert.match(String(date), /^20[0-9]{2}-[0-9]{2}-[0-9]{2}$/, name)
    assert.ok(['published', 'reported', 'remembered'].includes(String(certainty)), name)
  }
  let figures = 0
  const used = new Set<string>()
  const look = (value: unknown, outer: unknown, at: string): void => {
    if (Array.isArray(value)) value.forEach((one, index) => look(one, outer, `${at}[${index}]`))
    else if (typeof value === 'object' && value !== null) {
      const source = (value as Mapping)['source'] ?? outer
      used.add(String(source))
      for (const [key, one] of Object.entries(value)) look(one, source, `${at}.${key}`)
    } else if (typeof value === 'number') {
      figures++
      assert.ok(Object.hasOwn(sources, String(outer)), `${at} has no source`)
    }
  }
  look(tables, undefined, 'tables')
  assert.ok(figures > 80, `${figures} figures`)
  assert.equal(
    [...used].filter((name) => name !== 'undefined').toSorted(),
    Object.keys(sources).toSorted(),
  )
})

prices('ours has the services that it says it has', async () => {
  const list = await loadPriceList()
  const at = (endpoint: string | undefined, region?: string) => {
    return pricesFor(list, { endpoint, region })
  }
  assert.is(at(undefined, 'us-east-1')?.classes.get('DEEP_ARCHIVE')?.storageNano, 990_000)
  assert.is(at(undefined, 'eu-central-1')?.classes.get('STANDARD')?.storageNano, 24_500_000)
  assert.is(at('https://s3.us-west-004.backblazeb2.com')?.provider, 'Backblaze B2')
  assert.is(at('https://0123.r2.cloudflarestorage.com', 'auto')?.provider, 'Cloudflare R2')
  assert.is(at('https://s3.eu-central-1.wasabisys.com')?.provider, 'Wasabi')
  assert.is(at('https://FSN1.your-objectstorage.com/')?.currency, 'EUR')
  assert.match(describePrices(at(undefined, 'us-east-1')!), /^prices of 2025-10 to 2026-/)
})

prices('a service, a region or a host that is not in the list has no prices', async () => {
  const list = await loadPriceList()
  const at = (endpoint: string | undefined, region?: string) => {
    return pricesFor(list, { endpoint, region })
  }
  assert.is(at(undefined, 'sa-east-1'), undefined)
  assert.is(at(undefined), undefined)
  assert.is(at('http://127.0.0.1:9000', 'us-east-1'), undefined)
  assert.is(at('https://notamazonaws.com', 'us-east-1'), undefined)
  assert.is(at('https://amazonaws.com.example.org', 'us-east-1'), undefined)
  assert.is(at('https://s3.eu-central-1.amazonaws.com')?.currency, 'USD')
  assert.is(at('https://s3.sa-east-1.amazonaws.com'), undefined)
})

prices('what ours has no source for is unknown, and what it has is computed', async () => {
  const list = await loadPriceList()
  const stored = [
    { storageClass: 'DEEP_ARCHIVE', kind: 'data', objects: 1, bytes: 2 ** 40 },
  ] as const
  const us = pricesFor(list, { endpoint: undefined, region: 'us-east-1' })!
  // 1024 × 0.00099 = 1.01376; the overhead of one object does not show.
  assert.is(monthlyCost({ prices: us, stored }).total.micros, 1_013_760)
  const eu = pricesFor(list, { endpoint: undefined, region: 'eu-central-1' })!
  assert.not.ok(monthlyCost({ prices: eu, stored }).total.known)
  assert.is(eu.classes.get('DEEP_ARCHIVE')?.minimumDays, 180)
  assert.is(eu.classes.get('DEEP_ARCHIVE')?.tiers.get('Bulk')?.hours, 48)
  assert.is(us.classes.get('GLACIER')?.tiers.get('Expedited')?.hours, 5 / 60)
  assert.not.ok(us.classes.get('DEEP_ARCHIVE')?.tiers.has('Expedited'))
})

prices("the user's own list replaces ours", async () => {
  const path = join(tempDirectory(), 'prices.yaml')
  writeFileSync(path, OWN)
  const list = await loadPriceList({ path })
  assert.is(pricesFor(list, { endpoint: undefined, region: 'us-east-1' }), undefined)
  const found = pricesFor(list, { endpoint: 'http://nas.home:9000', region: undefined })
  assert.is(found?.classes.get('STANDARD')?.storageNano, 2_000_000)
  assert.is(found?.classes.get('STANDARD')?.putNano, undefined)
  assert.is(found?.egress, undefined)
  assert.is(found?.listNano, undefined)
})

for (const [what, from, to, message] of [
  [
    'misspelled',
    'storage: 0.002',
    'storrage: 0.002',
    '/p.yaml:10:9: tables[0].classes.STANDARD.storrage: unknown property',
  ],
  [
    'text for a price',
    'storage: 0.002',
    'storage: "0.002"',
    '/p.yaml:10:9: tables[0].classes.STANDARD.storage: expected a price, 0 or more',
  ],
  [
    'a price below 0',
    'storage: 0.002',
    'storage: -1',
    '/p.yaml:10:9: tables[0].classes.STANDARD.storage: expected a price, 0 or more',
  ],
  [
    'not a number',
    'storage: 0.002',
    'storage: .nan',
    '/p.yaml:10:9: tables[0].classes.STANDARD.storage: expected a price, 0 or more',
  ],
  [
    'another source',
    'source: mine',
    'source: yours',
    '/p.yaml:6:5: tables[0].source: there is no source yours',
  ],
  [
    'no source',
    '    source: mine\n',
    '',
    '/p.yaml:4:5: tables[0].source: expected the name of a source',
  ],
  [
    'no date',
    ', date: 2026-11-01',
    '',
    '/p.yaml:2:3: sources.mine.date: expected a date: 2026-05-31',
  ],
  [
    'no such month',
    '2026-11-01',
    '2026-13-01',
    '/p.yaml:2:45: sources.mine.date: expected a date: 2026-05-31',
  ],
  [
    'a certainty of its own',
    'published',
    'sure',
    '/p.yaml:2:63: sources.mine.certainty: expected one of published, reported, remembered',
  ],
  ['no currency', 'CHF', 'francs', '/p.yaml:7:5: tables[0].currency: expected a currency: USD'],
  [
    'half a day',
    'storage: 0.002',
    'minimum_days: 0.5',
    '/p.yaml:10:9: tables[0].classes.STANDARD.minimum_days: expected a whole number, 0 or more',
  ],
  [
    'parts of nowhere',
    'storage: 0.002',
    'requests: { parts_as: HOT }',
    '/p.yaml:8:5: tables[0].classes: STANDARD takes the price of parts from HOT, which is',
  ],
  [
    'a tier of its own',
    'storage: 0.002',
    'tiers: { Fast: { within: 1h } }',
    '/p.yaml:10:9: tables[0].classes.STANDARD.tiers: Fast is none of Bulk, Standard, Expedited',
  ],
  [
    'a tier without a time',
    'storage: 0.002',
    'tiers: { Bulk: { price: 0 } }',
    '/p.yaml:10:18: tables[0].classes.STANDARD.tiers.Bulk.within: expected a time: 12h',
  ],
  [
    'a GB of its own',
    'currency: CHF',
    'currency: CHF\n    gb_bytes: 1024',
    '/p.yaml:8:5: tables[0].gb_bytes: expected 1000000000 or 1073741824',
  ],
  [
    'bands that do not rise',
    'currency: CHF',
    'currency: CHF\n    egress: { bands: [{ up_to_gb: 9, price: 1 }, { up_to_gb: 9, price: 1 }] }',
    '/p.yaml:8:52: tables[0].egress.bands[1].up_to_gb: expected more than 9',
  ],
  [
    'an end in between',
    'currency: CHF',
    'currency: CHF\n    egress: { bands: [{ price: 1 }, { price: 1 }] }',
    'tables[0].egress.bands[0].up_to_gb: expected where it ends',
  ],
  [
    'egress without bands',
    'currency: CHF',
    'currency: CHF\n    egress: { bands: [] }',
    '/p.yaml:8:15: tables[0].egress.bands: expected at least one',
  ],
  ['no YAML', 'tables:', '}tables:', '/p.yaml:'],
] as const) {
  prices(`${what} is told with its place`, () => {
    assert.ok(OWN.includes(from))
    const error = failure(() => parsePriceList({ path: '/p.yaml', text: OWN.replace(from, to) }))
    assert.is(error.code, 'CONFIG_INVALID')
    assert.match(error.message, message)
  })
}

prices('the example of docs/costs.md can be read', async () => {
  const guide = await readFile(new URL('../../../docs/costs.md', import.meta.url), 'utf8')
  const text = /^```yaml\n(sources:[^]*?)^```/m.exec(guide)?.[1] ?? ''
  const { tables } = parsePriceList({ path: '/p.yaml', text })
  assert.equal([...(tables[0]?.prices.classes.keys() ?? [])], ['STANDARD', 'COLD'])
})

prices('plain data that is wrong is told with its place too', () => {
  const error = failure(() => parsePrices({ sources: {}, tables: [{}] }))
  assert.is(error.code, 'CONFIG_INVALID')
  assert.is(error.message, 'the price list: tables[0].source: expected the name of a source')
  assert.match(failure(() => parsePrices([])).message, 'expected a mapping')
})

prices('a file that is not there, no text, or far too large is told by its name', async () => {
  const directory = tempDirectory()
  const load = async (path: string): Promise<string> => {
    try {
      await loadPriceList({ path })
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      assert.is(error.code, 'CONFIG_INVALID')
      return error.message
    }
    return 'read'
  }
  assert.match(await load(join(directory, 'none.yaml')), /none\.yaml" cannot be read \(ENOENT\)/)
  const binary = join(directory, 'binary.yaml')
  writeFileSync(binary, Buffer.from([0xff, 0xfe, 0]))
  assert.match(await load(binary), 'is not UTF-8')
  const padding = (bytes: number) => `${OWN}#${'x'.repeat(bytes - OWN.length - 1)}`
  const large = join(directory, 'large.yaml')
  writeFileSync(large, padding(2 ** 20))
  assert.is(await load(large), 'read')
  writeFileSync(large, padding(2 ** 20 + 1))
  assert.match(await load(large), 'larger than 1 MiB')
})

type Mapping = Readonly<Record<string, unknown>>

function failure(work: () => unknown): BackupError {
  try {
    work()
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('nothing failed')
}

prices.run()
