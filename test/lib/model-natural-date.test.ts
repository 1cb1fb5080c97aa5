import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { parseMoment } from '../../lib/model/natural-date.ts'
import { pickExports } from '../../lib/work/find-exports.ts'
import * as assert from '../helpers/assert.ts'

const date = suite('natural-date')

/** The zone of this process, as long as `action` takes. */
function inZone(zone: string, action: () => void): void {
  const before = process.env['TZ']
  process.env['TZ'] = zone
  try {
    action()
  } finally {
    if (before === undefined) delete process.env['TZ']
    else process.env['TZ'] = before
  }
}

function meant(text: string, now: string): string | undefined {
  const moment = parseMoment(text, { nowMs: Date.parse(now) })
  return moment === undefined ? undefined : new Date(moment.latestMs).toISOString()
}

/** A Wednesday, 10:20 in Berlin, where clocks went forward on 2025-03-30. */
const NOW = '2025-04-09T08:20:30.500Z'

for (const [text, latest] of [
  ['now', '2025-04-09T08:20:30.500Z'],
  ['20 minutes ago', '2025-04-09T08:00:30.500Z'],
  ['an hour ago', '2025-04-09T07:20:30.500Z'],
  ['300 hours ago', '2025-03-27T20:20:30.500Z'],
  ['one second ago', '2025-04-09T08:20:29.500Z'],
  ['today', '2025-04-09T21:59:59.999Z'],
  ['yesterday', '2025-04-08T21:59:59.999Z'],
  ['The Day  before Yesterday', '2025-04-07T21:59:59.999Z'],
  ['1 day ago', '2025-04-08T21:59:59.999Z'],
  ['3 days ago', '2025-04-06T21:59:59.999Z'],
  ['11 days ago', '2025-03-29T22:59:59.999Z'],
  ['2 weeks ago', '2025-03-26T22:59:59.999Z'],
  ['a month ago', '2025-03-09T22:59:59.999Z'],
  ['two years ago', '2023-04-09T21:59:59.999Z'],
  ['wednesday', '2025-04-09T21:59:59.999Z'],
  ['last wednesday', '2025-04-02T21:59:59.999Z'],
  ['last tuesday', '2025-04-08T21:59:59.999Z'],
  ['tue', '2025-04-08T21:59:59.999Z'],
  ['Thursday', '2025-04-03T21:59:59.999Z'],
  ['last week', '2025-04-06T21:59:59.999Z'],
  ['last month', '2025-03-31T21:59:59.999Z'],
  ['last year', '2024-12-31T22:59:59.999Z'],
  ['2025-04-01', '2025-04-01T21:59:59.999Z'],
  ['2025-04-09', '2025-04-09T21:59:59.999Z'],
  ['2025-03', '2025-03-31T21:59:59.999Z'],
  ['2024', '2024-12-31T22:59:59.999Z'],
  ['1 april', '2025-04-01T21:59:59.999Z'],
  ['apr 1', '2025-04-01T21:59:59.999Z'],
  ['april 10', '2024-04-10T21:59:59.999Z'],
  ['29 february', '2024-02-29T22:59:59.999Z'],
  ['April 1, 2023', '2023-04-01T21:59:59.999Z'],
  ['march', '2025-03-31T21:59:59.999Z'],
  ['december', '2024-12-31T22:59:59.999Z'],
  ['may 2024', '2024-05-31T21:59:59.999Z'],
  ['2025-04-01 14:30', '2025-04-01T12:30:59.999Z'],
  ['2025-04-01 14:30:20', '2025-04-01T12:30:20.999Z'],
  ['yesterday 9:05', '2025-04-08T07:05:59.999Z'],
  ['last tuesday at 14:30', '2025-04-08T12:30:59.999Z'],
  ['today 10:20', '2025-04-09T08:20:59.999Z'],
  ['2025-04-01T14:30Z', '2025-04-01T14:30:59.999Z'],
  ['2025-04-01T14:30:20+02:00', '2025-04-01T12:30:20.999Z'],
  ['2025-04-01 14:30:20.25 +0530', '2025-04-01T09:00:20.250Z'],
] as const) {
  date(`means the end of ${text} in Berlin`, () => {
    inZone('Europe/Berlin', () => assert.is(meant(text, NOW), latest))
  })
}

