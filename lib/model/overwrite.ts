// What a restore does about something that is there already and differs: the policies of
// `--overwrite`, and which of them replaces what.
//
// lib/work/restore-plan.ts applies them. Pure; throws nothing.

import type { TimeNs } from './entry.ts'

/**
 * `older`: what is there is replaced when it is older than what is restored; `newer`: when it is
 * newer. `ask` leaves it to somebody at a terminal.
 */
export const OVERWRITE_POLICIES = ['never', 'older', 'newer', 'always', 'ask'] as const

export type OverwritePolicy = (typeof OVERWRITE_POLICIES)[number]

/** How old what is there is, beside what would be restored. */
export type Age = 'older' | 'newer' | 'even'

export function parseOverwrite(text: string): OverwritePolicy | undefined {
  return OVERWRITE_POLICIES.find((policy) => policy === text)
}

/** By the times of change, to the nanosecond. */
export function ageOf({ there, restored }: { there: TimeNs; restored: TimeNs }): Age {
  return there === restored ? 'even' : there < restored ? 'older' : 'newer'
}

/** `ask` replaces nothing: whoever asks gives the answers themselves. */
export function mayReplace(policy: OverwritePolicy, age: Age): boolean {
  return policy === 'always' || policy === age
}
