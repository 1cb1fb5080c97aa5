// Repositories as somebody would make them who has stolen the signing key: encrypted, signed, every
// checksum right, and whatever is wanted in the catalog. Also large ones that nobody packed.
//
// forgeOf() takes the keys of a scenario; forgeExport() writes one export from arbitrary entries;
// ForgedBundle, ForgedCatalog and publishForged() are its parts, for what it cannot say. Nothing is
// synced or read back. The encoders are those of the product: a forger has them too.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { closeSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { CHUNK_BYTES, createAgeHead, sealChunk, TAG_BYTES } from '../../lib/format/age.ts'
import { digestOf } from '../../lib/format/chunker.ts'
import { parseSigningKey, publicKeyText, sign } from '../../lib/format/minisign.ts'
import { encodePlainHeader, tarPadding } from '../../lib/format/tar.ts'
import type { Entry, FrameRange, Piece, Range } from '../../lib/model/entry.ts'
import {
  type IndexPlace,
  type Manifest,
  type ManifestBundle,
  encodeManifest,
  exportName,
} from '../../lib/model/manifest.ts'
import type { RawPath } from '../../lib/model/raw-path.ts'
import {
  type BundlePlace,
  type ShardPlace,
  encodeIndex,
  encodeShard,
  framesOf,
} from '../../lib/model/shard.ts'
import {
  VERIFICATION,
  VERIFICATION_SIGNATURE,
  bundlePath,
  encodeVerification,
} from '../../lib/model/verification.ts'
import { BundleWriter } from '../../lib/work/bundle-writer.ts'
import { entryHeader } from '../../lib/work/entry-header.ts'
import type { ExportPlace } from '../../lib/work/repository.ts'
import type { Signer } from '../../lib/work/signing.ts'
import type { Scenario } from './scenario.ts'

/** What forging takes: a repository that is there, and the keys of a machine in it. */
export interface Forge {
  /** The repository's directory. */
  readonly directory: string
  readonly repository: string
  readonly machine: string
  readonly recipients: readonly string[]
  readonly signer: Signer
}

/** Of a scenario that has exported once. */
export async function forgeOf(scenario: Scenario, machine = 'tester'): Promise<Forge> {
  const json: unknown = JSON.parse(readFileSync(`${scenario.target}/repository.json`, 'utf8'))
  const key = await parseSigningKey(
    readFileSync(`${dirname(scenario.configuration)}/signing.key`, 'utf8'),
  )
  return {
    directory: scenario.target,
    repository: (json as { id: string }).id,
    machine,
    recipients: [/age1[0-9a-z]{58}/.exec(readFileSync(scenario.identity, 'utf8'))![0]],
    signer: {
      publicKey: publicKeyText(key),
      sign: async (bytes, { file, repository }) => await sign({ bytes, key, file, repository }),
    },
  }
}

/** A bundle of any members, written where it belongs; each member is a frame or more of its own. */
export class ForgedBundle {
  readonly name: string
  readonly #path: string
  readonly #writer: BundleWriter