date('takes nonsense, the future and what is ambiguous for no moment', () => {
  inZone('Europe/Berlin', () => {
    for (const text of [
      '',
      ' ',
      'latest',
      'constructor',
      'soon',
      'tomorrow',
      'ago',
      'days ago',
      '-3 days ago',
      '3 dasy ago',
      '1.5 days ago',
      '99999999 days ago',
      'last day',
      'last april',
      'ma',
      'su',
      '2025-02-30',
      '2025-13-01',
      '2025-13',
      '30 february',
      '0 april',
      '01/04/2025',
      '1.4.2025',
      '25-04-01',
      '0099',
      '99',
      // The future: the day after, the minute after, and later today.
      '2025-04-10',
      '2025-05',
      '2026',
      'today 10:21',
      '2025-04-09T08:21Z',
      // What no clock shows.
      'yesterday 24:00',
      'yesterday 10:60',
      '2025-04-01 10:20:60',
      '2025-04-01T25:00Z',
      '14:30',
      'last week 14:30',
      // Names one generation, or is the beginning of a stamp.
      '2025-04-01T020000Z',
      '2025-04-01T0200',
      '2025-04-01T14:30',
      `${'9'.repeat(400)} days ago`,
      '2025-04-01\u0000',
    ])
      assert.is(meant(text, NOW), undefined, text)
  })
})

date('a minute that clocks show twice is the later one, in every zone', () => {
  inZone('Europe/Berlin', () => {
    assert.is(meant('2025-10-26 02:30', '2025-11-01T00:00:00Z'), '2025-10-26T01:30:59.999Z')
    assert.is(meant('2025-10-26 01:30', '2025-11-01T00:00:00Z'), '2025-10-25T23:30:59.999Z')
    assert.is(meant('2025-10-26 03:30', '2025-11-01T00:00:00Z'), '2025-10-26T02:30:59.999Z')
  })
  inZone('America/New_York', () => {
    assert.is(meant('2025-11-02 01:59', '2025-11-05T00:00:00Z'), '2025-11-02T06:59:59.999Z')
  })
  // By half an hour only.
  inZone('Australia/Lord_Howe', () => {
    assert.is(meant('2025-04-06 01:45', '2025-04-08T00:00:00Z'), '2025-04-05T15:15:59.999Z')
    assert.is(meant('2025-04-06 01:15', '2025-04-08T00:00:00Z'), '2025-04-05T14:15:59.999Z')
  })
})

date('a time that clocks skipped is as much later', () => {
  inZone('Europe/Berlin', () => {
    assert.is(meant('2025-03-30 02:30', NOW), '2025-03-30T01:30:59.999Z')
  })
})

date('days of 23 and 25 hours, and without midnight, have their own ends', () => {
  inZone('Europe/Berlin', () => {
    assert.is(meant('2025-03-30', NOW), '2025-03-30T21:59:59.999Z')
    assert.is(meant('2025-10-26', '2025-11-01T00:00:00Z'), '2025-10-26T22:59:59.999Z')
    assert.is(meant('yesterday', '2025-10-27T00:00:00Z'), '2025-10-26T22:59:59.999Z')
  })
  // Clocks went from 23:59:59 on the 7th to 01:00 on the 8th.
  inZone('America/Havana', () => {
    assert.is(meant('2025-03-08', '2025-03-20T00:00:00Z'), '2025-03-09T04:59:59.999Z')
    assert.is(meant('2025-03-09', '2025-03-20T00:00:00Z'), '2025-03-10T03:59:59.999Z')
  })
})

date('is of the day that is shown here, east and west of Greenwich', () => {
  const now = '2025-04-09T08:20:00Z'
  inZone('Pacific/Kiritimati', () => {
    assert.is(meant('today', now), '2025-04-09T09:59:59.999Z')
    assert.is(meant('yesterday', '2025-04-09T10:00:00Z'), '2025-04-09T09:59:59.999Z')
  })
  inZone('America/Los_Angeles', () => {
    assert.is(meant('today', now), '2025-04-10T06:59:59.999Z')
    assert.is(meant('wed', now), '2025-04-10T06:59:59.999Z')
  })
  inZone('UTC', () =>
    assert.is(meant('last week', '2025-04-06T23:59:00Z'), meant('2025-03-30', now)),
  )
})

