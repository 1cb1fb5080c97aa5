import { writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { readMarks } from '../../lib/work/marks.ts'
import * as assert from '../helpers/assert.ts'
import { jsonLines, makeScenario } from '../helpers/scenario.ts'

const tag = suite('backup tag')

tag('names a generation, moves the name, and says that it protects nothing', async () => {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/file`, 'x')
  const stamps = [(await scenario.generation()).stamp, (await scenario.generation()).stamp]
  assert.match((await scenario.run('tag')).stdout, 'there are no tags')
  const first = await scenario.run('tag', 'before-upgrade', 'data', stamps[0]!)
  assert.is(first.status, 0, first.stderr)
  assert.match(first.stdout, `before-upgrade names data ${stamps[0]}\n`)
  assert.match(first.stdout, 'a tag protects nothing')
  const moved = await scenario.run('tag', 'before-upgrade', 'data', 'latest')
  assert.match(
    moved.stdout,
    `before-upgrade names data ${stamps[1]}, and no longer data ${stamps[0]}`,
  )
  const tags = [{ name: 'before-upgrade', set: 'data', stamp: stamps[1]! }]
  assert.equal(readMarks(scenario.staging), { locks: [], tags })
  assert.match((await scenario.run('tag')).stdout, `before-upgrade  data ${stamps[1]}`)
  const [listed] = jsonLines(await scenario.run('tag', '--json'), 'result')
  assert.equal(listed!['tags'], tags)
  assert.is((await scenario.run('tag', 'before-upgrade', '--remove', '--dry-run')).status, 0)
  assert.is(readMarks(scenario.staging).tags.length, 1)
  const gone = await scenario.run('tag', 'before-upgrade', '--remove')
  assert.is(gone.status, 0, gone.stderr)
  assert.match(gone.stdout, `data ${stamps[1]} is not touched`)
  assert.equal(readMarks(scenario.staging).tags, [])
  assert.is((await scenario.run('tag', 'before-upgrade', '--remove')).status, 1)
})

tag('refuses a name that could be a date, and words that do not go together', async () => {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/file`, 'x')
  await scenario.collect()
  for (const words of [
    ['2025', 'data', 'latest'],
    ['latest', 'data', 'latest'],
    ['Up', 'data', 'latest'],
    ['a/b', 'data', 'latest'],
    ['name', 'data'],
    ['name'],
    ['name', 'data', 'latest', 'more'],
    ['name', 'data', '--remove'],
    ['--remove'],
  ]) {
    assert.is((await scenario.run('tag', ...words)).status, 2, words.join(' '))
  }
  assert.equal(readMarks(scenario.staging).tags, [])
})

tag.run()
