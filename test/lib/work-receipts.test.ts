import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import type { BackupError } from '../../lib/errors.ts'
import { generateSigningKey, publicKeyText, sign } from '../../lib/format/minisign.ts'
import type { Receipt } from '../../lib/model/receipt.ts'
import {
  encodeReceipt,
  lastProof,
  parseReceipt,
  poolDrive,
  readReceipts,
  receiptName,
  receiptOfVerification,
  writeReceipt,
} from '../../lib/work/receipts.ts'
import type { Signer } from '../../lib/work/signing.ts'
import type { VerifiedExport } from '../../lib/work/verify.ts'
import * as assert from '../helpers/assert.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { runStock } from '../helpers/stock.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const receipts = suite('work/receipts')

const DAY_MS = 86_400_000
const root = tempDirectory()
let made = 0

function newStaging(): string {
  const staging = `${root}/${++made}`
  mkdirSync(staging)
  return staging
}

async function newSigner(): Promise<Signer> {
  const key = await generateSigningKey()
  return {
    publicKey: publicKeyText(key),
    sign: async (bytes, of) => await sign({ bytes, key, ...of }),
  }
}

const ours = await newSigner()

const drill: Receipt = {
  format: 1,
  kind: 'drill',
  machine: 'tester',
  target: 't9',
  drive: undefined,
  repository: '0123456789abcdef0123456789abcdef',
  exports: ['tester/data/2026-05-01T020000Z'],
  start: '2026-05-01T02:00:00.000Z',
  end: '2026-05-01T02:00:07.250Z',
  how: 'restored',
  bundles: 2,
  files: 10,
  bytes: 1000,
  totalBytes: 4000,
  seed: '0123456789abcdef0123456789abcdef/2026-05-01',
  result: 'good',
  damaged: [],
}

const verification: Receipt = { ...drill, kind: 'verification', seed: undefined }

const bad = {
  result: 'damaged',
  damaged: ['tester/data/2026-05-01T020000Z: home/ä\\x0a'],
} as const satisfies Partial<Receipt>

/** The same, `days` later. */
function later(receipt: Receipt, days: number): Receipt {
  return { ...receipt, end: new Date(Date.parse(receipt.end) + days * DAY_MS).toISOString() }
}

const filesIn = (staging: string): string[] => readdirSync(`${staging}/.state/receipts`).sort()

receipts('what is written is read again, the newest last', async () => {
  const staging = newStaging()
  assert.equal(await readReceipts(staging, [ours.publicKey]), { receipts: [], unbelieved: [] })
  const all = [
    later({ ...drill, ...bad, target: 'a' }, 2),
    { ...drill, drive: 'blue' },
    later(verification, 1),
  ]
  for (const receipt of all) {
    assert.equal(await writeReceipt({ staging, receipt, signer: ours }), receipt)
  }
  const read = await readReceipts(staging, [ours.publicKey])
  assert.equal(read, { receipts: [all[1], all[2], all[0]], unbelieved: [] })
  const names = [
    '2026-05-01T020007Z-t9-blue-drill',
    '2026-05-02T020007Z-t9-verification',
    '2026-05-03T020007Z-a-drill',
  ]
  assert.equal(read.receipts.map(receiptName), names)
  assert.equal(
    filesIn(staging),
    names.flatMap((name) => [`${name}.json`, `${name}.json.minisig`]),
  )
  for (const file of filesIn(staging)) {
    assert.is(statSync(`${staging}/.state/receipts/${file}`).mode & 0o777, 0o600)
  }
  assert.is(statSync(`${staging}/.state/receipts`).mode & 0o777, 0o700)
})

receipts('minisign takes the signature, and it names the receipt and its repository', async () => {
  const staging = newStaging()
  await writeReceipt({ staging, receipt: drill, signer: ours })
  const file = `${staging}/.state/receipts/${receiptName(drill)}.json`
  const words = ['-V', '-P', ours.publicKey, '-m', file]
  const checked = runStock('minisign', words)
  assert.is(checked.status, 0, checked.stderr)
  assert.match(
    checked.stdout + checked.stderr,
    `file:tester/receipts/${receiptName(drill)}.json\trepository:${drill.repository}`,
  )
  writeFileSync(file, readFileSync(file, 'utf8').replace('"files":10', '"files":11'))
  assert.is.not(runStock('minisign', words).status, 0)
})

receipts('two of one target in a second are a second apart', async () => {
  const staging = newStaging()
  const first = await writeReceipt({ staging, receipt: drill, signer: ours })
  const second = await writeReceipt({ staging, receipt: drill, signer: ours })
  assert.is(first.end, drill.end)
  assert.is(second.end, '2026-05-01T02:00:08.250Z')
  const { receipts: read } = await readReceipts(staging, [ours.publicKey])
  assert.equal(read, [first, second])
})