date('a month before the 31st is the last day of a shorter one', () => {
  inZone('UTC', () => {
    assert.is(meant('1 month ago', '2025-03-31T12:00:00Z'), '2025-02-28T23:59:59.999Z')
    assert.is(meant('1 month ago', '2024-03-31T12:00:00Z'), '2024-02-29T23:59:59.999Z')
    assert.is(meant('13 months ago', '2025-01-31T12:00:00Z'), '2023-12-31T23:59:59.999Z')
    assert.is(meant('1 year ago', '2024-02-29T12:00:00Z'), '2023-02-28T23:59:59.999Z')
    assert.is(meant('last month', '2025-03-31T12:00:00Z'), '2025-02-28T23:59:59.999Z')
  })
})

const GENERATIONS = [
  { set: 'data', stamp: '2025-04-01T020000Z' },
  { set: 'data', stamp: '2025-04-01T140000Z' },
  { set: 'data', stamp: '2025-04-05T020000Z' },
  { set: 'data', stamp: '2025-04-06T020000Z', isSuspect: true },
  { set: 'mail', stamp: '2025-04-03T020000Z' },
]

function picked(text: string | undefined, nowMs: number | undefined = Date.parse(NOW)): string[] {
  const options = nowMs === undefined ? {} : { nowMs }
  return pickExports(GENERATIONS, text, options).map(({ set, stamp }) => `${set} ${stamp}`)
}

function failure(text: string, generations: typeof GENERATIONS = GENERATIONS): BackupError {
  try {
    pickExports(generations, text, { nowMs: Date.parse(NOW) })
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error(`${text} was found`)
}

date('the generation meant is the newest of each set that is not after the moment', () => {
  inZone('UTC', () => {
    assert.equal(picked('6 days ago'), ['data 2025-04-01T140000Z', 'mail 2025-04-03T020000Z'])
    assert.equal(picked('2025-04-01 02:00'), ['data 2025-04-01T020000Z'])
    assert.equal(picked('2025-04-01 13:59'), ['data 2025-04-01T020000Z'])
    assert.equal(picked('2025-04-02'), ['data 2025-04-01T140000Z'])
    assert.equal(picked('yesterday'), ['data 2025-04-05T020000Z', 'mail 2025-04-03T020000Z'])
    assert.equal(picked('yesterday'), picked('latest'))
  })
})

date('the beginning of a stamp stays what it was, and comes before every moment', () => {
  inZone('Pacific/Kiritimati', () => {
    assert.equal(picked('2025-04-05'), ['data 2025-04-05T020000Z'])
    assert.equal(picked('2025-04-01T14'), ['data 2025-04-01T140000Z'])
    assert.is(failure('2025-04-01').code, 'USAGE')
    assert.is(failure('2025-04').code, 'USAGE')
  })
})

date('a whole stamp that is not there is not another one', () => {
  const { code, hint } = failure('2025-04-02T020000Z')
  assert.is(code, 'NOTHING_FOUND')
  assert.match(hint ?? '', 'data 2025-04-05T020000Z')
})

date('names the oldest generation where all are younger', () => {
  inZone('UTC', () => {
    const { code, message, hint } = failure('last month')
    assert.is(code, 'NOTHING_FOUND')
    assert.is(message, 'there is nothing as old as last month (2025-03-31 23:59)')
    assert.is(hint, 'the oldest is data 2025-04-01T020000Z')
  })
})

date('without a clock nothing is a moment, and nonsense is said to be nothing', () => {
  assert.throws(() => pickExports(GENERATIONS, 'yesterday'), /there is nothing of yesterday/)
  assert.is(failure('3 dasy ago').message, 'there is nothing of 3 dasy ago')
  assert.match(failure('3 dasy ago').hint ?? '', /`3 days ago` are dates; there are: data/)
  for (const text of ['latest', '3 days ago', '3 dasy ago']) {
    const { code, hint } = failure(text, [])
    assert.equal([code, hint], ['NOTHING_FOUND', 'there is no generation at all'], text)
  }
})

date.run()
