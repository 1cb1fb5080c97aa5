// The torture tree: every kind of entry, name, mode, owner, attribute, time, flag and hole that a
// filesystem can hold, and what stock programs say of a tree and its copy.
//
// plantTorture makes it, as root or as the user that runs; treeDifferences compares by find,
// sha256sum, tar, getfattr and lsattr, in the words in which a restore lists what is lost. Nothing
// of it is removed without releaseTree, for some of it is immutable.

import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { makeNode } from '../../lib/machine/posix.ts'
import { type RawPath, rawPathFromText } from '../../lib/model/raw-path.ts'
import { randomOfRun } from './random.ts'
import { script } from './scenario.ts'

/** Kinds, names, modes, xattrs, ACLs and holes that any user may make. */
const EVERYBODY = String.raw`
cd "$1"; umask 022
mkdir kinds names modes attributes acls times holes links large
cd kinds
printf content >file; : >empty; mkdir directory empty-directory; printf inside >directory/inside
ln -s nowhere/at/all dangling; ln -s $'\xff/\n' odd-target; ln -s ../kinds/directory to-directory
long=$(printf 'x%.0s' {1..4095})
ln -s "$long" long-target 2>/dev/null || ln -s "${'$'}{long:0:1023}" long-target
mkfifo fifo
cd ../links
mkdir a b c; printf one >a/1; ln a/1 b/2; ln a/1 b/3; ln a/1 c/4; printf two >c/one; ln c/one a/two
cd ../names
for name in "$(printf 'n%.0s' {1..255})" $'new\nline' $'\e[31mred\e[0m' -rf ' leading' 'trailing ' \
  dot. "quote'\"s" 'back\slash' '\#012' $'latin\xe9' $'\xff\xfe' $'caf\xc3\xa9' $'cafe\xcc\x81' \
  '*?[x]' '#hash' ';semi' latest download.partial .download.Ab12Cd $'\x7f\x01' \
  $'\xe2\x80\xaereversed'
do printf '%s' "$name" >"./$name"; done
mkdir .pieces .entries partials $'dir\n\xff'
printf x >.pieces/x; printf 1 >.entries/1; printf d >$'dir\n\xff/f'
for number in 0 1 2 3; do printf "$number" >partials/.backup-restore-$number.partial; done
for number in {10..19}; do printf "other $number" >partials/$number; done
( rest=$(($2 - ${'$'}{#1} - 8)); while [ $rest -gt 130 ]; do
    name=$(printf 'd%.0s' {1..100}); mkdir $name; cd $name; rest=$((rest - 101)); done
  printf deep >$(printf 'f%.0s' $(seq $rest)) )
cd ../attributes
printf x >some; printf y >few; mkdir directory; printf ro >read-only
setfattr -n user.binary -v 0x00ff0a3d2580 some; setfattr -n user.empty some
setfattr -n 'user.a=b%c' -v 'd=e%f' some; setfattr -n $'user.\xff' -v odd some
setfattr -n user.large -v "0x$(printf "%0$(($3 * 2))d" 7)" few
setfattr -n user.directory -v here directory
setfattr -n user.kept -v here read-only; chmod 0444 read-only
cd ../acls
printf x >named; setfacl -m u:12345:rw,g:54321:r,m::r named
mkdir inherits; setfacl -d -m u:12345:rwx,g:54321:r-x inherits
printf x >inherits/has; printf x >inherits/has-none; setfacl -b inherits/has-none
mkdir inherits/below inherits/none
setfacl -b -k inherits/none; mkdir none; printf x >none/none
cd ../modes
for mode in 0400 0600 0640 0755 1755 2755 4755 6711 7777
do printf $mode >f$mode; chmod $mode f$mode; done
for mode in 0500 0700 0711 1755 2755 4755 6711 7777
do mkdir d$mode; printf x >d$mode/in; chmod $mode d$mode; done
cd ../holes
truncate -s 3M all; truncate -s 2M at-end; printf begin | dd of=at-end conv=notrunc status=none
truncate -s 2M at-start; printf end >>at-start
truncate -s 5M middle; printf a | dd of=middle conv=notrunc status=none
printf z | dd of=middle bs=1M seek=4 conv=notrunc status=none
truncate -s 100M huge; printf end | dd of=huge bs=1M seek=70 conv=notrunc status=none
cd ../times
touch -d @1700000000.123456789 nanoseconds; touch -d @-4.999999877 before-1970; touch -d @-1.5 half
touch -d @0 epoch; touch -d @2147483648.5 after-2038; touch -d @7258118400.000000001 after-2200
touch -d @-2147483647 earliest; ln -s x link; touch -h -d @1600000000.987654321 link
mkdir directory; touch directory/f; touch -d @-3.25 directory
`

