// What a bucket's lifecycle rules do to a repository: delete it, freeze it, or leave it alone.
//
// Called by bucket-findings.ts. A rule knows keys by their beginning only: of ours those of data
// bundles alone can be told from the rest. Pure; throws nothing.

import {
  bad,
  type BucketFacts,
  type Finding,
  isVersionless,
  type LifecycleRule,
  policyCall,
  s3api,
  safe,
  unknown,
} from './bucket-facts.ts'
import { ABANDONED_DAYS, keyPrefix, lifecycleDocument, shellWord } from './bucket-policy.ts'
import { counted } from './period.ts'

/**
 * Until then what was deleted or overwritten can be brought back, where nothing is locked. Whoever
 * is away for two weeks and looks a week later still finds it.
 */
export const RECOVERY_DAYS = 30

const DAY_MS = 86_400_000

/** Can be read at once, but something about it is to be known. */
const WARM_CLASSES: Readonly<Record<string, string>> = {
  STANDARD_IA: 'each read costs',
  ONEZONE_IA: 'it lies in one data centre only, and each read costs',
  GLACIER_IR: 'each read costs, and 90 days are the least to pay for',
  INTELLIGENT_TIERING: 'what nobody reads may become cold, if its archive tiers are on',
}

/** What the rules do, one finding each, and whether abandoned uploads go. */
export function findLifecycle(facts: BucketFacts): Finding[] {
  const name = 'lifecycle'
  const { lifecycle: fact, path } = facts
  if (fact.kind !== 'known') {
    const look = s3api(facts, 'get-bucket-lifecycle-configuration')
    const wanted = `no rule that expires or moves anything below "${keyPrefix(path)}"`
    const action = 's3:GetLifecycleConfiguration'
    return [unknown(fact, { facts, name, action, look, wanted })]
  }
  const rules = fact.value.filter(({ isEnabled }) => isEnabled)
  const findings = rules.flatMap((rule) => {
    const reached = reach(rule.prefix, path)
    return reached === 'nothing' ? [] : findRule(facts, { rule, reached })
  })
  const harmless = findings.length === 0 ? [safe(name, 'no rule touches what we keep')] : []
  return [...findings, ...harmless, findAbandoned(facts, rules)]
}

/** Which keys of ours a rule's prefix takes in. Probes are nobody's loss. */
export function reach(prefix: string, path: string): 'nothing' | 'data' | 'everything' {
  const ours = keyPrefix(path)
  if (ours.startsWith(prefix)) return 'everything'
  if (!prefix.startsWith(ours)) return 'nothing'
  const rest = prefix.slice(ours.length)
  if (rest.startsWith('.probe/')) return 'nothing'
  // A file name that begins so is a data bundle's and nothing else's.
  if (/^machines\/[^/]+\/[^/]+\/[^/]+\/data-/.test(rest)) return 'data'
  const top = ['machines/', 'repository.json', 'RECOVER.txt', 'recover.sh']
  const isOurs = top.some((name) => rest.startsWith(name) || name.startsWith(rest))
  return isOurs ? 'everything' : 'nothing'
}

function findRule(
  facts: BucketFacts,
  { rule, reached }: { readonly rule: LifecycleRule; readonly reached: 'data' | 'everything' },
): Finding[] {
  const name = 'lifecycle'
  const which = `rule ${rule.id ?? `of prefix "${rule.prefix}"`}`
  const get = s3api(facts, 'get-bucket-lifecycle-configuration')
  const put = s3api(
    facts,
    'put-bucket-lifecycle-configuration',
    '--lifecycle-configuration file://lifecycle.json',
  )
  const fix = `${get} > lifecycle.json; remove the rule from it, or limit it to other keys; ${put}`
  const findings: Finding[] = []
  const add = (verdict: 'warning' | 'unsafe', message: string): void => {
    // Nobody knows which of our objects have such a size or tag.
    const limited = rule.isFiltered ? `, where its tags or sizes fit` : ''
    findings.push(
      bad(rule.isFiltered && verdict === 'unsafe' ? 'unknown' : verdict, name, {
        message: `${which} ${message}${limited}`,
        fix,
      }),
    )
  }
  if (rule.expiresAfterDays !== undefined) {
    add('unsafe', `deletes ${of(reached)} after ${counted(rule.expiresAfterDays, 'day')}`)
  }
  for (const { afterDays, storageClass } of rule.transitions) {
    const moves = `moves ${of(reached)} to ${storageClass} after ${counted(afterDays, 'day')}`
    const care = WARM_CLASSES[storageClass]
    if (care !== undefined) add('warning', `${moves}: ${care}`)
    else if (storageClass === 'STANDARD') continue
    else if (reached === 'data') add('warning', `${moves}: let storage_class do that`)
    else add('unsafe', `${moves}, manifests and catalogs too: nothing can be found in them then`)
  }
  const oldDays = rule.expiresOldVersionsAfterDays
  if (oldDays !== undefined && !isVersionless(facts)) {
    const needed = Math.max(RECOVERY_DAYS, Math.ceil((facts.lockMs ?? 0) / DAY_MS))
    if (oldDays < needed) {
      const soon = `after ${counted(oldDays, 'day')}`
      add('unsafe', `deletes old versions ${soon}: what was hidden is lost (${needed} are safe)`)
    }
  }
  return findings
}

function of(reached: 'data' | 'everything'): string {
  return reached === 'data' ? 'data bundles' : 'what we keep'
}

/** Parts of uploads that nobody finishes are paid for, and are in no listing. */
function findAbandoned(facts: BucketFacts, rules: readonly LifecycleRule[]): Finding {
  const name = 'abandoned uploads'
  const ours = keyPrefix(facts.path)
  const covering = rules.filter(({ prefix, isFiltered }) => !isFiltered && ours.startsWith(prefix))
  const touching = rules.filter(({ prefix }) => reach(prefix, facts.path) !== 'nothing')
  const shortest = Math.min(...touching.map((rule) => rule.abortsUploadsAfterDays ?? Infinity))
  const put = s3api(facts, 'put-bucket-lifecycle-configuration')
  if (shortest < ABANDONED_DAYS) {
    const message = `aborted after ${counted(shortest, 'day')}: one that waits longer begins again`
    const rule = policyCall(facts, 'lifecycle')
    const fix = `make it ${ABANDONED_DAYS} days in the lifecycle rules (${rule})`
    return bad('warning', name, { message, fix })
  }
  if (covering.some(({ abortsUploadsAfterDays }) => abortsUploadsAfterDays !== undefined)) {
    return safe(name, `aborted after ${counted(shortest, 'day')}`)
  }
  const message = 'no rule aborts them: their parts are paid for until somebody does'
  const document = shellWord(JSON.stringify(lifecycleDocument(facts)))
  const hasRules = facts.lifecycle.kind === 'known' && facts.lifecycle.value.length > 0
  const fix = hasRules
    ? `add what ${policyCall(facts, 'lifecycle')} prints to the rules that are there`
    : `${put} --lifecycle-configuration ${document}`
  return bad('warning', name, { message, fix })
}