receipts('what was changed, moved, unsigned or signed by others is not believed', async () => {
  const staging = newStaging()
  const directory = `${staging}/.state/receipts`
  const tamper = async (receipt: Receipt, change: (file: string) => void): Promise<string> => {
    await writeReceipt({ staging, receipt, signer: ours })
    change(`${directory}/${receiptName(receipt)}.json`)
    return receiptName(receipt)
  }
  const damaged = { ...drill, ...bad }
  const unbelieved = [
    await tamper(later(damaged, 1), (file) => writeFileSync(file, encodeReceipt(later(drill, 1)))),
    await tamper(later(drill, 2), (file) => rmSync(`${file}.minisig`)),
    await tamper(later(drill, 3), (file) => writeFileSync(file, '{}\n')),
    await tamper(later(drill, 4), (file) => writeFileSync(`${file}.minisig`, 'no signature\n')),
  ]
  const stranger = later(drill, 5)
  await writeReceipt({ staging, receipt: stranger, signer: await newSigner() })
  unbelieved.push(receiptName(stranger))
  // A good one of yesterday under the name of today.
  const moved = receiptName(later(drill, 7))
  await tamper(later(drill, 6), (file) => {
    for (const end of ['', '.minisig'])
      renameSync(`${file}${end}`, `${directory}/${moved}.json${end}`)
  })
  unbelieved.push(moved)
  const good = later(drill, 8)
  await writeReceipt({ staging, receipt: good, signer: ours })
  const read = await readReceipts(staging, [ours.publicKey])
  assert.equal(read, { receipts: [good], unbelieved })
  for (const name of unbelieved) assert.ok(existsSync(`${directory}/${name}.json`), 'it stays')
})

receipts('only what encodeReceipt writes is a receipt', () => {
  const text = encodeReceipt(drill).toString()
  assert.equal(parseReceipt(Buffer.from(text)), drill)
  assert.equal(parseReceipt(encodeReceipt({ ...drill, ...bad, drive: 'blue' })), {
    ...drill,
    ...bad,
    drive: 'blue',
  })
  const wrong = [
    '',
    'null\n',
    '[]\n',
    text.trimEnd(),
    `${text}\n`,
    text.replace('{', '{"more":1,'),
    text.replace('"format":1', '"format":2'),
    text.replace('"kind":"drill"', '"kind":"wish"'),
    text.replace('"kind":"drill",', ''),
    text.replace('"machine":"tester"', '"machine":"../x"'),
    text.replace('"target":"t9"', '"target":"T9"'),
    text.replace('tester/data/2026', 'tester/data/x/2026'),
    text.replace('T020000Z', 'T990000Z'),
    text.replace(/"exports":\[[^\]]*\]/, '"exports":[]'),
    text.replace('02:00:07.250Z', '02:00:07Z'),
    text.replace('"files":10', '"files":-1'),
    text.replace('"files":10', '"files":1.5'),
    text.replace('"result":"good"', '"result":"damaged"'),
    text.replace('"damaged":[]', '"damaged":["x"]'),
    text.replace('"damaged":[]', '"damaged":{}'),
    text.replace('"repository":"0', '"repository":"'),
  ]
  for (const one of wrong) {
    assert.is.not(one, text)
    assert.is(parseReceipt(Buffer.from(one)), undefined, one)
  }
})

receipts('the oldest go, but for the last of each kind, place and result', async () => {
  const staging = newStaging()
  const directory = `${staging}/.state/receipts`
  mkdirSync(directory, { recursive: true, mode: 0o700 })
  const put = async (receipt: Receipt) => {
    const file = `${directory}/${receiptName(receipt)}.json`
    const as = `tester/receipts/${receiptName(receipt)}.json`
    const bytes = encodeReceipt(receipt)
    writeFileSync(file, bytes)
    const signature = await ours.sign(bytes, { file: as, repository: receipt.repository })
    writeFileSync(`${file}.minisig`, signature)
    return receipt
  }
  const kept = [
    await put(later({ ...drill, ...bad }, 2)),
    await put(later({ ...drill, target: 'gone' }, 3)),
    await put(later({ ...drill, drive: 'blue' }, 4)),
    await put(later(verification, 5)),
  ]
  const goes = [
    await put(later({ ...drill, ...bad }, 1)),
    await put(later({ ...verification, ...{} }, 0)),
    await put(drill),
  ]
  for (let i = 0; i < 199; i++) kept.push(await put(later(drill, 10 + i)))
  writeFileSync(`${directory}/2026-01-01T000000Z-t9-drill.json`, 'no receipt\n')
  writeFileSync(`${directory}/2026-01-02T000000Z-t9-drill.json.minisig`, 'of nothing\n')
  writeFileSync(`${directory}/2026-01-03T000000Z-t9-drill.json.partial`, '{"for')
  writeFileSync(`${directory}/notes.txt`, 'of somebody\n')
  const newest = later(drill, 1000)
  await writeReceipt({ staging, receipt: newest, signer: ours })

  const read = await readReceipts(staging, [ours.publicKey])
  assert.equal(read.receipts, [...kept, newest])
  assert.equal(read.unbelieved, ['2026-01-01T000000Z-t9-drill'])
  const files = new Set(filesIn(staging))
  for (const receipt of goes) {
    assert.not.ok(files.has(`${receiptName(receipt)}.json`))
    assert.not.ok(files.has(`${receiptName(receipt)}.json.minisig`))
  }
  assert.not.ok(files.has('2026-01-02T000000Z-t9-drill.json.minisig'))
  assert.not.ok(files.has('2026-01-03T000000Z-t9-drill.json.partial'))
  assert.ok(files.has('notes.txt'))
})

