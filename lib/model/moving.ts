// Moving: how the entries of a backup change on their way to another machine or another kind of
// filesystem: whose they are (numbers, names, mine, maps), and how their names are spelt.
//
// Pure. planMove looks at all entries once; moveEntry changes one; moveEntries changes all, and
// says which of them cannot be made in a place: of two paths that would have one name there, the
// second is named and never written over the first. lib/machine/place-names.ts finds out what a
// place does to names, lib/machine/accounts.ts who is who here. Throws USAGE for words that mean
// nothing.

import { BackupError } from '../errors.ts'
import { type Entry, asFile } from './entry.ts'
import { type PlaceNames, refusalOf, sameName } from './place-names.ts'
import {
  type RawPath,
  comparePaths,
  displayPath,
  displayText,
  parentOf,
  rawPathFromText,
  rawPathToText,
} from './raw-path.ts'

/** `name`: the account of that name here, else the number. `mine`: whoever restores. */
export type OwnerRule = 'number' | 'name' | 'mine'

/** How names that are UTF-8 are spelt: composed (Linux), decomposed (old macOS), or as they are. */
export type NameRule = 'as-is' | 'nfc' | 'nfd'

const OWNER_RULES: readonly OwnerRule[] = ['number', 'name', 'mine']
const NAME_RULES: readonly NameRule[] = ['as-is', 'nfc', 'nfd']

/** Numbers of accounts by their names: those of this machine. */
export interface AccountNumbers {
  readonly users: ReadonlyMap<string, number>
  readonly groups: ReadonlyMap<string, number>
}

/** A name or number in the backup, and the number that it gets. */
export type AccountMap = ReadonlyMap<string | number, number>

export interface MovingRules {
  readonly owner: OwnerRule
  /** What was said one by one; it goes before `owner`. */
  readonly users: AccountMap
  readonly groups: AccountMap
  readonly names: NameRule
  readonly accounts: AccountNumbers
  /** Whoever restores. */
  readonly mine: { readonly uid: number; readonly gid: number }
}

/** What planMove found: the number here for each number of the backup that changes. */
export interface Move {
  readonly users: ReadonlyMap<number, number>
  readonly groups: ReadonlyMap<number, number>
  readonly names: NameRule
  /** Names of the backup that nobody has here, with `owner: 'name'`: their numbers stay. Sorted. */
  readonly unknownUsers: readonly string[]
  readonly unknownGroups: readonly string[]
}

/** @throws BackupError USAGE */
export function parseOwnerRule(text: string): OwnerRule {
  return oneOf(OWNER_RULES, { text, option: '--owner' })
}

/** @throws BackupError USAGE */
export function parseNameRule(text: string): NameRule {
  return oneOf(NAME_RULES, { text, option: '--names' })
}

function oneOf<T extends string>(
  rules: readonly T[],
  { text, option }: { readonly text: string; readonly option: string },
): T {
  const rule = rules.find((one) => one === text)
  if (rule !== undefined) return rule
  const message = `${option} is ${rules.join(', ')}, not ${displayText(text)}`
  throw new BackupError('USAGE', message, { hint: 'nothing was restored' })
}

/**
 * What `--map-user alice=bob` and `--map-user 501=1000` say, given as often as wanted; `here` are
 * the accounts of that kind on this machine.
 * @throws BackupError USAGE for what is no pair, names nobody here, or says two things of one
 */
export function parseAccountMap(
  texts: readonly string[],
  { option, here }: { readonly option: string; readonly here: ReadonlyMap<string, number> },
): AccountMap {
  const map = new Map<string | number, number>()
  const wrong = (message: string): BackupError =>
    new BackupError('USAGE', message, {
      hint: `write ${option} THERE=HERE, each a name or a number; nothing was restored`,
    })
  for (const text of texts) {
    const shown = `${option} ${displayText(text)}`
    const [, from = '', to = ''] = /^([^=]+)=([^=]+)$/.exec(text) ?? []
    if (from === '') throw wrong(`${shown}: a pair such as alice=bob is needed`)
    const key = accountNumber(from) ?? from
    const number = accountNumber(to) ?? here.get(to)
    if (number === undefined) throw wrong(`${shown}: there is no ${displayText(to)} here`)
    if (number > MAX_ID) throw wrong(`${shown}: ${number} is no number of an account`)
    if (map.has(key) && map.get(key) !== number) {
      throw wrong(`${shown}: ${displayText(from)} was given another account before`)
    }
    map.set(key, number)
  }
  return map
}

