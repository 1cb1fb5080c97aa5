// A price list: what storage services charge, by service and region.
//
// config/prices.yaml is ours and docs/costs.md explains the form; lib/machine/price-list.ts reads
// it, and cost.ts computes with what pricesFor finds. Prices are whole numbers: billionths of the
// currency's unit (`nano`), so that nothing is lost before it is shown. What a list does not say is
// undefined and makes a cost unknown, never nothing. parsePrices throws CONFIG_INVALID.

import { BackupError } from '../errors.ts'
import { parseDuration } from './amount.ts'

/** How fast cold storage is read, cheapest first. */
export const TIERS = ['Bulk', 'Standard', 'Expedited'] as const

export type Tier = (typeof TIERS)[number]

export const CERTAINTIES = ['published', 'reported', 'remembered'] as const

/** Where figures stand. */
export interface PriceSource {
  readonly url: string
  /** When they stood there: `2026-09-28`. */
  readonly date: string
  /**
   * Read on the service's own page; read where somebody quotes it; neither.
   */
  readonly certainty: (typeof CERTAINTIES)[number]
}

/** What one way to read a cold class costs. */
export interface TierPrices {
  /** For a GB. */
  readonly nano: number | undefined
  /** For 1000 requests. */
  readonly requestsNano: number | undefined
  /** When it is done at the latest. */
  readonly hours: number
}

export interface ClassPrices {
  /** For a GB and a month. */
  readonly storageNano: number | undefined
  /** So much of the account costs nothing, or is in the base price. */
  readonly includedGb: number
  /** What is deleted sooner is charged for so long. */
  readonly minimumDays: number
  /** What is smaller is charged as if it had so many bytes. */
  readonly minimumBytes: number
  /** What each object is charged for besides, at the price of its class and of STANDARD. */
  readonly ownOverheadBytes: number
  readonly standardOverheadBytes: number
  /** For 1000 objects and a month, and from which size on; undefined price: there is none. */
  readonly monitoringNano: number | undefined
  readonly monitoredFromBytes: number | undefined
  /** For 1000 requests. */
  readonly putNano: number | undefined
  readonly getNano: number | undefined
  /** The class whose price holds for the beginning and the parts of a multipart upload. */
  readonly partsAs: string | undefined
  /** For a GB that is read without waiting, beside egress; 0 where it costs nothing. */
  readonly readNano: number | undefined
  /** Empty where the class is not cold. */
  readonly tiers: ReadonlyMap<Tier, TierPrices>
}

/** A part of what goes out in a month, and its price. */
export interface EgressBand {
  /** Where it ends; undefined for the last. */
  readonly upToGb: number | undefined
  /** For a GB. */
  readonly nano: number
}

export interface RegionPrices {
  readonly provider: string
  /** `USD`; empty where nothing is known. */
  readonly currency: string
  /** When the oldest and the newest figure held, `2026-09-28`; undefined where nothing is known. */
  readonly oldest: string | undefined
  readonly newest: string | undefined
  readonly gbBytes: number
  /** What an account costs a month before anything is stored. */
  readonly baseMonthNano: number
  /** For 1000 requests. */
  readonly listNano: number | undefined
  readonly egress:
    | {
        readonly freeGb: number
        /** So many times of what is stored goes out without charge each month. */
        readonly freeTimesStored: number
        readonly bands: readonly EgressBand[]
      }
    | undefined
  readonly classes: ReadonlyMap<string, ClassPrices>
}

/** The prices of one service in some of its regions. */
export interface PriceTable {
  readonly hosts: readonly string[]
  /** Undefined: in all. */
  readonly regions: readonly string[] | undefined
  readonly prices: RegionPrices
}

export interface PriceList {
  readonly sources: ReadonlyMap<string, PriceSource>
  readonly tables: readonly PriceTable[]
}