receipts('staging is never made, and what cannot be written is said', async () => {
  const staging = `${root}/nowhere`
  await rejectsWith('STAGING_FAILED', writeReceipt({ staging, receipt: drill, signer: ours }))
  assert.not.ok(existsSync(staging))
  const file = newStaging()
  writeFileSync(`${file}/.state`, '')
  await rejectsWith('STAGING_FAILED', writeReceipt({ staging: file, receipt: drill, signer: ours }))
  await rejectsWith('STAGING_FAILED', readReceipts(file, [ours.publicKey]))
})

receipts('what a killed run left under the name is written anew', async () => {
  const staging = newStaging()
  const directory = `${staging}/.state/receipts`
  mkdirSync(directory, { recursive: true })
  const name = `${receiptName(drill)}.json`
  writeFileSync(`${directory}/${name}.minisig`, 'of a run that was killed')
  writeFileSync(`${directory}/${name}.partial`, '{')
  chmodSync(`${directory}/${name}.partial`, 0o400)
  await writeReceipt({ staging, receipt: drill, signer: ours })
  assert.equal((await readReceipts(staging, [ours.publicKey])).receipts, [drill])
  assert.equal(filesIn(staging), [name, `${name}.minisig`])
})

receipts('the last proofs are told by target, drive, repository, set and export', () => {
  const other = { ...drill, exports: ['tester/mail/2026-05-02T020000Z'] }
  const all = [
    verification,
    later({ ...drill, drive: 'blue' }, 1),
    later(other, 2),
    later({ ...drill, target: 'x' }, 3),
  ]
  const proof = lastProof(all, { target: 't9' })
  assert.equal(proof, { verification: all[0], drill: all[2], damaged: undefined })
  assert.is(lastProof(all, { target: 't9', drive: 'blue' }).drill, all[1])
  assert.is(lastProof(all, { target: 't9', drive: 'blue' }).verification, undefined)
  assert.is(lastProof(all, { target: 't9', export: 'tester/data' }).drill, all[1])
  assert.is(lastProof(all, { target: 't9', export: other.exports[0] }).drill, all[2])
  assert.is(lastProof(all, { target: 't9', export: 'tester/dat' }).drill, undefined)
  const nothing = { verification: undefined, drill: undefined, damaged: undefined }
  assert.equal(lastProof(all, { target: 't9', repository: 'ff'.repeat(16) }), nothing)
  assert.equal(lastProof(all, { target: 'never' }), nothing)
})

receipts('damage stands until a verification of the same sets says otherwise', () => {
  const damaged = { ...drill, ...bad }
  const about = { target: 't9' }
  const standing = (next: Receipt) => lastProof([damaged, later(next, 1)], about).damaged
  assert.is(standing(drill), damaged, 'a drill read other bytes')
  assert.is(standing({ ...verification, ...bad })?.kind, 'verification')
  assert.is(standing({ ...verification, exports: ['tester/mail/2026-05-02T020000Z'] }), damaged)
  assert.is(standing({ ...verification, repository: 'ff'.repeat(16) }), damaged)
  assert.is(standing({ ...verification, how: 'checksums' }), damaged, 'it compared less')
  assert.is(standing(verification), undefined)
  const older = { ...verification, exports: ['tester/data/2026-04-30T020000Z'] }
  assert.is(standing(older), damaged)
  const newer = { ...verification, exports: ['tester/data/2026-05-09T020000Z'] }
  assert.is(standing(newer), undefined)
  assert.is(lastProof([verification, later(damaged, 1)], about).damaged?.result, 'damaged')
  assert.is(lastProof([verification, later(damaged, 1)], about).drill, undefined, 'only good ones')
})

