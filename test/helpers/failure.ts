// What a call that has to fail fails with.

import { BackupError } from '../../lib/errors.ts'

/** @throws whatever else it fails with, and an error where it does not fail */
export async function failureOf(action: () => Promise<unknown>): Promise<BackupError> {
  try {
    await action()
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('it did not fail')
}
