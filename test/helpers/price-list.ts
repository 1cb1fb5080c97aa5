// A price list for the stand-in server, with round figures that a test can compute with.

import { writeFileSync } from 'node:fs'

/** Storage 1 a GB of 10^9 bytes, a write 0.001, a GB that goes out 0.1; archives a tenth. */
const TEXT = `
sources: { own: { url: 'https://example.org/prices', date: 2026-10-01, certainty: published } }
tables:
  - provider: Example
    hosts: [127.0.0.1]
    source: own
    currency: EUR
    gb_bytes: 1000000000
    list: 1
    egress: { bands: [{ price: 0.1 }] }
    classes:
      STANDARD: { storage: 1, requests: { put: 1, get: 1 }, read: 0 }
      GLACIER:
        storage: 0.1
        minimum_days: 90
        requests: { put: 2, get: 1, parts_as: STANDARD }
        tiers:
          Bulk: { price: 0, requests: 10, within: 12h }
          Standard: { price: 0.01, requests: 50, within: 5h }
          Expedited: { price: 1, requests: 10000, within: 5min }
      DEEP_ARCHIVE:
        storage: 0.01
        minimum_days: 180
        requests: { put: 5, get: 1, parts_as: STANDARD }
        tiers:
          Bulk: { price: 0.0025, requests: 25, within: 48h }
          Standard: { price: 0.02, requests: 100, within: 12h }
`

/** Writes the list into a directory. @returns its path, for `prices` of a target */
export function writePriceList(directory: string): string {
  const path = `${directory}/prices.yaml`
  writeFileSync(path, TEXT)
  return path
}
