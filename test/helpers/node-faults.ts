// Makes what this process itself asks of the system fail, as a medium would; of other processes it
// is system-faults.ts.

import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'

/** Replaces functions of node:fs, for everyone in this process, while `action` runs. */
export function withFaults(faults: Partial<typeof fs>, action: () => void): void {
  const restore = replace(faults)
  try {
    action()
  } finally {
    restore()
  }
}

/** The same, until what `action` promises has come. */
export async function withFaultsUntil<Value>(
  faults: Partial<typeof fs>,
  action: () => Promise<Value>,
): Promise<Value> {
  const restore = replace(faults)
  try {
    return await action()
  } finally {
    restore()
  }
}

function replace(faults: Partial<typeof fs>): () => void {
  const originals = Object.fromEntries(
    Object.keys(faults).map((name) => [name, fs[name as keyof typeof fs]]),
  )
  Object.assign(fs, faults)
  syncBuiltinESMExports()
  return () => {
    Object.assign(fs, originals)
    syncBuiltinESMExports()
  }
}
