// The self-test: a small tree of everything a collection may hold, copied, and what came out
// compared with what went in.
//
// selfTest copies within staging, by a real rsync with our own options; selfTestRestore takes the
// way of an export and its restore, to wherever that would go (bundle-copy.ts). All happens in
// directories of its own, which are removed however it ends. Used by doctor.ts, doctor-target.ts
// and doctor-restore.ts; fidelity.ts is the short form that every run can afford. Throws what the
// copiers throw, and system errors when not even a directory can be made.

import { Buffer } from 'node:buffer'
import {
  type BigIntStats,
  chmodSync,
  chownSync,
  closeSync,
  ftruncateSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { systemCode } from '../errors.ts'
import { aclFromText } from '../format/acl.ts'
import { addInodeFlags, getXattr, makeNode, setTimes, setXattr } from '../machine/posix.ts'
import { runRsync } from '../machine/rsync.ts'
import { statSource } from '../machine/statx.ts'
import { type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { copyThroughBundle } from './bundle-copy.ts'
import { SAMPLE_ACL, SAMPLE_TIME_NS } from './fidelity.ts'

export interface SelfTestOptions {
  /** Where it happens: nothing is there yet. */
  readonly directory: RawPath
  readonly isRoot: boolean
  readonly signal: AbortSignal
}

export interface SelfTestResult {
  /** What survives, as a noun: `hard links`. */
  readonly feature: string
  /** Undefined when it survives. */
  readonly why: string | undefined
  /** False where the original could not even be made: then `why` says nothing of the copy. */
  readonly isTried: boolean
  /** Whether paths or their content would be missing, and not only what is said of them. */
  readonly isContent: boolean
}

interface Feature {
  readonly feature: string
  readonly isContent?: true
  /** Only root can make it. */
  readonly needsRoot?: true
  /** What rsync cannot carry, and the catalog does. */
  readonly isInCatalogOnly?: true
  readonly make: (directory: RawPath) => void
  readonly isKept: (copy: RawPath) => boolean
}

const VALUE = Buffer.from([0, 255, 61, 10])
const LONG_NAME = 'n'.repeat(255)
const ODD_NAMES = ['new\nline', 'not\xff\xfeutf8', ' space ', '#hash', '-dash']
const [SPARSE_BYTES, SPARSE_DATA_AT] = [8 * 1024 * 1024, 4 * 1024 * 1024]
const FOREIGN_ID = 12_345
/** CAP_NET_RAW, permitted and effective: vfs_cap_data of linux/capability.h, of the second form. */
const CAPABILITY = Buffer.from([1, 0, 0, 2, 0, 32, ...Array<number>(14).fill(0)])
/** FS_NODUMP_FL of linux/fs.h: the one flag that does not hinder its removal. */
const NODUMP_BIT = 0x40

const FEATURES: readonly Feature[] = [
  {
    feature: 'content',
    isContent: true,
    make: (at) => write(`${at}/f`),
    isKept: (at) => readFileSync(rawPathToBytes(`${at}/f`), 'latin1') === 'x',
  },
  {
    feature: 'names of 255 bytes',
    isContent: true,
    make: (at) => write(`${at}/${LONG_NAME}`),
    isKept: (at) => namesIn(at).includes(LONG_NAME),
  },
  {
    feature: 'names with newlines and bytes that are no UTF-8',
    isContent: true,
    make: (at) => ODD_NAMES.forEach((name) => write(`${at}/${name}`)),
    isKept: (at) => ODD_NAMES.every((name) => namesIn(at).includes(name)),
  },
  {
    feature: 'names that differ in case only',
    isContent: true,
    make: (at) => ['case', 'CASE'].forEach((name) => write(`${at}/${name}`)),
    isKept: (at) => namesIn(at).length === 2,
  },
  {
    feature: 'symbolic links',
    isContent: true,
    make: (at) => symlinkSync('no/where', rawPathToBytes(`${at}/l`)),
    isKept: (at) => readlinkSync(rawPathToBytes(`${at}/l`)) === 'no/where',
  },
  {
    feature: 'FIFOs',
    isContent: true,
    make: (at) => makeNode(`${at}/p`, { type: 'fifo', mode: 0o600 }),
    isKept: (at) => statOf(`${at}/p`).isFIFO(),
  },
  {
    feature: 'hard links',
    make: (at) => {
      write(`${at}/a`)
      linkSync(rawPathToBytes(`${at}/a`), rawPathToBytes(`${at}/b`))
    },
    isKept: (at) => statOf(`${at}/a`).ino === statOf(`${at}/b`).ino,
  },
  {
    feature: 'sparse files',
    make: (at) => writeSparse(`${at}/s`),
    isKept: (at) => statOf(`${at}/s`).blocks * 512n < BigInt(SPARSE_BYTES / 2),
  },
  {
    feature: 'times to the nanosecond',
    make: (at) => {
      write(`${at}/t`)
      setTimes(`${at}/t`, { mtimeNs: SAMPLE_TIME_NS })
    },
    isKept: (at) => statOf(`${at}/t`).mtimeNs === SAMPLE_TIME_NS,
  },
  {
    feature: 'permissions',
    make: (at) => {
      write(`${at}/m`)
      chmodSync(rawPathToBytes(`${at}/m`), 0o4751)
    },
    isKept: (at) => (statOf(`${at}/m`).mode & 0o7777n) === 0o4751n,
  },
  xattrFeature('extended attributes', { name: 'user.backup', value: VALUE }),
  xattrFeature('ACLs', { name: 'system.posix_acl_access', value: aclFromText(SAMPLE_ACL) }),
  {
    ...xattrFeature('system attributes', { name: 'trusted.backup', value: VALUE }),
    needsRoot: true,
  },
  {
    ...xattrFeature('capabilities', { name: 'security.capability', value: CAPABILITY }),
    needsRoot: true,
  },
  {
    feature: 'inode flags',
    isInCatalogOnly: true,
    make: (at) => {
      write(`${at}/n`)
      withFile(`${at}/n`, (fd) => addInodeFlags(fd, NODUMP_BIT))
    },
    isKept: (at) => statSource(`${at}/n`).flags.includes('nodump'),
  },
  {
    feature: 'owners',
    needsRoot: true,
    make: (at) => {
      write(`${at}/o`)
      chownSync(rawPathToBytes(`${at}/o`), FOREIGN_ID, FOREIGN_ID)
    },
    isKept: (at) => statOf(`${at}/o`).uid === BigInt(FOREIGN_ID),
  },
  {
    feature: 'devices',
    isContent: true,
    needsRoot: true,
    make: (at) => makeNode(`${at}/d`, { type: 'char', mode: 0o600, device: [1, 3] }),
    isKept: (at) => statOf(`${at}/d`).isCharacterDevice(),
  },
]

/** The name of what shows whether an unchanged file is linked instead of copied. */
export const LINK_DEST = 'links to the collection before (--link-dest)'

/** One result a feature, and LINK_DEST last. */
export async function selfTest(options: SelfTestOptions): Promise<SelfTestResult[]> {
  const { directory, isRoot, signal } = options
  const [source, first, second] = ['source', 'first', 'second'].map((name) => {
    return `${directory}/${name}`
  }) as [RawPath, RawPath, RawPath]
  try {
    for (const place of [directory, source, first, second]) makeDirectory(place)
    const features = featuresFor({ isRoot }).filter((one) => one.isInCatalogOnly !== true)
    const results = await tryFeatures(features, {
      source,
      copy: first,
      refusal: 'the filesystem of staging refuses it',
      copier: async () => {
        await copy({ source, target: first, linkDestinations: [], signal })
        return () => 'rsync brings another one here'
      },
    })
    const copied = await copy({ source, target: second, linkDestinations: [first], signal })
    const isLinked = copied === 0 && inodeOf(`${first}/0/f`) === inodeOf(`${second}/0/f`)
    return [
      ...results,
      {
        feature: LINK_DEST,
        why: isLinked ? undefined : 'an unchanged file was copied again',
        isTried: true,
        isContent: true,
      },
    ]
  } finally {
    rmSync(rawPathToBytes(directory), { recursive: true, force: true })
  }
}

/**
 * What survives collecting, exporting and restoring: one result a feature.
 * @param options.directory where the originals are made: nothing is there yet
 * @param options.bundle where the bundle is written; nothing is there yet
 * @param options.into where it is restored to: an empty directory, which the caller removes
 */
export async function selfTestRestore({
  directory,
  bundle,
  into,
  isRoot,
  signal,
}: SelfTestOptions & { readonly bundle: RawPath; readonly into: RawPath }): Promise<
  readonly SelfTestResult[]
> {
  try {
    makeDirectory(directory)
    return await tryFeatures(featuresFor({ isRoot }), {
      source: directory,
      copy: into,
      refusal: 'the filesystem where it would come from refuses it',
      copier: async () => await copyThroughBundle({ source: directory, bundle, into, signal }),
    })
  } finally {
    rmSync(rawPathToBytes(directory), { recursive: true, force: true })
    rmSync(rawPathToBytes(bundle), { force: true })
  }
}

function featuresFor({ isRoot }: { readonly isRoot: boolean }): readonly Feature[] {
  return FEATURES.filter(({ needsRoot }) => needsRoot !== true || isRoot)
}

/** Makes the originals, one directory a feature, has them copied, and looks at the copies. */
async function tryFeatures(
  features: readonly Feature[],
  {
    source,
    copy: target,
    refusal,
    copier,
  }: {
    readonly source: RawPath
    readonly copy: RawPath
    readonly refusal: string
    /** Copies, and says why something did not survive, by its path in the tree. */
    readonly copier: () => Promise<(path: RawPath) => string>
  },
): Promise<readonly SelfTestResult[]> {
  const refused = features.map((feature, index) => {
    const code = make(feature, `${source}/${index}`)
    return code === undefined ? undefined : `${refusal} (${code})`
  })
  const whyNot = await copier()
  return features.map((feature, index) => {
    const { feature: name, isContent = false } = feature
    const isTried = refused[index] === undefined
    const lost = isKept(feature, `${target}/${index}`) ? undefined : whyNot(`${index}`)
    return { feature: name, why: refused[index] ?? lost, isTried, isContent }
  })
}

/** How many files were copied and not linked. */
async function copy({
  source,
  target,
  linkDestinations,
  signal,
}: {
  readonly source: RawPath
  readonly target: RawPath
  readonly linkDestinations: readonly RawPath[]
  readonly signal: AbortSignal
}): Promise<number> {
  let copied = 0
  await runRsync({
    sources: [{ root: source, path: '/', isDirectory: true }],
    exclusions: [],
    leftOut: [],
    linkDestinations,
    target,
    followLinks: false,
    exactTimes: true,
    dryRun: false,
    onItem: (item) => {
      if (item.isFile && item.copied) copied += 1
    },
    signal,
  })
  return copied
}

/** The system's error where it cannot even be made; undefined when it can. */
function make(feature: Feature, directory: RawPath): string | undefined {
  makeDirectory(directory)
  try {
    feature.make(directory)
    return undefined
  } catch (error) {
    const code = systemCode(error)
    if (code === undefined) throw error
    return code
  }
}

function isKept(feature: Feature, directory: RawPath): boolean {
  try {
    return feature.isKept(directory)
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return false
  }
}

function xattrFeature(
  feature: string,
  { name, value }: { readonly name: string; readonly value: Buffer },
): Feature {
  return {
    feature,
    make: (at) => {
      write(`${at}/x`)
      setXattr(`${at}/x`, name, value)
    },
    isKept: (at) => getXattr(`${at}/x`, name)?.equals(value) === true,
  }
}

function makeDirectory(path: RawPath): void {
  mkdirSync(rawPathToBytes(path), { mode: 0o700 })
}

function write(path: RawPath): void {
  writeFileSync(rawPathToBytes(path), 'x', { flag: 'wx', mode: 0o600 })
}

function withFile(path: RawPath, action: (fd: number) => void): void {
  const fd = openSync(rawPathToBytes(path), 'r')
  try {
    action(fd)
  } finally {
    closeSync(fd)
  }
}

function writeSparse(path: RawPath): void {
  const fd = openSync(rawPathToBytes(path), 'wx', 0o600)
  try {
    writeSync(fd, 'x', SPARSE_DATA_AT)
    ftruncateSync(fd, SPARSE_BYTES)
  } finally {
    closeSync(fd)
  }
}

function statOf(path: RawPath): BigIntStats {
  return lstatSync(rawPathToBytes(path), { bigint: true })
}

function inodeOf(path: RawPath): bigint | undefined {
  return lstatSync(rawPathToBytes(path), { bigint: true, throwIfNoEntry: false })?.ino
}

function namesIn(directory: RawPath): string[] {
  return readdirSync(rawPathToBytes(directory), { encoding: 'latin1' })
}
