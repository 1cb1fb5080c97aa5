// A configuration for tests that call the procedures themselves: everything at its default but what
// a test says.

import type { Configuration, NotifyConfiguration, SetConfiguration } from '../../lib/machine/config.ts'

/** Nobody is told anything. */
export const NOTIFY_NOBODY: NotifyConfiguration = {
  desktop: false,
  onSuccess: false,
  onMissing: true,
  repeatMs: 86_400_000,
  lowSpace: { bytes: 0 },
  log: undefined,
  syslog: false,
  mail: undefined,
  webhook: undefined,
  ping: undefined,
}

/** A set named `home` without sources. */
export function setConfiguration(change: Partial<SetConfiguration> = {}): SetConfiguration {
  const hooks = { before: undefined, after: undefined, onFailure: undefined, timeoutMs: 60_000 }
  return {
    name: 'home',
    sources: [],
    records: undefined,
    method: 'rsync',
    exclusions: [],
    filters: {
      globs: [],
      regexes: [],
      ignoreFiles: [],
      skipCaches: false,
      skipMarkers: [],
      maxSizeBytes: undefined,
      oneFilesystem: false,
    },
    snapshot: 'auto',
    keepSnapshot: false,
    suspectLoss: 0.5,
    bandwidthBytesPerSecond: undefined,
    nice: 0,
    ionice: 'normal',
    hooks: { collect: hooks, export: hooks },
    schedule: {
      incremental: 'daily',
      full: 'weekly',
      external: 'weekly',
      onBattery: 'run',
      onMetered: 'run',
    },
    retention: { local: 7, external: 5, keep: {} },
    ...change,
  }
}

export function configurationOf(
  set: SetConfiguration,
  change: Partial<Configuration> & Pick<Configuration, 'staging'>,
): Configuration {
  return {
    path: '/none',
    machine: 'test',
    backupSets: [set],
    targets: [],
    recipients: [],
    identity: undefined,
    signingKey: '/none',
    trustedSigningKeys: [],
    minFree: undefined,
    exportTo: 'all',
    notify: NOTIFY_NOBODY,
    metrics: undefined,
    score: {
      wanted: { copies: 3, media: 2, offSite: 1 },
      isConfigured: false,
      provenWithinMs: 90 * 86_400_000,
    },
    ...change,
  }
}