  constructor(forge: Forge, name: string) {
    this.name = name
    this.#path = `${forge.directory}/${bundlePath(forge.machine, name)}`
    mkdirSync(dirname(this.#path), { recursive: true })
    this.#writer = new BundleWriter({ recipients: forge.recipients, level: 1 })
    this.#writer.open(this.#path)
  }

  get frames(): readonly FrameRange[] {
    return this.#writer.frames
  }

  /** @returns where the bytes are in the tar */
  member(path: RawPath, bytes: Buffer): readonly [offset: number, length: number] {
    return this.append(
      Buffer.concat([
        encodePlainHeader({ path, sizeBytes: bytes.length }),
        bytes,
        Buffer.alloc(tarPadding(bytes.length)),
      ]),
      { skip: encodePlainHeader({ path, sizeBytes: bytes.length }).length, length: bytes.length },
    )
  }

  /** Bytes of tar as they are; what they hold begins after `skip`. */
  append(
    tar: Buffer,
    { skip = 0, length = tar.length }: { skip?: number; length?: number } = {},
  ): readonly [offset: number, length: number] {
    const offset = this.#writer.tarBytes + skip
    this.#writer.append(tar)
    this.#writer.endFrame()
    return [offset, length]
  }

  finish(): ManifestBundle {
    const { file, sizeBytes, sha256 } = this.#writer.finish()
    closeSync(file.fd)
    return { name: this.name, sizeBytes, sha256 }
  }
}

/** Shards one after another, and their index. */
export class ForgedCatalog {
  readonly #shards: ShardPlace[] = []
  #bundle: ForgedBundle

  constructor(bundle: ForgedBundle) {
    this.#bundle = bundle
  }

  /** What follows goes into another bundle. */
  goOnIn(bundle: ForgedBundle): void {
    this.#bundle = bundle
  }

  add(bytes: Buffer, of: { readonly entries: number; readonly first: RawPath }): void {
    const digest = digestOf(bytes)
    const tar = this.#bundle.member(`shards/${digest}.jsonl`, bytes)
    this.#shards.push({ digest, ...this.#place(tar), ...of })
  }

  finish(): IndexPlace {
    const bytes = encodeIndex(this.#shards)
    const digest = digestOf(bytes)
    const tar = this.#bundle.member(`index/${digest}.jsonl`, bytes)
    return { digest, ...this.#place(tar), shards: this.#shards.length }
  }

  #place([offset, length]: readonly [number, number]): Pick<
    ShardPlace,
    'bundle' | 'tar' | 'frames'
  > {
    const frames = framesOf(this.#bundle.frames, { offset, length })
    return { bundle: this.#bundle.name, tar: [offset, length], frames }
  }
}

/** Any properties of a manifest that are to be other than they are. */
export type Claims = Readonly<Record<string, unknown>>

/** Makes an export exist: manifest, verification file, signatures. */
export async function publishForged(
  forge: Forge,
  of: {
    readonly place: Pick<ExportPlace, 'set' | 'stamp'>
    readonly index: IndexPlace
    readonly bundles: readonly ManifestBundle[]
    readonly statistics: Pick<Manifest['statistics'], 'entries' | 'files' | 'bytes'>
    readonly claims?: Claims | undefined
    /** Instead of the members that a manifest has. */
    readonly members?: (members: ReadonlyMap<string, Buffer>) => ReadonlyMap<string, Buffer>
  },
): Promise<void> {
  const { machine, repository, signer } = forge
  const { place, index, claims = {} } = of
  const name = exportName({ machine, ...place })
  const bundles = [...of.bundles].sort((a, b) => (a.name < b.name ? -1 : 1))
  const manifest: Manifest = {
    repository,
    machine,
    ...place,
    previous: null,
    complete: true,
    missing: [],
    sources: [],
    index,
    bundles,
    statistics: { newBytes: 0, storedBytes: 0, ...of.statistics },
  }
  const honest = JSON.parse(encodeManifest(manifest).toString()) as object
  const json = Buffer.from(`${JSON.stringify({ ...honest, ...claims }, null, 1)}\n`)
  const signed = async (bytes: Buffer, file: string): Promise<Buffer> =>
    Buffer.from(await signer.sign(bytes, { file: `${name}/${file}`, repository }))
  const members = new Map([
    ['manifest.json', json],
    ['manifest.json.minisig', await signed(json, 'manifest.json')],
  ])
  const directory = `${forge.directory}/machines/${name}`
  mkdirSync(directory, { recursive: true })
  const bundle = new ForgedBundle(forge, `${place.set}/${place.stamp}/manifest`)
  for (const [path, bytes] of of.members?.(members) ?? members) bundle.member(path, bytes)
  const { sha256 } = bundle.finish()
  const verification = Buffer.from(
    encodeVerification(
      { bundles: new Map(bundles.map((one) => [one.name, one.sha256])), manifestSha256: sha256 },
      place,
    ),
  )
  writeFileSync(`${directory}/${VERIFICATION}`, verification)
  writeFileSync(`${directory}/${VERIFICATION_SIGNATURE}`, await signed(verification, VERIFICATION))
}

/** One entry of a forged catalog. */
export interface ForgedEntry {
  readonly entry: Entry
  /** What it holds: one piece, in the data bundle. */
  readonly content?: Buffer
  /** Properties of its line that are to be other than they are. */
  readonly lies?: Readonly<Record<string, unknown>>
}

export interface ForgedExport {
  readonly set: string
  readonly stamp: string
  /** Runs of entries, each a shard; they are not sorted, nor looked at. */
  readonly shards: readonly (readonly ForgedEntry[])[]
  readonly claims?: Claims
  /** What shards say of the data bundle's frames. */
  readonly frames?: (frames: readonly FrameRange[]) => readonly FrameRange[]
  /** The data bundle's payload, instead of frames of the entries' headers and contents. */
  readonly payload?: Buffer
  readonly members?: (members: ReadonlyMap<string, Buffer>) => ReadonlyMap<string, Buffer>
}

/** Writes one export: a data bundle, a catalog bundle, a manifest. */
export async function forgeExport(forge: Forge, of: ForgedExport): Promise<void> {
  const { set, stamp } = of
  const data = new ForgedBundle(forge, `${set}/${stamp}/data-0001`)
  const placed = of.shards.map((shard) => shard.map((one) => ({ ...one, ...place(data, one) })))
  const frames = of.frames?.(data.frames) ?? data.frames
  const bundles = [data.finish()]
  if (of.payload !== undefined) bundles[0] = writePayload(forge, data.name, of.payload)
  const catalog = new ForgedBundle(forge, `${set}/${stamp}/catalog-0001`)
  const shards = new ForgedCatalog(catalog)
  for (const shard of placed) {
    const bytes = encodeForged(shard, { name: data.name, frames })
    shards.add(bytes, { entries: shard.length, first: shard[0]!.entry.path })
  }
  const index = shards.finish()
  bundles.push(catalog.finish())
  const entries = placed.flat()
  const { claims, members } = of
  await publishForged(forge, {
    place: { set, stamp },
    index,
    bundles,
    statistics: {
      entries: entries.length,
      files: entries.filter(({ entry }) => entry.type === 'file').length,
      bytes: entries.reduce((sum, { content }) => sum + (content?.length ?? 0), 0),
    },
    ...(claims === undefined ? {} : { claims }),
    ...(members === undefined ? {} : { members }),
  })
}

/** Its header and content in the data bundle; what no tar can hold has no header. */
function place(data: ForgedBundle, { entry, content }: ForgedEntry): { readonly entry: Entry } {
  let header: Range | undefined = entry.header
  try {
    header ??= [0, ...data.append(entryHeader({ metadata: entry, chunk: entry.chunk }))]
  } catch {
    // An assertion of ours: the lie is told in the catalog alone.
  }
  if (content === undefined || content.length === 0) return { entry: withHeader(entry, header) }
  const id = digestOf(content)
  const [offset, length] = data.member(`.pieces/${id}`, content)
  const pieces: readonly Piece[] = [[id, 0, offset, length]]
  return { entry: { ...withHeader(entry, header), pieces } }
}

function withHeader(entry: Entry, header: Range | undefined): Entry {
  return header === undefined ? entry : { ...entry, header }
}

/** A shard's bytes with the lies in its lines. */
function encodeForged(shard: readonly ForgedEntry[], data: BundlePlace): Buffer {
  const honest = encodeShard(
    shard.map(({ entry }) => entry),
    () => data,
  )
  const [first = '', ...lines] = honest.toString().split('\n').slice(0, -1)
  const told = lines.map((line, i) => {
    const { lies } = shard[i]!
    if (lies === undefined) return line
    return JSON.stringify({ ...(JSON.parse(line) as object), ...lies })
  })
  return Buffer.from(`${[first, ...told].join('\n')}\n`)
}

/** Any payload at all, encrypted as a bundle is, in place of the one that is there. */
function writePayload(forge: Forge, name: string, payload: Buffer): ManifestBundle {
  const path = `${forge.directory}/${bundlePath(forge.machine, name)}`
  const bytes = sealPayload(payload, forge.recipients)
  writeFileSync(path, bytes)
  return { name, sizeBytes: statSync(path).size, sha256: sha256Of(bytes) }
}

/** An age file of any plaintext. */
function sealPayload(payload: Buffer, recipients: readonly string[]): Buffer {
  const { head, payloadKey } = createAgeHead(recipients)
  const chunks = Math.max(1, Math.ceil(payload.length / CHUNK_BYTES))
  const out = Buffer.alloc(head.length + payload.length + chunks * TAG_BYTES)
  let position = head.copy(out)
  for (let index = 0; index < chunks; index++) {
    const plaintext = payload.subarray(index * CHUNK_BYTES, (index + 1) * CHUNK_BYTES)
    const last = index === chunks - 1
    position += sealChunk({ payloadKey, index, last, plaintext, out, outOffset: position })
  }
  return out
}

function sha256Of(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex')
}
