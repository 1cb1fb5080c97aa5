// The commented configuration that `backup init` writes.
//
// init.ts fills it in and lets lib/machine/config.ts read it before anything is written.
// docs/configuration.md explains each property at length. Pure; throws nothing.

import { escapeVariables } from '../lib/machine/config-expand.ts'

export interface InitialConfiguration {
  readonly machine: string
  /** All paths absolute. */
  readonly staging: string
  readonly target: string | undefined
  readonly sources: readonly string[]
  readonly recipient: string
  readonly signingKey: string
  /** Whether the built-in set of this machine is among the sets, or only offered. */
  readonly withSystem: boolean
}

export function configurationText(initial: InitialConfiguration): string {
  const { machine, staging, target, sources, recipient, signingKey, withSystem } = initial
  const isHome = sources.length === 0
  return `# Configuration of backup. Every property is explained in docs/configuration.md.

# This machine's name in every repository. Keep it: another name starts another history.
machine: ${machine}

# Where collections are kept, one plain tree for each run.
staging: ${quote(staging)}

backup_sets:
  - name: ${isHome ? 'home' : 'data'}
    sources:
${isHome ? '      - "~"' : sources.map((source) => `      - ${quote(source)}`).join('\n')}
    # rsync patterns; a leading ~ is your home directory.
    exclusions:
      - "*.tmp"
      - ~/.cache/*
    # Recommended where the sources lie on btrfs: everything of one moment, or a clear failure.
    # snapshot: required
${withSystem ? SYSTEM_SET : SYSTEM_COMMENTED}

# Where exports go. must_be_mounted keeps a bare mount point from being written to.
${target === undefined ? TARGETS_COMMENTED : targetsOf(target)}

# Public keys that can read the exports. The identity that belongs to them is not needed here.
recipients:
  - ${recipient}

# This machine's secret signing key.
signing_key: ${quote(signingKey)}

# When \`backup\` is called, as often as you like, it does what is due.
schedule:
  incremental: daily   # hourly, daily, weekly, monthly, always, manual, never
  full: weekly
  external: weekly

# How many to keep of each set.
retention:
  local: 7
  external: 5
`
}

const SYSTEM_SET = `  # This machine itself, to set it up again: docs/system-restore.md.
  - name: system
    builtin: system`

const SYSTEM_COMMENTED = `  # This machine itself, to set it up again: docs/system-restore.md.
  # - name: system
  #   builtin: system`

const TARGETS_COMMENTED = `targets: []
# targets:
#   - name: drive
#     kind: directory
#     path: /media/me/T9/backup
#     must_be_mounted: true`

function targetsOf(path: string): string {
  return `targets:
  - name: drive
    kind: directory
    path: ${quote(path)}
    # must_be_mounted: true`
}

/** JSON's strings are YAML's. */
function quote(path: string): string {
  return JSON.stringify(escapeVariables(path))
}
