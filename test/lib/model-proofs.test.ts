import { suite } from 'uvu'
import {
  lastOfEachKind,
  lastOfSet,
  lastProvenMs,
  receiptsOf,
  standingDamage,
} from '../../lib/model/proofs.ts'
import type { Receipt } from '../../lib/model/receipt.ts'
import * as assert from '../helpers/assert.ts'

const OLD = 'test/home/2026-05-01T020000Z'
const NEW = 'test/home/2026-05-08T020000Z'

let day = 0

/** Each a day later than the one before. */
function receipt(change: Partial<Receipt> = {}): Receipt {
  day++
  const time = new Date(Date.UTC(2026, 4, day)).toISOString()
  return {
    format: 1,
    kind: 'verification',
    machine: 'test',
    target: 't9',
    drive: undefined,
    repository: 'r1',
    exports: [OLD],
    start: time,
    end: time,
    how: 'restored',
    bundles: 1,
    files: 1,
    bytes: 1,
    totalBytes: 1,
    seed: undefined,
    result: 'good',
    damaged: [],
    ...change,
  }
}

function damaged(change: Partial<Receipt> = {}): Receipt {
  return receipt({ result: 'damaged', damaged: ['a bundle'], ...change })
}

const nothingIsGone = (): boolean => false
const oldIsGone = (repository: string, name: string): boolean => {
  return repository === 'r1' && name === OLD
}

const proofs = suite('proofs')

proofs('damage stands when it is found, and after a good drill', () => {
  const found = damaged()
  assert.is(standingDamage([receipt(), found], nothingIsGone), found)
  assert.is(standingDamage([found, receipt({ kind: 'drill' })], nothingIsGone), found)
  assert.is(standingDamage([receipt(), receipt({ kind: 'drill' })], nothingIsGone), undefined)
  assert.is(standingDamage([], nothingIsGone), undefined)
})

proofs('a good verification ends it, if it looked at the same as closely', () => {
  const found = damaged({ exports: [OLD, NEW] })
  const both = { exports: [NEW, OLD] }
  const stands = (...later: readonly Receipt[]) => {
    return standingDamage([found, ...later], nothingIsGone) === found
  }
  assert.is(stands(receipt(both)), false)
  assert.is(stands(receipt({ exports: [OLD] }), receipt({ exports: [NEW] })), false)
  assert.is(stands(receipt({ exports: [NEW] })), true, 'the old one was not looked at')
  assert.is(stands(receipt({ ...both, how: 'checksums' })), true, 'checksums are less than content')
  assert.is(stands(damaged(both)), false, 'the newest damage is what is named')
  const byChecksums = damaged({ how: 'checksums' })
  assert.is(standingDamage([byChecksums, receipt({ how: 'checksums' })], nothingIsGone), undefined)
})

proofs('a part takes no damage back, nor does what was read before it was found', () => {
  const found = damaged()
  const stands = (later: Receipt) => standingDamage([found, later], nothingIsGone) === found
  assert.is(stands(receipt({ kind: 'partial' })), true)
  const foundMs = Date.parse(found.end)
  const since = (ms: number) => receipt({ since: new Date(foundMs + ms).toISOString() })
  assert.is(stands(since(-1)), true)
  assert.is(stands(since(0)), false)
  const part = damaged({ kind: 'partial' })
  assert.is(standingDamage([receipt(), part], nothingIsGone), part, 'what a part finds stands')
  assert.is(standingDamage([part, receipt()], nothingIsGone), undefined)
})

proofs('for an export that is gone, a newer one of its set will do', () => {
  const found = damaged()
  assert.is(standingDamage([found], oldIsGone), found)
  const later = receipt({ exports: [NEW] })
  assert.is(standingDamage([found, later], nothingIsGone), found)
  assert.is(standingDamage([found, later], oldIsGone), undefined)
  const other = receipt({ exports: ['test/photos/2026-05-08T020000Z'] })
  assert.is(standingDamage([found, other], oldIsGone), found)
})

proofs('only the receipts of the repository that is there now count', () => {
  const [other, before, now] = [
    receipt({ target: 'nas' }),
    damaged({ repository: 'r0' }),
    receipt({ repository: 'r1' }),
  ]
  const all = [other, before, now]
  const place = { target: 't9', drive: undefined }
  assert.equal(receiptsOf(all, { ...place, repository: undefined }), [now])
  assert.equal(receiptsOf(all, { ...place, repository: 'r0' }), [before])
  assert.equal(receiptsOf(all, { ...place, repository: 'r2' }), [])
})

proofs(
  'one drive of a pool proves nothing of another; a single drive has its target’s name',
  () => {
    const [blue, red, single] = [
      receipt({ drive: 'blue' }),
      receipt({ drive: 'red' }),
      receipt({ target: 'usb' }),
    ]
    const all = [blue, red, single]
    const repository = undefined
    assert.equal(receiptsOf(all, { target: 't9', drive: 'blue', repository }), [blue])
    assert.equal(receiptsOf(all, { target: 't9', drive: 'green', repository }), [])
    assert.equal(receiptsOf(all, { target: 'usb', drive: 'usb', repository }), [single])
  },
)

proofs('the last of each kind, and the last of a set', () => {
  const [first, drill, second] = [
    receipt(),
    receipt({ kind: 'drill', exports: ['test/home-2/2026-05-08T020000Z'] }),
    damaged(),
  ]
  const all = [first, drill, second]
  assert.equal(lastOfEachKind(all), [second, drill])
  assert.is(lastOfSet(all, { machine: 'test', set: 'home' }), second)
  assert.is(lastOfSet(all, { machine: 'test', set: 'home-2' }), drill)
  assert.is(lastOfSet(all, { machine: 'other', set: 'home' }), undefined)
})

proofs('a set was proven when it was read, not when a later run took that over', () => {
  const home = { machine: 'test', set: 'home' }
  const first = receipt()
  const since = first.start
  const drill = receipt({ kind: 'drill' })
  const verification = receipt({ since })
  assert.is(lastProvenMs([first, verification], home), Date.parse(since))
  assert.is(lastProvenMs([first, drill, verification], home), Date.parse(drill.end))
  assert.is(lastProvenMs([first, damaged()], home), Date.parse(first.end))
  assert.is(lastProvenMs([damaged()], home), undefined)
  assert.is(lastProvenMs([first], { ...home, set: 'mail' }), undefined)
})

proofs.run()
