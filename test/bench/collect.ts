// The staging part of one collection on btrfs, for test/bench/collect.sh: a new generation from the
// newest one, either by comparing the whole tree or by what changed between two source snapshots.
//
// Usage: collect.js whole|changed SOURCE OLDER SET STAMP BASE; prints milliseconds, step by step.

import { renameSync } from 'node:fs'
import { runRsync } from '../../lib/machine/rsync.ts'
import { changedPaths } from '../../lib/machine/source-snapshot/btrfs-changes.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import {
  clearNames,
  prepareGeneration,
  removeOutside,
  sealGeneration,
} from '../../lib/work/generation.ts'

const [how, source = '', older = '', set = '', stamp = '', base = ''] = process.argv
  .slice(2)
  .map(rawPathFromText)
const directory = `${set}/${stamp}.partial`
const sourceOf = (path: string): string => `${source}/${path}`
const steps: string[] = []
let last = performance.now()

function done(step: string): void {
  const now = performance.now()
  steps.push(`${step} ${Math.round(now - last)}`)
  last = now
}

const collections = base === '' ? [] : [`${set}/${base}`]
const prepared = await prepareGeneration({ target: directory, collections, partials: [] })
if (prepared.kind !== 'snapshot') throw new Error('not a subvolume')
done('prepare')
const list = how === 'changed' ? await changedPaths({ older, newer: source }) : undefined
if (how === 'changed' && list === undefined) throw new Error('the changes could not be told')
done('changes')
if (list === undefined) removeOutside({ directory, sources: ['tree'] })
else clearNames({ directory, paths: list.present, sourceOf })
done('clear')
let copied = 0
await runRsync({
  sources: [{ root: source, path: '/tree', isDirectory: true }],
  exclusions: [],
  leftOut: [],
  linkDestinations: [],
  target: directory,
  intoExisting: true,
  ...(list === undefined
    ? {}
    : { filesFrom: [...list.present, ...list.gone].filter((path) => path.startsWith('tree')) }),
  followLinks: false,
  exactTimes: true,
  dryRun: false,
  onItem: (item) => {
    if (item.isFile && item.copied) copied += 1
  },
})
done('rsync')
sealGeneration(directory)
renameSync(directory, `${set}/${stamp}`)
done('seal')
process.stdout.write(`${steps.join(', ')} ms; ${copied} files\n`)