/** The last number is the kernel's word for nobody at all. */
const MAX_ID = 0xfffffffe

function accountNumber(text: string): number | undefined {
  return /^\d{1,10}$/.test(text) ? Number(text) : undefined
}

/** Looks at whom the entries belong to: one number has one name in a backup. */
export function planMove(entries: Iterable<Entry>, rules: MovingRules): Move {
  const users = new Map<number, string | undefined>()
  const groups = new Map<number, string | undefined>()
  for (const { uid, gid, user, group, acl, defaultAcl } of entries) {
    if (users.get(uid) === undefined) users.set(uid, user)
    if (groups.get(gid) === undefined) groups.set(gid, group)
    for (const text of [acl, defaultAcl]) {
      if (text !== undefined) addQualifiers(text, { users, groups })
    }
  }
  const { owner, mine, accounts } = rules
  const moved = (
    found: ReadonlyMap<number, string | undefined>,
    { map, here, me }: { map: AccountMap; here: ReadonlyMap<string, number>; me: number },
  ): { readonly numbers: Map<number, number>; readonly unknown: string[] } => {
    const numbers = new Map<number, number>()
    const unknown: string[] = []
    for (const [number, name] of found) {
      const said = (name === undefined ? undefined : map.get(name)) ?? map.get(number)
      const byName = owner === 'name' && name !== undefined ? here.get(name) : undefined
      const to = said ?? (owner === 'mine' ? me : (byName ?? number))
      if (to !== number) numbers.set(number, to)
      const isMissed = said === undefined && owner === 'name' && byName === undefined
      if (isMissed && name !== undefined) unknown.push(name)
    }
    return { numbers, unknown: unknown.sort() }
  }
  const user = moved(users, { map: rules.users, here: accounts.users, me: mine.uid })
  const group = moved(groups, { map: rules.groups, here: accounts.groups, me: mine.gid })
  return {
    users: user.numbers,
    groups: group.numbers,
    names: rules.names,
    unknownUsers: user.unknown,
    unknownGroups: group.unknown,
  }
}

/** `user:12345:rwx`, a line of an ACL (docs/format.md §3.3). */
const QUALIFIED = /^(user|group):(\d+):([r-])([w-])([x-])$/

/** Accounts that only an ACL names: they have no name in the backup. */
function addQualifiers(
  acl: string,
  { users, groups }: Record<'users' | 'groups', Map<number, string | undefined>>,
): void {
  for (const line of acl.split('\n')) {
    const [, kind, id] = QUALIFIED.exec(line) ?? []
    const found = kind === 'user' ? users : groups
    if (id !== undefined && !found.has(Number(id))) found.set(Number(id), undefined)
  }
}

/** The entry as it is made here; the very same object where nothing changes. */
export function moveEntry(entry: Entry, move: Move): Entry {
  const { users, groups, names } = move
  let moved = entry
  const uid = users.get(entry.uid)
  const gid = groups.get(entry.gid)
  if (uid !== undefined) moved = { ...moved, uid }
  if (gid !== undefined) moved = { ...moved, gid }
  if (users.size + groups.size > 0) {
    if (entry.acl !== undefined) moved = { ...moved, acl: moveAcl(entry.acl, move) }
    if (entry.defaultAcl !== undefined) {
      moved = { ...moved, defaultAcl: moveAcl(entry.defaultAcl, move) }
    }
  }
  if (names === 'as-is') return moved
  const path = spell(entry.path, names)
  const target = entry.target === undefined ? undefined : spell(entry.target, names)
  if (path === entry.path && target === entry.target) return moved
  return { ...moved, path, ...(target === undefined ? {} : { target }) }
}

/**
 * The ACL with numbers of this machine. Where two of its lines become one account's, what both
 * allow is allowed: a move gives nobody more than the backup did.
 */
function moveAcl(acl: string, { users, groups }: Move): string {
  const lines = new Map<string, string>()
  for (const line of acl.slice(0, -1).split('\n')) {
    const [, kind, id = '', ...bits] = QUALIFIED.exec(line) ?? []
    if (kind === undefined) {
      lines.set(line, line)
      continue
    }
    const number = Number(id)
    const key = `${kind}:${(kind === 'user' ? users : groups).get(number) ?? number}`
    const before = lines.get(key)?.slice(-bits.length)
    const both = bits.map((bit, index) =>
      before === undefined || before[index] === bit ? bit : '-',
    )
    lines.set(key, `${key}:${both.join('')}`)
  }
  return [...lines.values()].map((line) => `${line}\n`).join('')
}

