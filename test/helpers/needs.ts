// What a test needs and this machine may lack. In CI nothing is skipped: there a lack is a failure.

/** Whether tests that need root can run; says which one is skipped when not. */
export function canRunAsRoot(what: string): boolean {
  if (process.getuid?.() === 0) return true
  if (process.env['CI'] === 'true')
    throw new Error(`${what}: needs root, and in CI nothing is skipped`)
  process.stdout.write(`SKIP ${what}: needs root\n`)
  return false
}