receipts(
  'a partial verification is a receipt of its own, and only a verification has since',
  () => {
    const partial: Receipt = { ...drill, kind: 'partial', files: 0 }
    assert.equal(parseReceipt(encodeReceipt(partial)), partial)
    assert.is(receiptName(partial), '2026-05-01T020007Z-t9-partial')
    const { start, end, ...rest } = verification
    const since = '2026-04-01T02:00:00.000Z'
    const slow = { ...rest, start, end, since }
    assert.equal(parseReceipt(encodeReceipt(slow)), slow)
    assert.is(parseReceipt(encodeReceipt({ ...partial, since })), undefined)
    assert.is(parseReceipt(encodeReceipt({ ...slow, since: 'May' })), undefined)
    const about = { target: 't9' }
    assert.is(lastProof([partial], about).verification, undefined)
    const found = later({ ...verification, ...bad }, -10)
    assert.is(lastProof([found, partial], about).damaged, found)
    assert.is(lastProof([found, slow], about).damaged, found, 'it was read before')
    assert.is(lastProof([later(found, -30), slow], about).damaged, undefined)
  },
)

receipts('a verification becomes a receipt, with what it found', () => {
  const configuration = configurationOf(setConfiguration(), { staging: '/none', machine: 'tester' })
  const target = { name: 't9', drive: 't9' } as never
  const repository = { target, id: drill.repository, created: '2026-05-01T000000Z' }
  const one: VerifiedExport = {
    machine: 'tester',
    set: 'data',
    stamp: '2026-05-01T020000Z',
    complete: true,
    files: 3,
    bytes: 700,
    problems: [],
    unread: 0,
    left: 0,
    needs: [],
    damaged: [],
  }
  const outcome = {
    exports: [one],
    bundles: 4,
    bytesRead: 900,
    deep: true,
    damagedFiles: [],
    wholeFiles: [],
  }
  const of = { configuration, repository, startMs: 0, endMs: 1500 }
  const good = receiptOfVerification({ ...of, outcome })
  assert.equal(good, {
    ...verification,
    start: '1970-01-01T00:00:00.000Z',
    end: '1970-01-01T00:00:01.500Z',
    bundles: 4,
    files: 3,
    bytes: 900,
    totalBytes: 900,
  })
  assert.equal(parseReceipt(encodeReceipt(good)), good)

  const problem = {
    code: 'BUNDLE_DAMAGED' as const,
    message: 'data-0001 is short',
    hint: undefined,
  }
  const problems = [{ ...problem, facts: {}, stack: undefined }]
  const exports = [
    { ...one, problems, damaged: Array.from({ length: 99 }, (_, i) => `home/${i}\n`) },
    { ...one, set: 'mail', files: undefined, problems },
    { ...one, set: 'more', problems },
  ]
  const found = receiptOfVerification({ ...of, outcome: { ...outcome, exports, deep: false } })
  assert.is(found.result, 'damaged')
  assert.is(found.how, 'checksums')
  assert.is(found.damaged.length, 100)
  assert.is(found.damaged[0], 'tester/data/2026-05-01T020000Z: home/0\\x0a')
  assert.is(found.damaged[99], 'tester/mail/2026-05-01T020000Z: data-0001 is short')
  assert.equal(parseReceipt(encodeReceipt(found)), found)
})

receipts('a receipt names the drive of a pool, and of nothing else', () => {
  const drive = {
    kind: 'drive',
    path: 'backup',
    everyMs: undefined,
    afterwards: 'as_found',
  } as const
  const any = { bundleSizeBytes: 2 ** 20, compressionLevel: 3, priority: 1, parityPercent: 0 }
  const blue = { name: 'blue', label: 'BLUE', uuid: undefined }
  const alone = { ...any, ...drive, drill: 'auto', name: 'alone', isPool: false } as const
  const pool = { ...any, ...drive, drill: 'auto', name: 'pool', isPool: true } as const
  const targets = [
    { ...alone, drives: [{ ...blue, name: 'alone' }] },
    { ...pool, drives: [blue] },
  ]
  const configuration = { targets }
  assert.is(poolDrive({ configuration, targetName: 'pool', drive: 'blue' }), 'blue')
  assert.is(poolDrive({ configuration, targetName: 'alone', drive: 'alone' }), undefined)
  assert.is(poolDrive({ configuration, targetName: 'gone', drive: 'x' }), undefined)
})

async function rejectsWith(code: string, promise: Promise<unknown>): Promise<void> {
  try {
    await promise
  } catch (error) {
    assert.is((error as BackupError).code, code)
    return
  }
  assert.unreachable(`no ${code}`)
}

receipts.run()
