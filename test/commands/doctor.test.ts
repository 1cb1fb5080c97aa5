import { chmodSync, readdirSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { command } from '../../commands/doctor.ts'
import * as assert from '../helpers/assert.ts'
import { runCommand } from '../helpers/run-command.ts'
import { configure, jsonLines, makeScenario } from '../helpers/scenario.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const doctor = suite('backup doctor')
const nowMs = Date.UTC(2026, 0, 2)

doctor('warnings alone leave the exit code 0, and each line has its fix', async () => {
  const scenario = await makeScenario()
  const { status, stdout } = await runCommand(command, { scenario, nowMs })
  assert.is(status, 0, stdout)
  const lines = stdout.trim().split('\n')
  assert.match(lines[0]!, /^ok {4}configuration: ".*config\.yaml", 1 sets, 1 targets$/)
  assert.match(stdout, /^ok {4}rsync: rsync \d/m)
  assert.match(stdout, /^WARN {2}sources of data: .*; fix: /m)
  assert.match(lines.at(-1)!, /^0 failures, \d warnings$/)
})

doctor('a failure makes the exit code 1, on the terminal and in JSON', async () => {
  const scenario = await makeScenario()
  configure(scenario, (properties) => {
    properties['backup_sets'][0]['sources'] = ['/no/such']
  })
  const values = { json: true }
  const { status, stdout } = await runCommand(command, { scenario, nowMs, values })
  assert.is(status, 1)
  const [result] = jsonLines({ status, stdout, stderr: '' }, 'result')
  assert.is(result!['command'], 'backup doctor')
  assert.is(result!['outcome'], 'failure')
  const checks = result!['checks'] as Record<string, string>[]
  const failed = checks.filter(({ verdict }) => verdict === 'failure')
  assert.equal(
    failed.map(({ name }) => name),
    ['sources of data'],
  )
  assert.ok(failed[0]!['fix'])
})

doctor('a configuration that cannot be read is a finding, and rsync is looked at', async () => {
  const scenario = await makeScenario()
  writeFileSync(scenario.configuration, 'backup_sets: 7\n')
  const { status, stdout } = await runCommand(command, { scenario, nowMs })
  assert.is(status, 1)
  assert.match(stdout, /^FAIL {2}configuration: .*backup_sets/m)
  assert.match(stdout, /^ok {4}rsync: /m)
})

doctor('--restore-to looks at that place alone, with and without a configuration', async () => {
  const scenario = await makeScenario()
  const into = tempDirectory()
  const look = async (values: Record<string, string | boolean> = {}) => {
    const all = { 'restore-to': into, ...values }
    return await runCommand(command, { scenario, nowMs, values: all })
  }
  const { status, stdout } = await look()
  assert.is(status, 0)
  assert.match(stdout, /^ok {4}restoring: survive in ".*": content, .*hard links/)
  assert.not.match(stdout, 'self-test')
  assert.equal(readdirSync(into), [])
  try {
    await look({ target: 'drive' })
    assert.unreachable()
  } catch (error) {
    assert.match(String(error), '--restore-to and --target do not go together')
  }
  writeFileSync(scenario.configuration, 'backup_sets: 7\n')
  const without = await look()
  assert.is(without.status, 1)
  assert.match(without.stdout, /^FAIL {2}configuration: /m)
  assert.match(without.stdout, /^ok {4}restoring: survive in /m)
})

doctor('with -q what is well is not said', async () => {
  const scenario = await makeScenario()
  chmodSync(scenario.configuration, 0o666)
  const { status, stdout } = await runCommand(command, {
    scenario,
    nowMs,
    values: { quiet: true, 'dry-run': true },
  })
  assert.is(status, 1)
  assert.match(stdout, /^FAIL {2}configuration: .*; fix: chmod o-w /m)
  assert.not.match(stdout, /^ok /m)
})

doctor.run()
