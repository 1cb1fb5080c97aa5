import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { planRetention } from '../../lib/model/retention.ts'

const retention = suite('model/retention')

/** `c` is complete, `i` is not; oldest first. The plan as text: what stays is upper case. */
function planned(generations: string, keep: number): string {
  const items = [...generations].map((letter, index) => ({
    stamp: String.fromCharCode(97 + index),
    complete: letter === 'c',
  }))
  const { keep: kept, remove } = planRetention({ items: [...items].reverse(), keep })
  assert.equal(
    [...kept, ...remove].sort(),
    items.map(({ stamp }) => stamp),
  )
  return items
    .map(({ stamp }, index) =>
      kept.includes(stamp) ? generations[index]?.toUpperCase() : generations[index],
    )
    .join('')
}

for (const [generations, keep, plan] of [
  ['', 1, ''],
  ['c', 1, 'C'],
  ['cc', 1, 'cC'],
  ['ccc', 2, 'cCC'],
  ['cc', 3, 'CC'],
  ['i', 1, 'I'],
  ['iii', 1, 'III'],
  ['ci', 1, 'CI'],
  ['ciii', 1, 'CIII'],
  ['ic', 1, 'iC'],
  ['ic', 2, 'IC'],
  ['cicic', 2, 'ciCIC'],
  ['iciic', 2, 'iCIIC'],
  ['ccii', 1, 'cCII'],
] as const) {
  retention(`of "${generations}" it keeps "${plan}" when ${keep} are to be kept`, () => {
    assert.is(planned(generations, keep), plan)
  })
}

retention(
  'removes nothing unless enough complete ones are newer, and never the newest complete one',
  () => {
    for (let bits = 0; bits < 2 ** 9; bits++) {
      const generations = [...Array(9).keys()]
        .map((bit) => (((bits >> bit) & 1) === 1 ? 'c' : 'i'))
        .join('')
      for (const keep of [1, 2, 3]) {
        const plan = planned(generations, keep)
        const newest = generations.lastIndexOf('c')
        if (newest >= 0) assert.is(plan[newest], 'C')
        for (const [index, letter] of [...plan].entries()) {
          const newerKept = [...plan.slice(index + 1)].filter((other) => other === 'C').length
          if (letter === 'i' || letter === 'c')
            assert.ok(newerKept >= keep, `${generations} ${keep} ${plan}`)
        }
      }
    }
  },
)

retention('refuses to keep nothing', () => {
  assert.throws(() => planRetention({ items: [], keep: 0 }))
})

retention.run()
