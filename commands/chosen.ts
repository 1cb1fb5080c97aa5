// Which sets and targets the words of a command choose: those that are named, else all.
//
// Shared by backup.ts, backup-collect.ts and backup-external.ts. Throws USAGE for a name that is
// not configured.

import { BackupError } from '../lib/errors.ts'
import type { Configuration, SetConfiguration, TargetConfiguration } from '../lib/machine/config.ts'
import { targetNamed } from '../lib/work/target-access.ts'

/** The sets of those names; all of them for none. @throws BackupError USAGE */
export function chosenSets(
  configuration: Configuration,
  names: readonly string[],
): readonly SetConfiguration[] {
  const known = configuration.backupSets
  const unknown = names.find((name) => !known.some((set) => set.name === name))
  if (unknown !== undefined) {
    const hint = `configured are: ${known.map(({ name }) => name).join(', ')}`
    throw new BackupError('USAGE', `there is no set ${unknown}`, { hint })
  }
  return names.length === 0 ? known : known.filter(({ name }) => names.includes(name))
}

/** The targets of those names; all of them for none. @throws BackupError USAGE */
export function chosenTargets(
  configuration: Configuration,
  names: readonly string[],
): readonly TargetConfiguration[] {
  return names.length === 0
    ? configuration.targets
    : names.map((name) => targetNamed(configuration, name))
}