/** Name by name, for one that is no UTF-8 stays as it is. */
function spell(path: RawPath, names: 'nfc' | 'nfd'): RawPath {
  return path
    .split('/')
    .map((name) => {
      const text = rawPathToText(name)
      return text === undefined ? name : rawPathFromText(text.normalize(names.toUpperCase()))
    })
    .join('/')
}

/**
 * By path, as the backup has it: the path with which it would be one file here. The first in
 * catalog order keeps the name; below a directory that does not, nothing does.
 */
export function findCollisions(
  entries: Iterable<Entry>,
  { names, place }: { readonly names: NameRule; readonly place: PlaceNames },
): Map<RawPath, RawPath> {
  const collisions = new Map<RawPath, RawPath>()
  const { foldsCase, normalizes, dropsDots } = place
  if (names === 'as-is' && !foldsCase && !normalizes && !dropsDots) return collisions
  const seen = new Map<string, RawPath>()
  for (const { path } of entries) {
    const above = collisions.get(parentOf(path))
    const spelt = names === 'as-is' ? path : spell(path, names)
    const key = spelt
      .split('/')
      .map((name) => sameName(name, place))
      .join('/')
    const first = seen.get(key)
    if (above !== undefined) collisions.set(path, above)
    else if (first === undefined) seen.set(key, path)
    else collisions.set(path, first)
  }
  return collisions
}

/** A path that is not made here. */
export interface NameFailure {
  /** As the backup has it. */
  readonly path: RawPath
  readonly code: 'RESTORE_FAILED'
  readonly why: string
}

/** An entry as it is made here, and its path in the backup. */
export interface MovedEntry {
  readonly entry: Entry
  readonly from: RawPath
}

/**
 * All entries as they are made here, in catalog order, and those that cannot be. A hard link whose
 * file cannot be made becomes the file.
 */
export function moveEntries(
  entries: readonly Entry[],
  { move, place }: { readonly move: Move; readonly place: PlaceNames },
): { readonly moved: readonly MovedEntry[]; readonly failures: readonly NameFailure[] } {
  const { names } = move
  const failures: NameFailure[] = []
  const refused = new Set<RawPath>()
  const collisions = findCollisions(entries, { names, place })
  const lostFiles = new Map<RawPath, Entry>()
  const standIns = new Map<RawPath, RawPath>()
  const moved: MovedEntry[] = []
  for (const entry of entries) {
    const { path } = entry
    const why = reasonAgainst(path, { collisions, refused, names, place })
    if (why === undefined) {
      const whole = withStandIn(entry, { lostFiles, standIns })
      moved.push({ entry: moveEntry(whole, move), from: path })
      continue
    }
    failures.push({ path, code: 'RESTORE_FAILED', why })
    refused.add(path)
    if (entry.type === 'file') lostFiles.set(path, entry)
  }
  if (names !== 'as-is') moved.sort((a, b) => comparePaths(a.entry.path, b.entry.path))
  return { moved, failures }
}

function reasonAgainst(
  path: RawPath,
  {
    collisions,
    refused,
    names,
    place,
  }: {
    readonly collisions: ReadonlyMap<RawPath, RawPath>
    readonly refused: ReadonlySet<RawPath>
    readonly names: NameRule
    readonly place: PlaceNames
  },
): string | undefined {
  const other = collisions.get(path)
  if (other !== undefined) {
    const what = collisions.has(parentOf(path)) ? 'its directory' : 'it'
    const advice = 'restore one of them elsewhere with --path and --into'
    return `${what} would be one with ${displayPath(other)} here; ${advice}`
  }
  if (refused.has(parentOf(path))) return 'its directory cannot be made here'
  return refusalOf(names === 'as-is' ? path : spell(path, names), place)
}

function withStandIn(
  entry: Entry,
  {
    lostFiles,
    standIns,
  }: { readonly lostFiles: ReadonlyMap<RawPath, Entry>; readonly standIns: Map<RawPath, RawPath> },
): Entry {
  const file = entry.type === 'link' ? lostFiles.get(entry.target!) : undefined
  if (file === undefined) return entry
  const standIn = standIns.get(file.path)
  if (standIn !== undefined) return { ...entry, target: standIn }
  standIns.set(file.path, entry.path)
  return asFile(entry, file)
}
