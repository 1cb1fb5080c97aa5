import { createHash } from 'node:crypto'
import { suite } from 'uvu'
import { generateSigningKey, publicKeyText, sign } from '../../lib/format/minisign.ts'
import type { NoticeEvent, ReportEvent } from '../../lib/model/report.ts'
import { encodeVerification } from '../../lib/model/verification.ts'
import {
  describeHidden,
  findHidden,
  hiddenError,
  readableVersion,
  restoreHidden,
} from '../../lib/work/hidden-objects.ts'
import { readPruneRecords, recordPrune } from '../../lib/work/prune-records.ts'
import type { Repository } from '../../lib/work/repository.ts'
import type { Signer } from '../../lib/work/signing.ts'
import * as assert from '../helpers/assert.ts'
import { bucketTarget, type BucketTarget } from '../helpers/bucket-target.ts'
import { type S3Server, startS3Server } from '../helpers/s3-server.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const hide = suite('work/hidden-objects')
const root = tempDirectory()
const MACHINE = 'den'
const key = await generateSigningKey()
const publicKey = publicKeyText(key)
const publicKeys = [publicKey]
const signer: Signer = {
  publicKey,
  sign: async (bytes, { file, repository }) => await sign({ bytes, key, file, repository }),
}

interface Scene {
  readonly server: S3Server
  readonly target: BucketTarget
  readonly repository: Repository
  readonly find: () => ReturnType<typeof findHidden>
  readonly notices: NoticeEvent[]
  readonly report: (event: ReportEvent) => void
}

const running: Scene[] = []
let moment = Date.parse('2025-04-01T02:00:00Z')

/** Each call a second later, as the service's listings have it. */
function tick(): number {
  return (moment += 1000)
}

async function scene({ versioning = true }: { versioning?: boolean } = {}): Promise<Scene> {
  const server = await startS3Server({
    buckets: { bucket: { versioning } },
    users: {
      admin: { secret: 'one' },
      backup: { secret: 'two', may: (action) => !/Delete|Version/.test(action) },
      lister: { secret: 'three', may: (action) => !action.startsWith('s3:Delete') },
    },
    nowMs: tick,
  })
  const profiles = { admin: 'admin', backup: 'backup', lister: 'lister' }
  Object.assign(process.env, server.writeProfiles(root, profiles))
  const target = bucketTarget({ server, profile: 'lister', adminProfile: 'admin' })
  const repository = { target, id: 'f'.repeat(32), created: '2025-04-01T020000Z' }
  const notices: NoticeEvent[] = []
  const report = (event: ReportEvent): void => void (event.kind === 'notice' && notices.push(event))
  const find = async () => await findHidden(repository, { machine: MACHINE, publicKeys })
  const made = { server, target, repository, find, notices, report }
  running.push(made)
  await target.write('repository.json', Buffer.from(JSON.stringify({ id: repository.id })))
  await target.write('recover.sh', Buffer.from('#!/bin/sh\n'))
  const machineFile = Buffer.from(JSON.stringify({ machine: MACHINE }))
  const of = { file: `${MACHINE}/machine.json`, repository: repository.id }
  await target.write(
    `machines/${MACHINE}/machine.json.minisig`,
    Buffer.from(await signer.sign(machineFile, of)),
  )
  await target.write(`machines/${MACHINE}/machine.json`, machineFile)
  return made
}

const sha256 = (bytes: Buffer | string): string => createHash('sha256').update(bytes).digest('hex')
const directory = (name: string): string => `machines/${MACHINE}/${name}`
const bundlePath = (name: string): string => `${directory(name)}.tar.zst.age`