/** Owners, devices, attributes that are the system's, closed files. */
const ROOT = String.raw`
cd "$1/kinds"
mknod char c 1 3; mknod block b 7 200; mknod far c 300 70000; chmod 0640 far
cd ../modes
mkdir closed d0640; printf x >closed/in; printf none >f0000
chmod 0 f0000 closed; chmod 0640 d0640
mkdir ../owners; cd ../owners
for ids in 12345:54321 3000000000:3000000001 0:12345 12345:0 65534:65534
do printf x >"$ids"; chown $ids "$ids"; chmod 6755 "$ids"; done
mkdir directory; chown 12345:54321 directory; ln -s x link; chown -h 12345:54321 link
mkfifo fifo; chown 12345:54321 fifo
cd ../attributes
setfattr -n security.custom -v 0x00ff some; setfattr -n trusted.secret -v 0x0a00 some
setfattr -h -n trusted.link -v link ../kinds/dangling
setfattr -n trusted.fifo -v fifo ../kinds/fifo
setfattr -n trusted.char -v c ../kinds/char
printf x >capable; chown 12345 capable; setcap cap_net_raw,cap_net_admin+ep capable
chown 12345:54321 ../acls/named
`

/** Flags of every kind that the filesystem takes; last, for nothing can be done to these files. */
const FLAGS = String.raw`
cd "$1"; mkdir flags; cd flags
for flag in $2; do printf $flag >$flag; mkdir in-$flag; printf x >in-$flag/f; done
printf both >linked; ln linked linked-too
touch -d @1500000000.5 * .
for flag in $2; do chattr +$flag $flag in-$flag || rm -r $flag in-$flag; done
chattr +d linked
`

export interface TortureOptions {
  readonly asRoot: boolean
  /** How long the largest attribute is: ext4 takes 4 KiB in all, XFS 64. */
  readonly largeXattrBytes?: number
  /** How long the longest path is, the directory included. */
  readonly longestPathBytes?: number
}

/** Makes the tree in an empty directory. */
export function plantTorture(
  directory: string,
  { asRoot, largeXattrBytes = 2000, longestPathBytes = 3500 }: TortureOptions,
): void {
  script(EVERYBODY, directory, String(longestPathBytes), String(largeXattrBytes))
  makeNode(`${rawPathFromText(directory)}/kinds/socket`, { type: 'socket', mode: 0o600 })
  writeFileSync(`${directory}/large/chunked`, randomOfRun('torture').bytes(6_000_000))
  if (asRoot) script(ROOT, directory)
  script(FLAGS, directory, asRoot ? 'd a i c' : 'd')
}

/** Makes everything in a tree removable. */
export function releaseTree(directory: string): void {
  spawnSync('chattr', ['-R', '-f', '-ia', directory])
}

/** What stock programs say of one path: by the word for it when it is lost. */
type Facts = ReadonlyMap<string, string>

/**
 * What differs between a tree and its copy, by path: `missing`, `extra`, `content`, `links`, and
 * the words of LostMetadata. The first path of a hard-linked file speaks for the others.
 */
export function treeDifferences(expected: string, actual: string): Map<RawPath, string[]> {
  const [before, after] = [readFacts(expected), readFacts(actual)]
  const differences = new Map<RawPath, string[]>()
  for (const path of [...new Set([...before.keys(), ...after.keys()])].sort()) {
    const [a, b] = [before.get(path), after.get(path)]
    const what = a === undefined ? ['extra'] : b === undefined ? ['missing'] : differing(a, b)
    if (what.length > 0) differences.set(path, what)
  }
  return differences
}

function differing(a: Facts, b: Facts): string[] {
  const names = [...new Set([...a.keys(), ...b.keys()])]
  return names.filter((name) => a.get(name) !== b.get(name)).sort()
}

/** Larger files are compared by what tar stores of them: where their data is, and the data. */
const LARGE_BYTES = 1024 ** 2