/** What there is to go by for a service that no list has: everything is unknown. */
export const NO_PRICES: RegionPrices = {
  provider: 'this service',
  currency: '',
  oldest: undefined,
  newest: undefined,
  gbBytes: 1e9,
  baseMonthNano: 0,
  listNano: undefined,
  egress: undefined,
  classes: new Map(),
}

/** In any currency a GB costs less; what is more is a slip. */
const MAX_PRICE = 1e6

/** Where Amazon is when no endpoint is configured. */
const AMAZON_HOST = 'amazonaws.com'

/**
 * The prices of a service in a region; undefined where the list has none. Without a region, the one
 * that the endpoint's host names.
 */
export function pricesFor(
  list: PriceList,
  {
    endpoint,
    region,
  }: { readonly endpoint: string | undefined; readonly region: string | undefined },
): RegionPrices | undefined {
  const host = hostOf(endpoint)
  const labels = host.split('.')
  const found = list.tables.find(({ hosts, regions }) => {
    const isTheirs = hosts.some((one) => host === one || host.endsWith(`.${one}`))
    if (!isTheirs || regions === undefined) return isTheirs
    return region === undefined
      ? regions.some((one) => labels.includes(one))
      : regions.includes(region)
  })
  return found?.prices
}

function hostOf(endpoint: string | undefined): string {
  if (endpoint === undefined) return AMAZON_HOST
  const bare = endpoint.replace(/^[a-z][a-z0-9+.-]*:\/\//i, '')
  return (/^[^/:?#]*/.exec(bare)?.[0] ?? '').toLowerCase()
}

/** The way to a value of the list: `['tables', 0, 'list']`. */
export type PricePath = readonly (string | number)[]

export type PriceFail = (problem: { readonly path: PricePath; readonly message: string }) => never

/**
 * The price list in plain data, as YAML gives it. `fail` is told what is wrong and throws.
 * @throws BackupError CONFIG_INVALID with the place
 */
export function parsePrices(value: unknown, fail: PriceFail = failPlainly): PriceList {
  const top = reader(value, { path: [], fail })
  const sources = new Map<string, PriceSource>()
  for (const [name, entry] of top.mapping('sources')) {
    sources.set(name, parseSource(entry))
  }
  const tables = top.list('tables').map((table) => parseTable(table, sources))
  top.nothingElse()
  return { sources, tables }
}

function failPlainly({
  path,
  message,
}: {
  readonly path: PricePath
  readonly message: string
}): never {
  const place = path.map((part) => (typeof part === 'number' ? `[${part}]` : `.${part}`)).join('')
  throw new BackupError(
    'CONFIG_INVALID',
    `the price list: ${place.replace(/^\./, '')}: ${message}`,
    { hint: 'docs/costs.md shows the form; nothing was sent' },
  )
}

function parseSource(at: Reader): PriceSource {
  const url = at.text('url', /^https?:\/\/\S+$/, 'the address of a page')
  const date = at.text(
    'date',
    /^[0-9]{4}-(0[1-9]|1[0-2])(-([0-2][0-9]|3[01]))?$/,
    'a date: 2026-05-31',
  )
  const known = CERTAINTIES.join('|')
  const certainty = at.text(
    'certainty',
    new RegExp(`^(${known})$`),
    `one of ${CERTAINTIES.join(', ')}`,
  )
  at.optionalText('note')
  at.nothingElse()
  return { url, date, certainty: certainty as PriceSource['certainty'] }
}

function parseTable(at: Reader, sources: ReadonlyMap<string, PriceSource>): PriceTable {
  const dates: string[] = []
  /** The date of the figures in a mapping: of its own source, or of the one around it. */
  const sourced = (of: Reader, outer: string | undefined): string => {
    const name = of.optionalText('source') ?? outer
    if (name === undefined) return of.fail('source', 'expected the name of a source')
    const source = sources.get(name)
    if (source === undefined) return of.fail('source', `there is no source ${name}`)
    dates.push(source.date)
    return name
  }
  const own = sourced(at, undefined)
  const provider = at.text('provider', /./, 'the name of a service')
  const hosts = at.texts('hosts') ?? at.fail('hosts', 'expected a list of hosts')
  const regions = at.texts('regions')
  const currency = at.text('currency', /^[A-Z]{3}$/, 'a currency: USD')
  const gbBytes = at.count('gb_bytes') ?? 1e9
  if (gbBytes !== 1e9 && gbBytes !== 2 ** 30) {
    return at.fail('gb_bytes', 'expected 1000000000 or 1073741824')
  }
  const baseMonthNano = at.price('base_month') ?? 0
  const listNano = at.price('list')
  const out = at.optional('egress')
  const egress = out === undefined ? undefined : parseEgress(out, { sourced, outer: own })
  const classes = new Map<string, ClassPrices>()
  for (const [name, entry] of at.mapping('classes')) {
    classes.set(name, parseClass(entry, { sourced, outer: own }))
  }
  for (const [name, { partsAs }] of classes) {
    if (partsAs !== undefined && !classes.has(partsAs)) {
      return at.fail(
        'classes',
        `${name} takes the price of parts from ${partsAs}, which is not there`,
      )
    }
  }
  at.nothingElse()
  const [oldest, newest] = [dates.toSorted().at(0), dates.toSorted().at(-1)]
  const money = { currency, gbBytes, baseMonthNano, listNano, egress, classes }
  return { hosts, regions, prices: { provider, oldest, newest, ...money } }
}

interface Sourcing {
  readonly sourced: (of: Reader, outer: string | undefined) => string
  readonly outer: string
}

function parseEgress(at: Reader, { sourced, outer }: Sourcing): RegionPrices['egress'] {
  const own = sourced(at, outer)
  const freeGb = at.count('free_gb') ?? 0
  const freeTimesStored = at.count('free_times_stored') ?? 0
  let last = 0
  const entries = at.list('bands')
  const bands = entries.map((band, index) => {
    sourced(band, own)
    const upToGb = band.count('up_to_gb')
    const nano = band.price('price') ?? band.fail('price', 'expected a price')
    if (upToGb !== undefined && upToGb <= last) band.fail('up_to_gb', `expected more than ${last}`)
    if (upToGb === undefined && index < entries.length - 1) {
      band.fail('up_to_gb', 'expected where it ends: only the last band has no end')
    }
    last = upToGb ?? last
    band.nothingElse()
    return { upToGb, nano }
  })
  if (bands.length === 0) return at.fail('bands', 'expected at least one')
  at.nothingElse()
  return { freeGb, freeTimesStored, bands }
}

function parseClass(at: Reader, { sourced, outer }: Sourcing): ClassPrices {
  const own = sourced(at, outer)
  const requests = at.optional('requests')
  if (requests !== undefined) sourced(requests, own)
  const putNano = requests?.price('put')
  const getNano = requests?.price('get')
  const partsAs = requests?.optionalText('parts_as')
  requests?.nothingElse()
  const overhead = at.optional('overhead')
  if (overhead !== undefined) sourced(overhead, own)
  const ownOverheadBytes = overhead?.count('own_bytes') ?? 0
  const standardOverheadBytes = overhead?.count('standard_bytes') ?? 0
  overhead?.nothingElse()
  const tiers = new Map<Tier, TierPrices>()
  const ways = at.has('tiers') ? at.mapping('tiers') : []
  for (const [name, way] of ways) {
    const tier = TIERS.find((one) => one === name)
    if (tier === undefined) return at.fail('tiers', `${name} is none of ${TIERS.join(', ')}`)
    sourced(way, own)
    const within = way.text('within', /./, 'a time: 12h')
    const ms = parseDuration(within)
    if (ms === undefined) return way.fail('within', 'expected a time: 12h, 5min')
    const prices = { nano: way.price('price'), requestsNano: way.price('requests') }
    tiers.set(tier, { ...prices, hours: ms / 3_600_000 })
    way.nothingElse()
  }
  const storageNano = at.price('storage')
  const minimumDays = at.count('minimum_days') ?? 0
  const readNano = at.price('read')
  const monitoredFromBytes = at.count('monitored_from_bytes')
  const found = {
    ...{ storageNano, includedGb: at.count('included_gb') ?? 0, minimumDays },
    ...{ minimumBytes: at.count('minimum_bytes') ?? 0, ownOverheadBytes, standardOverheadBytes },
    ...{ monitoringNano: at.price('monitoring'), monitoredFromBytes },
    ...{ putNano, getNano, partsAs, readNano, tiers },
  }
  at.nothingElse()
  return found
}

/** Reads one mapping, and knows where it is. */
interface Reader {
  has(key: string): boolean
  /** Billionths; undefined where it is not there. */
  price(key: string): number | undefined
  /** A whole number, 0 or more. */
  count(key: string): number | undefined
  text(key: string, form: RegExp, expected: string): string
  optionalText(key: string): string | undefined
  texts(key: string): readonly string[] | undefined
  optional(key: string): Reader | undefined
  mapping(key: string): readonly (readonly [string, Reader])[]
  list(key: string): readonly Reader[]
  /** Fails at a property that nothing asked for: it was misspelled. */
  nothingElse(): void
  fail(key: string, message: string): never
}

interface Surroundings {
  readonly path: PricePath
  readonly fail: PriceFail
}

function reader(value: unknown, { path, fail }: Surroundings): Reader {
  if (!isMapping(value)) return fail({ path, message: 'expected a mapping' })
  const asked = new Set<string>()
  const failAt = (key: string, message: string): never => fail({ path: [...path, key], message })
  const get = (key: string): unknown => {
    asked.add(key)
    return Object.hasOwn(value, key) ? value[key] : undefined
  }
  const below = (key: string) => ({ path: [...path, key], fail })
  const number = (key: string, isRight: (found: number) => boolean, expected: string) => {
    const found = get(key)
    if (found === undefined) return undefined
    if (typeof found === 'number' && isRight(found)) return found
    return failAt(key, `expected ${expected}`)
  }
  const optionalText = (key: string): string | undefined => {
    const found = get(key)
    if (found === undefined || (typeof found === 'string' && found !== '')) return found
    return failAt(key, 'expected text')
  }
  const at: Reader = {
    has: (key) => get(key) !== undefined,
    price(key) {
      const found = number(key, (price) => price >= 0 && price <= MAX_PRICE, 'a price, 0 or more')
      return found === undefined ? undefined : Math.round(found * 1e9)
    },
    count: (key) => {
      return number(
        key,
        (one) => Number.isSafeInteger(one) && one >= 0,
        'a whole number, 0 or more',
      )
    },
    text(key, form, expected) {
      const found = get(key)
      if (typeof found === 'string' && form.test(found)) return found
      return failAt(key, `expected ${expected}`)
    },
    optionalText,
    texts(key) {
      const found = get(key)
      if (found === undefined) return undefined
      const isList = Array.isArray(found) && found.length > 0
      if (!isList || !found.every((one) => typeof one === 'string')) {
        return failAt(key, 'expected a list of names')
      }
      return found
    },
    optional(key) {
      const found = get(key)
      return found === undefined ? undefined : reader(found, below(key))
    },
    mapping(key) {
      const found = get(key)
      if (!isMapping(found)) return failAt(key, 'expected a mapping')
      return Object.entries(found).map(([name, entry]) => {
        return [name, reader(entry, { path: [...path, key, name], fail })] as const
      })
    },
    list(key) {
      const found = get(key)
      if (!Array.isArray(found)) return failAt(key, 'expected a list')
      return found.map((entry: unknown, index) => {
        return reader(entry, { path: [...path, key, index], fail })
      })
    },
    nothingElse() {
      const other = Object.keys(value).find((key) => !asked.has(key))
      if (other !== undefined) failAt(other, 'unknown property')
    },
    fail: failAt,
  }
  return at
}

function isMapping(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
