// This machine's accounts, as /etc/passwd and /etc/group list them: names by number for catalogs,
// numbers by name for restoring what belongs to the same people on another machine.
//
// Where a file is missing, or an account comes from a directory service or macOS's own database,
// numbers have to do. Throws nothing.

import { readFileSync } from 'node:fs'
import type { AccountNumbers } from '../model/moving.ts'

/** Names of users and groups by their numbers. */
export interface AccountNames {
  readonly users: ReadonlyMap<number, string>
  readonly groups: ReadonlyMap<number, string>
}

/** Of several names of one number the first. */
export function readAccountNames(): AccountNames {
  return { users: namesOf(PASSWD), groups: namesOf(GROUP) }
}

/** Of several numbers of one name the first. */
export function readAccountNumbers(): AccountNumbers {
  return { users: numbersOf(PASSWD), groups: numbersOf(GROUP) }
}

const [PASSWD, GROUP] = ['/etc/passwd', '/etc/group']

function namesOf(file: string): ReadonlyMap<number, string> {
  return new Map(readAccounts(file).map(([name, number]) => [number, name]))
}

function numbersOf(file: string): ReadonlyMap<string, number> {
  return new Map(readAccounts(file))
}

/** In opposite order, so that the first of two is what a Map keeps. */
function readAccounts(file: string): [name: string, number: number][] {
  let text = ''
  try {
    text = readFileSync(file, 'utf8')
  } catch {
    // Where there is no such file, numbers have to do.
  }
  return text
    .split('\n')
    .map((line) => line.split(':'))
    .filter(([name = '', , id = '']) => name !== '' && /^\d+$/.test(id))
    .map(([name, , id]): [string, number] => [name!, Number(id)])
    .reverse()
}