/** An export `<set>/<stamp>` with a bundle of its own, which needs others besides. */
async function writeExport(
  { target, repository }: Scene,
  name: string,
  needs: readonly string[] = [],
  manifestText = `manifest ${name}`,
): Promise<void> {
  const [set = '', stamp = ''] = name.split('/')
  const own = `${name}/data-0001`
  await target.write(bundlePath(own), Buffer.from(`bundle ${own}`))
  const manifest = Buffer.from(manifestText)
  const bundles = new Map([own, ...needs].map((one) => [one, sha256(`bundle ${one}`)]))
  const text = encodeVerification({ bundles, manifestSha256: sha256(manifest) }, { set, stamp })
  const bytes = Buffer.from(text)
  const file = `${MACHINE}/${name}/verification.sha256`
  const signature = await signer.sign(bytes, { file, repository: repository.id })
  await target.write(`${directory(name)}/verification.sha256`, bytes)
  await target.write(`${directory(name)}/verification.sha256.minisig`, Buffer.from(signature))
  await target.write(`${directory(name)}/manifest.tar.zst.age`, manifest)
}

const FIRST = 'home/2025-04-01T020000Z'
const SECOND = 'home/2025-04-02T020000Z'
const OWN = ['data-0001.tar.zst.age', 'verification.sha256', 'verification.sha256.minisig']

/** As prune does it: the manifest first. */
async function remove({ target }: Scene, name: string, files = OWN): Promise<void> {
  await target.remove(`${directory(name)}/manifest.tar.zst.age`)
  for (const file of files) await target.remove(`${directory(name)}/${file}`)
}

const pathsOf = (found: Awaited<ReturnType<typeof findHidden>>): readonly string[] => {
  return found.hidden.map(({ path }) => path).sort()
}

hide('where nothing is hidden only listings are asked for', async () => {
  const made = await scene()
  await writeExport(made, FIRST)
  // A repeated upload of the same bytes.
  await made.target.write(
    bundlePath(`${FIRST}/data-0001`),
    Buffer.from(`bundle ${FIRST}/data-0001`),
  )
  made.server.resetRequests()
  assert.equal(await made.find(), { isKnowable: true, why: undefined, hidden: [], unjudged: [] })
  assert.equal(
    [...new Set(made.server.requests.map(({ action }) => action))],
    ['ListObjectVersions'],
  )
  assert.is(hiddenError(made.repository, await made.find()), undefined)
})

hide('a deleted bundle is found, told, read in its older version, and brought back', async () => {
  const made = await scene()
  const { target, server, report } = made
  await writeExport(made, FIRST)
  await writeExport(made, SECOND, [`${FIRST}/data-0001`])
  const path = bundlePath(`${FIRST}/data-0001`)
  await target.remove(path)
  const found = await made.find()
  assert.equal(pathsOf(found), [path])
  const [one] = found.hidden
  assert.is(one?.how, 'deleted')
  assert.match(describeHidden(one!), /was deleted at 2025-.* UTC, needed by home\/2025/)
  assert.is(hiddenError(made.repository, found)?.code, 'OBJECT_HIDDEN')
  assert.is(await readableVersion(target.bucket, path), one?.good.versionId)
  assert.is(await readableVersion(target.bucket, bundlePath(`${SECOND}/data-0001`)), undefined)
  const looked = await restoreHidden(target.bucket, found.hidden, { isDryRun: true, report })
  assert.equal(looked.restored, [path])
  assert.is(await target.read(path, 100), undefined, 'a dry run changes nothing')
  const outcome = await restoreHidden(target.bucket, found.hidden, { isDryRun: false, report })
  assert.equal(outcome, { restored: [path], failed: [] })
  assert.is((await target.read(path, 100))?.toString(), `bundle ${FIRST}/data-0001`)
  assert.is(server.versions('bucket', `backups/${path}`).length, 1)
  assert.equal((await made.find()).hidden, [])
})

hide('an overwritten bundle is found, whatever it claims; the right one comes on top', async () => {
  const made = await scene()
  const { target, server, report } = made
  await writeExport(made, FIRST)
  const path = bundlePath(`${FIRST}/data-0001`)
  const good = Buffer.from(`bundle ${FIRST}/data-0001`)
  const metadata = { sha256: sha256(good) }
  const forged = Buffer.from('ransom')
  await target.bucket.calls.put({ key: `backups/${path}`, body: forged, metadata })
  const found = await made.find()
  assert.equal(pathsOf(found), [path])
  assert.is(found.hidden[0]?.how, 'overwritten')
  const outcome = await restoreHidden(target.bucket, found.hidden, { isDryRun: false, report })
  assert.equal(outcome.failed, [])
  assert.is((await target.read(path, 100))?.toString(), good.toString())
  assert.equal(
    server.versions('bucket', `backups/${path}`).map(({ body }) => body.toString()),
    [good.toString(), 'ransom', good.toString()],
    'no data is removed',
  )
  assert.equal((await made.find()).hidden, [], 'what was brought back is no alarm')
})

