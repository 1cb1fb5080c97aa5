// RESTORE.md among the records: docs/system-restore.md with the names of this machine, so that the
// guide lies beside what it is about and cannot say anything else than the page that is tested.
//
// system-record.ts calls machineGuide with the records it made. Filled in: the values of the first
// block of steps. Before the steps stand the machine, its disks and what makes their filesystems
// again, its users and critical files. No dates: the text stays the same while the machine does.
// Throws an assertion where the page has not the form that it is cut by.

import assert from 'node:assert/strict'
import { Buffer } from 'node:buffer'
import { existsSync, readFileSync } from 'node:fs'
import type { Configuration, SetConfiguration } from '../machine/config.ts'
import { quoteArgument } from '../machine/shell.ts'
import { formatSize } from '../model/amount.ts'
import { displayText } from '../model/raw-path.ts'
import { CRITICAL } from './system-programs.ts'

/** From dist/lib/work/ to the project's own directory. */
const PAGE = new URL('../../../docs/system-restore.md', import.meta.url)

const FIRST_STEP = '## 1. '
const AFTER_STEPS = '## Tried'

/** Accounts of people; below are those of programs, above nobody's. */
const FIRST_PERSON = 1000
const LAST_PERSON = 59_999

export interface GuideFacts {
  readonly configuration: Configuration
  readonly set: SetConfiguration
  readonly records: string
  /** The records, by name. */
  readonly made: ReadonlyMap<string, Uint8Array>
}

/** The text of RESTORE.md. */
export function machineGuide(facts: GuideFacts): string {
  const { configuration, records } = facts
  return [
    `# Set ${configuration.machine} up again`,
    '',
    'Made before each collection. The records that it names lie beside it, once restored in',
    `/restore${plain(records)}.`,
    '',
    ...machineLines(facts),
    ...diskLines(facts),
    ...peopleLines(facts),
    '## Critical files',
    '',
    ...CRITICAL.filter(({ path }) => existsSync(path)).map(({ path, what }) => {
      return `- \`${path}\`: ${what}`
    }),
    '',
    '# The steps',
    '',
    steps(facts),
  ].join('\n')
}

function machineLines({ configuration, made }: GuideFacts): string[] {
  const release = /^PRETTY_NAME="?([^"\n]*)/m.exec(textOf(made, 'files/etc/os-release'))?.[1]
  const kernel = textOf(made, 'system/kernel.txt').trim()
  return [
    `- system: ${plain(release ?? 'unknown')}${kernel === '' ? '' : `, ${plain(kernel)}`}`,
    ...configuration.backupSets.map(({ name, sources }) => {
      return `- set ${name}: ${sources.map((source) => `\`${plain(source)}\``).join(', ')}`
    }),
    ...configuration.targets.map(({ name, kind, path }) => {
      return `- target ${name}: ${kind}, \`${plain(path)}\``
    }),
    '',
  ]
}

interface DiskNode {
  readonly path?: string
  readonly type?: string
  readonly size?: number | string
  readonly fstype?: string | null
  readonly label?: string | null
  readonly uuid?: string | null
  readonly mountpoint?: string | null
  readonly model?: string | null
  readonly children?: readonly DiskNode[]
}

function diskLines({ made }: GuideFacts): string[] {
  const text = textOf(made, 'disks/disks.json')
  if (text === '') return []
  const { blockdevices } = JSON.parse(text) as { readonly blockdevices: readonly DiskNode[] }
  const rows: string[] = []
  const commands: string[] = []
  const add = (node: DiskNode, depth: number): void => {
    const { path = '', type, size, fstype, label, uuid, mountpoint, model } = node
    const what = [type, fstype, label, uuid, model].filter((part) => part != null && part !== '')
    const name = `${'· '.repeat(depth)}${path}`
    const amount = formatSize(Number(size ?? 0))
    rows.push(`| ${[name, amount, what.join(' '), mountpoint ?? ''].map(cell).join(' | ')} |`)
    const command = makeAgain(node)
    if (command !== undefined && !commands.includes(command)) commands.push(command)
    for (const child of node.children ?? []) add(child, depth + 1)
  }
  for (const node of blockdevices) add(node, 0)
  const erasing = ['These make the filesystems again, each with its UUID. **They erase.**', '']
  return [
    '## Disks',
    '',
    '| device | size | what | mounted at |',
    '|---|---|---|---|',
    ...rows,
    '',
    ...(commands.length === 0 ? [] : [...erasing, ...commands.map((one) => `    ${one}`), '']),
  ]
}

