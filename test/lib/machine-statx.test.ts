import { execFileSync } from 'node:child_process'
import { lstatSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { applyFlags } from '../../lib/machine/metadata.ts'
import { setTimes } from '../../lib/machine/posix.ts'
import { statSource } from '../../lib/machine/statx.ts'
import type { EntryMetadata, InodeFlag } from '../../lib/model/entry.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const statx = suite('machine/statx')
const directory = tempDirectory()
const chattr = (...words: string[]): string => execFileSync('chattr', words, { encoding: 'utf8' })
const metadata = (flags: readonly InodeFlag[]): EntryMetadata => {
  return { path: 'f', type: 'file', mode: 0o644, uid: 0, gid: 0, mtimeNs: 0n, flags }
}

statx('tells what lstat tells, on any name and before 1970', () => {
  const raw = `${directory}/n\xff\n`
  writeFileSync(Buffer.from(raw, 'latin1'), 'seven b')
  setTimes(raw, { mtimeNs: -4_999_999_877n })
  const stat = lstatSync(Buffer.from(raw, 'latin1'), { bigint: true })
  const found = statSource(raw)
  assert.is(found.birthNs, stat.birthtimeNs)
  assert.is(found.mtimeNs, -4_999_999_877n)
  assert.is(found.size, 7)
  assert.is(BigInt(found.mode), stat.mode)
  assert.equal(found.flags, [])
})

statx('looks at a symbolic link itself', () => {
  symlinkSync('nowhere', `${directory}/link`)
  assert.is(statSource(`${directory}/link`).mode & 0o170000, 0o120000)
})

statx('throws the system error of what is not there', () => {
  assert.throws(
    () => statSource(`${directory}/none`),
    (error: { code?: string }) => error.code === 'ENOENT',
  )
})

if (canRunAsRoot('chattr')) {
  statx('sees the flags that chattr sets, and no others', () => {
    const file = `${directory}/flags`
    writeFileSync(file, '')
    chattr('+adcA', file)
    assert.equal(statSource(file).flags, ['append', 'compressed', 'nodump'])
    chattr('-a', '+i', file)
    assert.equal(statSource(file).flags, ['compressed', 'immutable', 'nodump'])
    chattr('-i', file)
  })

  statx('applyFlags sets flags besides those that are there', () => {
    for (const [name, make] of [
      ['file', (path: string) => writeFileSync(path, '', { mode: 0 })],
      ['directory', (path: string) => mkdirSync(path)],
    ] as const) {
      const path = `${directory}/set-${name}`
      make(path)
      chattr('+d', path)
      assert.equal(applyFlags(path, metadata(['append', 'immutable'])), [])
      assert.equal(statSource(path).flags, ['append', 'immutable', 'nodump'])
      assert.throws(() => writeFileSync(`${path}${name === 'file' ? '' : '/x'}`, 'x'), /EPERM/)
      chattr('-ai', path)
    }
  })

  statx('applyFlags says so where the filesystem has none, and follows no link', () => {
    writeFileSync('/proc/self/comm', 'node')
    assert.equal(applyFlags('/proc/self/comm', metadata(['nodump'])), ['flag nodump'])
    const file = `${directory}/victim`
    writeFileSync(file, '')
    symlinkSync(file, `${directory}/to-victim`)
    assert.throws(() => applyFlags(`${directory}/to-victim`, metadata(['nodump'])), /ELOOP/)
    assert.equal(statSource(file).flags, [])
  })
}

statx.run()
