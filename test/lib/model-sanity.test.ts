import { suite } from 'uvu'
import { doubtsAbout, type SourceFacts } from '../../lib/model/sanity.ts'
import * as assert from '../helpers/assert.ts'

const sanity = suite('model/sanity')

const directory = (change: Partial<SourceFacts> = {}): SourceFacts => ({
  path: 'data',
  isDirectory: true,
  filesystem: 'ext4 1',
  entries: 1000,
  bytes: 1_000_000,
  mounts: [],
  ...change,
})

const why = (now: SourceFacts, before?: SourceFacts, maxLoss = 0.5): string =>
  doubtsAbout({ now: [now], before: before === undefined ? undefined : [before], maxLoss })
    .map((doubt) => doubt.why)
    .join('|')

sanity('a source that is as it was is trusted', () => {
  assert.is(why(directory(), directory()), '')
  assert.is(why(directory()), '')
  assert.is(why(directory({ entries: 5000, bytes: 9e9 }), directory()), '')
})

sanity('an empty source is doubted, whether it was known or not', () => {
  assert.is(why(directory({ entries: 1, bytes: 0 })), 'empty')
  assert.match(why(directory({ entries: 1, bytes: 0 }), directory()), /^empty; it had 1000 entries/)
})

sanity('an empty source that was accepted as empty is trusted', () => {
  const empty = directory({ entries: 1, bytes: 0 })
  assert.is(why(empty, empty), '')
})

sanity('half may go, more may not, in entries and in bytes', () => {
  assert.is(why(directory({ entries: 500 }), directory()), '')
  assert.match(
    why(directory({ entries: 499 }), directory()),
    /^it shrank from 1000 entries .* to 499/,
  )
  assert.is(why(directory({ bytes: 500_000 }), directory()), '')
  assert.match(why(directory({ bytes: 499_999 }), directory()), /shrank/)
})

sanity('the share that may go is configurable, and 1 allows all but an empty source', () => {
  assert.match(why(directory({ entries: 899 }), directory(), 0.1), /shrank/)
  assert.is(why(directory({ entries: 2, bytes: 0 }), directory(), 1), '')
  assert.match(why(directory({ entries: 1, bytes: 0 }), directory(), 1), /empty/)
})

sanity('another filesystem is doubted even with the same content', () => {
  assert.is(
    why(directory({ filesystem: 'ext4 2' }), directory()),
    'on another filesystem: ext4 2, before ext4 1',
  )
})

sanity('a UUID that only one side knows is no doubt, and two that differ are', () => {
  const doubted = (a: string, b: string): boolean => {
    const [one, other] = [a, b].map((filesystem) => directory({ filesystem }))
    const found = why(one as SourceFacts, other)
    assert.is(why(other as SourceFacts, one) === '', found === '')
    return found !== ''
  }
  const uuid = '1b4e28ba-2fa1-11d2-883f-0016d3cca427'
  assert.not(doubted('ext4', `ext4 ${uuid}`))
  assert.not(doubted('btrfs /@home', `btrfs ${uuid} /@home`))
  assert.not(doubted('btrfs /my home', `btrfs ${uuid} /my home`))
  assert.not(doubted('vfat', 'vfat 1234-ABCD'))
  assert.ok(doubted('xfs', `ext4 ${uuid}`))
  assert.ok(doubted('unknown', `ext4 ${uuid}`))
  assert.ok(doubted('btrfs /@', `btrfs ${uuid} /@home`))
  assert.ok(doubted(`btrfs ${uuid} /@`, `btrfs ${uuid} /@home`))
  assert.ok(doubted('btrfs /@', 'btrfs /@home'))
  assert.ok(doubted(`btrfs ${uuid.replace('1', '2')} /@home`, `btrfs ${uuid} /@home`))
  assert.ok(doubted('zfs tank/home', 'zfs tank/other'))
  assert.ok(doubted('zfs tank', 'zfs tank/home'))
  assert.ok(doubted('nfs server:/home', 'nfs server:/other'))
})

sanity('a single file may shrink, but not to nothing', () => {
  const file = (bytes: number): SourceFacts => directory({ isDirectory: false, entries: 1, bytes })
  assert.is(why(file(10), file(1000)), '')
  assert.match(why(file(0), file(1000)), /empty/)
})

sanity('every doubt about a source is named, and each source is compared with its own past', () => {
  const doubts = doubtsAbout({
    now: [directory({ entries: 1, bytes: 0, filesystem: 'ext4 2' }), directory({ path: 'home' })],
    before: [directory(), directory({ path: 'home' })],
    maxLoss: 0.5,
  })
  assert.is(doubts.length, 1)
  assert.match(doubts[0]?.why ?? '', /^empty; .*; on another filesystem/)
})

sanity('a mount below a source that is gone is doubted, a new one is not', () => {
  const mounted = directory({ mounts: ['data/photos', 'data/films'] })
  assert.is(why(mounted, directory()), '')
  assert.is(
    why(directory({ mounts: ['data/films'] }), mounted),
    'nothing is mounted there any more, or it is empty: data/photos',
  )
})

sanity.run()
