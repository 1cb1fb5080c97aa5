// Whether a process is still there: names of scratch directories end in the number of the one that
// made them.
//
// A sweep asks before it removes what a killed run left. Throws nothing.

import { systemCode } from '../errors.ts'

/** Whether a process of that number runs, whoever started it. */
export function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return systemCode(error) !== 'ESRCH'
  }
}
