// RestoreObject: a copy of an archived object that can be read for some days.
//
// It takes the longest time that Amazon documents for tier and class, on the server's clock. The
// copy goes at midnight UTC after its days are over.

import { answer, refuse } from './answer.ts'
import type { Answer } from './answer.ts'
import { allow } from './call.ts'
import type { Call } from './call.ts'
import { isArchived, readableVersion } from './read-object.ts'
import { bucketOf } from './store.ts'
import type { ThawedCopy, World } from './store.ts'
import { xmlText } from './xml.ts'

const MINUTE_MS = 60_000
const HOUR_MS = 60 * MINUTE_MS
const DAY_MS = 24 * HOUR_MS

const DURATIONS_MS: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  GLACIER: { Expedited: 5 * MINUTE_MS, Standard: 5 * HOUR_MS, Bulk: 12 * HOUR_MS },
  DEEP_ARCHIVE: { Standard: 12 * HOUR_MS, Bulk: 48 * HOUR_MS },
}

/** From slow to fast. */
const TIERS = ['Bulk', 'Standard', 'Expedited']

export function restoreObject(world: World, call: Call): Answer {
  allow(call, 's3:RestoreObject')
  const version = readableVersion(bucketOf(world, call.bucket), call)
  if (!isArchived(version)) {
    const message = "Restore is not allowed for the object's current storage class"
    return refuse(403, 'InvalidObjectState', message)
  }
  const xml = call.body.toString()
  const days = Number(xmlText(xml, 'Days'))
  const tier = xmlText(xml, 'Tier') ?? 'Standard'
  if (!(days >= 1)) return refuse(400, 'MalformedXML', 'Days must be at least 1')
  if (!TIERS.includes(tier)) return refuse(400, 'MalformedXML', 'Unknown tier')
  const duration = DURATIONS_MS[version.storageClass]?.[tier]
  if (duration === undefined) {
    const message = 'Retrieval option is not supported by this storage class'
    return refuse(400, 'InvalidArgument', message)
  }
  const nowMs = world.nowMs()
  const old = version.thawed
  const isThere = old !== undefined && nowMs < old.expiryMs
  if (isThere && nowMs < old.readyMs) {
    if (TIERS.indexOf(tier) <= TIERS.indexOf(old.tier)) {
      const message = 'Object restore is already in progress'
      return refuse(409, 'RestoreAlreadyInProgress', message)
    }
    // A faster tier for the same days is how one makes haste.
    version.thawed = copyOf({ tier, days: old.days, readyMs: nowMs + duration })
    return answer(202)
  }
  if (isThere) {
    version.thawed = { ...old, days, expiryMs: expiryMs(nowMs, days) }
    return answer(200)
  }
  version.thawed = copyOf({ tier, days, readyMs: nowMs + duration })
  return answer(202)
}

function copyOf(of: Omit<ThawedCopy, 'expiryMs'>): ThawedCopy {
  return { ...of, expiryMs: expiryMs(of.readyMs, of.days) }
}

function expiryMs(fromMs: number, days: number): number {
  return Math.ceil((fromMs + days * DAY_MS) / DAY_MS) * DAY_MS
}
