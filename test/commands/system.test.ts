// The built-in set `system` as a user meets it: `init --system`, and a plain user's description of
// the machine on its way to a target and back. test/vm/system-restore.sh does root's part.

import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { parse } from 'yaml'
import * as assert from '../helpers/assert.ts'
import { type Outcome, MAIN, runCli } from '../helpers/run-cli.ts'
import { inventory } from '../helpers/scenario.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const test = suite('commands/system')

/** Root's set is this whole machine; so the tests are run by somebody who is not root. */
function plainUser(home: string): (...words: string[]) => Promise<Outcome> {
  const isRoot = process.getuid?.() === 0
  if (isRoot) execFileSync('chown', ['-R', 'nobody', home])
  const nobody = ['setpriv', '--reuid=nobody', '--regid=nogroup', '--clear-groups', '--']
  const program = [...(isRoot ? nobody : []), process.execPath, MAIN]
  return async (...words) => {
    return await runCli(words, { environment: { HOME: home }, workingDirectory: home, program })
  }
}

const INIT = ['init', '--staging', 'staging', '--machine', 'box', '--no-passphrase']

test('init offers the set in a comment, and writes it with --system', async () => {
  for (const words of [[], ['--system']]) {
    const home = tempDirectory()
    const { status, stderr } = await plainUser(home)(...INIT, ...words)
    assert.is(status, 0, stderr)
    const text = readFileSync(`${home}/.config/backup/config.yaml`, 'utf8')
    const sets = (written: string): unknown =>
      (parse(written) as { backup_sets: unknown[] }).backup_sets.slice(1)
    const expected = [{ name: 'system', builtin: 'system' }]
    assert.equal(sets(text), words.length === 0 ? [] : expected)
    assert.equal(sets(text.replace(/^ {2}# (?=- name: system|  builtin)/gm, '  ')), expected)
  }
})

test('--system does not go with --from', async () => {
  const home = tempDirectory()
  const { status, stderr } = await plainUser(home)('init', '--from', home, '--system')
  assert.is(status, 2)
  assert.match(stderr, '--system')
  assert.not.ok(existsSync(`${home}/.config`))
})

test('a plain user’s description is collected, exported and restored', async () => {
  const home = tempDirectory()
  for (const name of ['target', 'data', 'into']) mkdirSync(`${home}/${name}`)
  writeFileSync(`${home}/data/x`, 'x')
  const run = plainUser(home)
  const made = await run(...INIT, '--system', '--source', 'data', '--target', 'target')
  assert.is(made.status, 0, made.stderr)

  const preview = await run('collect', '--set', 'system', '--dry-run')
  assert.is(preview.status, 1, preview.stdout)
  assert.match(preview.stderr, 'the first collection makes it')
  const records = `${home}/.local/state/backup-system`
  assert.not.ok(existsSync(records), 'a dry run makes nothing')

  const collected = await run('collect', '--set', 'system')
  assert.is(collected.status, 0, collected.stderr)
  assert.is(statSync(records).mode & 0o777, 0o700)
  const exported = await run('external', '--set', 'system')
  assert.is(exported.status, 0, exported.stderr)
  const restored = await run(
    ...['restore', '--source', 'external', '--set', 'system', '--into', 'into'],
    ...['--identity', `${home}/.config/backup/identity.txt`],
  )
  assert.is(restored.status, 0, restored.stderr)
  assert.equal(inventory(`${home}/into${records}`), inventory(records))
  assert.equal(readdirSync(`${home}/into`), [records.split('/')[1]], 'the description alone')
})

test.run()