function readFacts(directory: string): Map<RawPath, Facts> {
  const facts = new Map<RawPath, Map<string, string>>()
  const listed = script(
    String.raw`find "$1" -printf '%P\0%y\0%s\0%#m\0%U\0%G\0%T@\0%l\0'`,
    directory,
  ).split('\0')
  for (let at = 0; at + 7 < listed.length; at += 8) {
    const [path = '', type = '', size, mode, uid, gid, time, target] = listed.slice(at, at + 8)
    const of = new Map([
      ['content', `${type} ${type === 'f' ? size : ''} ${target}`],
      ['owner', uid!],
      ['group', gid!],
      ['time', time!],
    ])
    if (type !== 'l') of.set('mode', mode!)
    facts.set(path, of)
  }
  addDigests(directory, facts)
  addAttributes(directory, facts)
  addFlags(directory, facts)
  addLinks(directory, facts)
  return facts
}

function add(
  facts: Map<RawPath, Map<string, string>>,
  { path, name, value }: { path: RawPath; name: string; value: string },
): void {
  const of = facts.get(path)
  if (of === undefined) throw new Error(`find does not know ${JSON.stringify(path)}`)
  of.set(name, (of.get(name) ?? '') + value)
}

function addDigests(directory: string, facts: Map<RawPath, Map<string, string>>): void {
  const digests = script(
    'cd "$1"; find . -type f -size -$2c -print0 | xargs -0r sha256sum -z',
    directory,
    String(LARGE_BYTES),
  )
  const large = script(
    String.raw`cd "$1"; find . -type f -size +$2c -print0 | while IFS= read -r -d '' file; do
      digest=$(tar --sparse --hole-detection=seek --numeric-owner --owner=0 --group=0 --mtime=@0 \
        --mode=0 -cf - "$file" | sha256sum)
      printf '%s  %s\0' "${'$'}{digest%% *}" "$file"; done`,
    directory,
    String(LARGE_BYTES - 1),
  )
  for (const line of (digests + large).split('\0').slice(0, -1)) {
    add(facts, { path: line.slice(68), name: 'content', value: line.slice(0, 64) })
  }
  const devices = script(
    String.raw`cd "$1"; find . \( -type c -o -type b \) -exec stat --printf '%n\0%t,%T\0' {} +`,
    directory,
  ).split('\0')
  for (let at = 0; at + 1 < devices.length; at += 2) {
    add(facts, { path: devices[at]!.slice(2), name: 'content', value: devices[at + 1]! })
  }
}

function addLinks(directory: string, facts: Map<RawPath, Map<string, string>>): void {
  const listed = script(
    String.raw`cd "$1"; find . -type f -links +1 -printf '%P\0%i\0'`,
    directory,
  ).split('\0')
  const groups = new Map<string, RawPath[]>()
  for (let at = 0; at + 1 < listed.length; at += 2) {
    const group = groups.get(listed[at + 1]!) ?? []
    groups.set(listed[at + 1]!, [...group, listed[at]!])
  }
  for (const group of groups.values()) {
    const [first, ...others] = group.sort()
    for (const path of others) facts.set(path, new Map())
    for (const path of group) add(facts, { path, name: 'links', value: first! })
  }
}

function addAttributes(directory: string, facts: Map<RawPath, Map<string, string>>): void {
  const text = script('cd "$1"; getfattr -R -P -h -d -m - -e hex . 2>/dev/null', directory)
  let path = ''
  for (const line of text.split('\n')) {
    if (line.startsWith('# file: ')) {
      const name = unescaped(line.slice('# file: '.length))
      path = name === '.' ? '' : name.replace(/^\.\//, '')
      continue
    }
    const at = line.search(/(=0x[0-9a-f]*)?$/)
    const name = unescaped(line.slice(0, at))
    const value = line.slice(at)
    if (name.startsWith('system.posix_acl_')) add(facts, { path, name: 'acl', value: name + value })
    else if (name !== '') add(facts, { path, name: `xattr ${name}`, value: `is${value}` })
  }
}

/** As getfattr prints names: `\ooo`. */
function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  )
}

const FLAG_LETTERS = { a: 'append', c: 'compressed', d: 'nodump', i: 'immutable' } as const

function addFlags(directory: string, facts: Map<RawPath, Map<string, string>>): void {
  const text = script(
    String.raw`cd "$1"; find . \( -type f -o -type d \) -exec lsattr -d {} + 2>/dev/null || true`,
    directory,
  )
  // A name may have lines of its own.
  for (const line of text.split(/\n(?=[-A-Za-z]{16,} \.)/)) {
    const [, letters = '', path = ''] = /^(\S+) \.\/?(.*?)\n?$/s.exec(line) ?? []
    for (const letter of letters) {
      const flag = FLAG_LETTERS[letter as keyof typeof FLAG_LETTERS]
      if (flag !== undefined) add(facts, { path, name: `flag ${flag}`, value: 'set' })
    }
  }
}