hide('overwritten and then deleted: the signed version is the one that comes back', async () => {
  const made = await scene()
  const { target, report } = made
  await writeExport(made, FIRST)
  const path = bundlePath(`${FIRST}/data-0001`)
  await target.write(path, Buffer.from('ransom'))
  await target.remove(path)
  const found = await made.find()
  assert.equal(found.hidden[0]?.markers, [], 'taking the deletion away would show the forgery')
  const good = sha256(`bundle ${FIRST}/data-0001`)
  const version = await readableVersion(target.bucket, path, { sha256: good })
  assert.is(version, found.hidden[0]?.good.versionId)
  await restoreHidden(target.bucket, found.hidden, { isDryRun: false, report })
  assert.is((await target.read(path, 100))?.toString(), `bundle ${FIRST}/data-0001`)
})

hide('a prune on record is no alarm; the same without a record is', async () => {
  const made = await scene()
  const { repository } = made
  await writeExport(made, FIRST)
  await writeExport(made, SECOND)
  const exports = [{ set: 'home', stamp: '2025-04-01T020000Z' }]
  const nowMs = Date.parse('2025-04-02T03:00:00Z')
  const path = await recordPrune(repository, { machine: MACHINE, exports, signer, nowMs })
  assert.is(path, `machines/${MACHINE}/pruned/2025-04-02T030000Z.json`)
  await remove(made, FIRST)
  assert.equal((await made.find()).hidden, [])
  const records = await readPruneRecords(repository, { machine: MACHINE, publicKeys })
  assert.equal(records, [{ stamp: '2025-04-02T030000Z', exports: [FIRST] }])
  await remove(made, SECOND)
  const all = ['manifest.tar.zst.age', ...OWN].map((file) => `${directory(SECOND)}/${file}`).sort()
  assert.equal(pathsOf(await made.find()), all)
  const again = await recordPrune(repository, { machine: MACHINE, exports, signer, nowMs })
  assert.is(again, `machines/${MACHINE}/pruned/2025-04-02T030001Z.json`, 'no record is overwritten')
})

hide('a bundle that a pruned export shared with another stays an alarm', async () => {
  const made = await scene()
  await writeExport(made, FIRST)
  await writeExport(made, SECOND, [`${FIRST}/data-0001`])
  const exports = [{ set: 'home', stamp: '2025-04-01T020000Z' }]
  await recordPrune(made.repository, { machine: MACHINE, exports, signer, nowMs: moment })
  await remove(made, FIRST)
  assert.equal(pathsOf(await made.find()), [bundlePath(`${FIRST}/data-0001`)])
})

hide('a record that nobody trusted signed excuses nothing', async () => {
  const made = await scene()
  await writeExport(made, FIRST)
  const other = await generateSigningKey()
  const forger: Signer = {
    publicKey: publicKeyText(other),
    sign: async (bytes, { file, repository }) =>
      await sign({ bytes, key: other, file, repository }),
  }
  const exports = [{ set: 'home', stamp: '2025-04-01T020000Z' }]
  await recordPrune(made.repository, { machine: MACHINE, exports, signer: forger, nowMs: moment })
  await remove(made, FIRST)
  assert.is((await made.find()).hidden.length, 4)
  const of = { machine: MACHINE, publicKeys }
  assert.equal(await readPruneRecords(made.repository, of), [])
})