/** The command that makes a filesystem with its old UUID and label. */
function makeAgain({ path, fstype, label, uuid }: DiskNode): string | undefined {
  if (path === undefined || fstype == null || uuid == null) return undefined
  const named = label == null || label === '' ? [] : ['-L', label]
  const words: Readonly<Record<string, readonly string[]>> = {
    ext2: ['mkfs.ext2', '-U', uuid, ...named],
    ext3: ['mkfs.ext3', '-U', uuid, ...named],
    ext4: ['mkfs.ext4', '-U', uuid, ...named],
    xfs: ['mkfs.xfs', '-m', `uuid=${uuid}`, ...named],
    btrfs: ['mkfs.btrfs', '-U', uuid, ...named],
    swap: ['mkswap', '-U', uuid, ...named],
    vfat: ['mkfs.vfat', '-i', uuid.replace('-', ''), ...(named.length === 0 ? [] : ['-n', label!])],
    crypto_LUKS: ['cryptsetup', 'luksFormat', '--uuid', uuid],
    // Needs the group's description, too, which LVM keeps in /etc.
    LVM2_member: ['pvcreate', '--restorefile', '/restore/etc/lvm/backup/GROUP', '--uuid', uuid],
  }
  const command = words[fstype]
  if (command === undefined) return undefined
  return [...command, path]
    .map((word) => quoteArgument(Buffer.from(word).toString('latin1')))
    .join(' ')
}

function peopleLines({ made }: GuideFacts): string[] {
  const people = textOf(made, 'files/etc/passwd')
    .split('\n')
    .map((line) => line.split(':'))
    .filter(([, , uid]) => Number(uid) >= FIRST_PERSON && Number(uid) <= LAST_PERSON)
    .map(([name = '', , uid = '', gid = '', , home = '', shell = '']) => {
      return `| ${[name, uid, gid, home, shell].map(cell).join(' | ')} |`
    })
  if (people.length === 0) return []
  return [
    '## Users',
    '',
    '| name | uid | gid | home | shell |',
    '|---|---|---|---|---|',
    ...people,
    '',
  ]
}

/** The steps of the page, with this machine's values in their first block. */
function steps({ configuration, set, records, made }: GuideFacts): string {
  const page = readFileSync(PAGE, 'utf8')
  const begin = page.indexOf(`\n${FIRST_STEP}`) + 1
  const end = page.indexOf(`\n${AFTER_STEPS}`) + 1
  assert(begin > 0 && end > begin, 'docs/system-restore.md has steps')
  const others = configuration.backupSets.filter(({ name }) => name !== set.name)
  const [target] = configuration.targets
  const tables = [...made.keys()].filter((file) => file.endsWith('.sfdisk'))
  const table = tables[0]?.replace(/^disks\/|\.sfdisk$/g, '')
  const values: Readonly<Record<string, string | undefined>> = {
    MACHINE: configuration.machine,
    SET: set.name,
    TARGET: target?.name,
    REPOSITORY: target?.kind === 'directory' ? target.path : undefined,
    RECORDS: `/restore${records}`,
    DATA: others.map(({ name }) => name).join(' '),
    DISK: table === undefined ? undefined : `/dev/${table}`,
    TABLE: table === undefined ? undefined : `$RECORDS/disks/${table}.sfdisk`,
  }
  return page
    .slice(begin, end)
    .replace(/\[([^\]]+)\]\([^)]+\)/g, '$1')
    .replace(/^([A-Z]+)=.*$/gm, (line, name: string) => {
      const value = values[name]
      return value === undefined ? line : `${name}=${assigned(value)}`
    })
}

/** The right side of an assignment; RECORDS in it is meant. */
function assigned(value: string): string {
  if (/^[\w$./:@%+,-]*$/.test(value)) return value
  if (/^[\w ]+$/.test(value)) return `"${value}"`
  return quoteArgument(Buffer.from(value).toString('latin1'))
}

function textOf(made: ReadonlyMap<string, Uint8Array>, file: string): string {
  return Buffer.from(made.get(file) ?? []).toString('utf8')
}

function plain(text: string): string {
  return displayText(text)
}

function cell(text: string): string {
  return displayText(text).replaceAll('|', '\\|')
}
