// One file to standard output.
//
// It is restored into a private place first, so that nothing is printed before all of it was
// checked. Throws what restoreWords throws.

import type { Buffer } from 'node:buffer'
import { randomUUID } from 'node:crypto'
import { createReadStream, lstatSync, rmSync } from 'node:fs'
import { pipeline } from 'node:stream/promises'
import type { ExitCode } from '../lib/errors.ts'
import { rawPathFromText, rawPathToBytes } from '../lib/model/raw-path.ts'
import type { RestoreJob } from './restore-place.ts'
import { restoreWords } from './restore-run.ts'
import { makeScratch } from './scratch.ts'

/**
 * One file to standard output: restored into a private place first, so that nothing is printed
 * before all of it was checked.
 */
export async function printFile(job: RestoreJob): Promise<ExitCode> {
  const { context, words } = job
  const [path = ''] = words.paths
  const scratch = makeScratch('restore')
  try {
    const quiet = { ...context.reporter, print: () => undefined, tell: () => undefined }
    const inner = {
      ...job,
      context: { ...context, reporter: quiet },
      words: { ...words, into: `${scratch}/${randomUUID()}`, dryRun: false },
    }
    const code = await restoreWords(inner)
    const file = rawPathToBytes(`${rawPathFromText(inner.words.into)}/${path}`)
    if (lstatSync(file, { throwIfNoEntry: false })?.isFile() !== true) return code === 0 ? 1 : code
    await writeOut(file, context.stdout)
    return code
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

/** A reader that has left, or a disk that is full, is no bug: main.ts sees it, too. */
async function writeOut(file: Buffer, stdout: NodeJS.WriteStream): Promise<void> {
  let isLost = false
  stdout.once('error', () => {
    isLost = true
  })
  try {
    await pipeline(createReadStream(file), stdout, { end: false })
  } catch (error) {
    if (!isLost) throw error
  }
}