hide('what a killed run left, and probes and freshness, are no alarm', async () => {
  const made = await scene()
  const { target } = made
  await writeExport(made, FIRST)
  for (const path of [
    bundlePath(`${SECOND}/data-0001`),
    `${directory(SECOND)}/verification.sha256`,
    '.probe/1',
    `machines/${MACHINE}/freshness.json`,
  ]) {
    await target.write(path, Buffer.from('first'))
    await target.remove(path)
  }
  await target.write(`machines/${MACHINE}/freshness.json`, Buffer.from('newer'))
  assert.equal((await made.find()).hidden, [])
  // The same stamp again: its first bundle was another one, and the oldest is not the right one.
  await writeExport(made, SECOND)
  assert.equal((await made.find()).hidden, [])
  await target.remove(bundlePath(`${SECOND}/data-0001`))
  const [one] = (await made.find()).hidden
  assert.is(one?.good.sizeBytes, `bundle ${SECOND}/data-0001`.length)
})

hide('a signed list of a killed run, put back on top, does not hide the real one', async () => {
  const made = await scene()
  const { target, server } = made
  const list = `${directory(FIRST)}/verification.sha256`
  await writeExport(made, FIRST, [], 'another manifest')
  const [bytes, signature] = [
    await target.read(list, 1000),
    await target.read(`${list}.minisig`, 99),
  ]
  // It was killed before its manifest, and swept.
  server.lose('bucket', `backups/${directory(FIRST)}/manifest.tar.zst.age`)
  await remove(made, FIRST)
  await writeExport(made, FIRST)
  await target.write(`${list}.minisig`, signature!)
  await target.write(list, bytes!)
  assert.equal(pathsOf(await made.find()), [list, `${list}.minisig`])
})

hide('our files that are written once are watched as well', async () => {
  const made = await scene()
  const { target, report } = made
  await writeExport(made, FIRST)
  await target.write('recover.sh', Buffer.from('#!/bin/sh\nrm -rf /\n'))
  await target.write(`machines/${MACHINE}/machine.json`, Buffer.from('{"keys":"mine"}'))
  await target.remove('repository.json')
  const found = await made.find()
  const paths = [`machines/${MACHINE}/machine.json`, 'recover.sh', 'repository.json']
  assert.equal(pathsOf(found), paths)
  await restoreHidden(target.bucket, found.hidden, { isDryRun: false, report })
  assert.is((await target.read('recover.sh', 100))?.toString(), '#!/bin/sh\n')
  assert.equal((await made.find()).hidden, [])
})

hide('an export whose signed list is gone in every version is named', async () => {
  const made = await scene()
  await writeExport(made, FIRST)
  made.server.lose('bucket', `backups/${directory(FIRST)}/verification.sha256`)
  await made.target.remove(bundlePath(`${FIRST}/data-0001`))
  const found = await made.find()
  assert.equal(found.unjudged, [FIRST])
  assert.match(hiddenError(made.repository, found)?.message ?? '', /signed lists .*are gone/)
})

hide(
  'without the right to remove versions nothing is brought back, and the right is named',
  async () => {
    const made = await scene()
    const { target, server, notices, report } = made
    await writeExport(made, FIRST)
    const path = bundlePath(`${FIRST}/data-0001`)
    await target.remove(path)
    const { hidden } = await made.find()
    const weak = bucketTarget({ server, profile: 'lister' })
    const outcome = await restoreHidden(weak.bucket, hidden, { isDryRun: false, report })
    assert.equal(outcome.restored, [])
    assert.match(outcome.failed[0]?.error.hint ?? '', /admin_profile with s3:DeleteObjectVersion/)
    assert.is(notices[0]?.code, 'STILL_HIDDEN')
    assert.is(await target.read(path, 100), undefined)
    await weak.close()
  },
)

hide('what cannot be known is said: no versions, or no right to see them', async () => {
  const plain = await scene({ versioning: false })
  await writeExport(plain, FIRST)
  const found = await plain.find()
  assert.is(found.isKnowable, false)
  assert.match(found.why ?? '', /keeps no versions/)
  const made = await scene()
  const blind = bucketTarget({ server: made.server, profile: 'backup' })
  const denied = await findHidden(
    { ...made.repository, target: blind },
    { machine: MACHINE, publicKeys },
  )
  assert.is(denied.isKnowable, false)
  assert.match(denied.why ?? '', /s3:ListBucketVersions/)
  await blind.close()
})

hide.after(async () => {
  for (const { target, server } of running) {
    await target.close()
    await server.close()
  }
})

hide.run()
