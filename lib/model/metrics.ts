// `backup status` as numbers, in the text format that Prometheus reads (exposition format 0.0.4).
//
// lib/work/status.ts writes it for the textfile collector of the node exporter; docs/status.md
// lists the metrics. What is not known has no line; a label that does not apply is empty, which is
// the same as not there. Pure; throws nothing.

import type { ScoreNumbers } from './score.ts'
import type { ExportStatus, PhaseStatus, ProofStatus, StatusDocument } from './status-document.ts'

interface Sample {
  readonly labels: Readonly<Record<string, string>>
  /** A sample without a value is none. */
  readonly value: number | undefined
}

interface Metric {
  readonly name: string
  readonly help: string
  readonly samples: readonly Sample[]
}

/** The whole file. */
export function encodeMetrics(document: StatusDocument): string {
  return metricsOf(document).map(encodeMetric).join('')
}

function encodeMetric({ name, help, samples }: Metric): string {
  const lines = samples.flatMap(({ labels, value }) => {
    return value === undefined ? [] : [`${name}${encodeLabels(labels)} ${value}`]
  })
  if (lines.length === 0) return ''
  return [`# HELP ${name} ${escapeHelp(help)}`, `# TYPE ${name} gauge`, ...lines, ''].join('\n')
}

function encodeLabels(labels: Sample['labels']): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escapeLabel(value)}"`)
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`
}

function escapeHelp(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n')
}

function escapeLabel(text: string): string {
  return escapeHelp(text).replaceAll('"', '\\"')
}

function metricsOf(document: StatusDocument): readonly Metric[] {
  const { sets, targets, staging, problems, score } = document
  const phases = phasesOf(document)
  const exports = targets.flatMap(({ name, exports: all }) => {
    return all.map((status) => ({ status, labels: { set: status.set, target: name } }))
  })
  const proofs = proofsOf(document)
  const drives = targets.flatMap(({ name, drives: all }) => {
    return all.map((status) => ({ status, labels: { target: name, drive: status.name } }))
  })
  const bySeverity = (severity: string): Sample => {
    const count = problems.filter((problem) => problem.severity === severity).length
    return { labels: { severity }, value: count }
  }
  return [
    {
      name: 'backup_last_success_timestamp_seconds',
      help: 'When the last good run of a phase began; an empty target is staging.',
      samples: phases.map(({ labels, status: { lastGood } }) => {
        return { labels, value: seconds(lastGood?.time) }
      }),
    },
    {
      name: 'backup_last_run_timestamp_seconds',
      help: 'When the last run of a phase began, whatever its outcome.',
      samples: phases.map(({ labels, status: { lastRun } }) => {
        return { labels, value: seconds(lastRun?.time) }
      }),
    },
    {
      name: 'backup_healthy',
      help: '1 where the last run of a phase was good and is not late, else 0.',
      samples: phases.map(({ labels, status: { healthy } }) => ({
        labels,
        value: Number(healthy),
      })),
    },
    {
      name: 'backup_due_timestamp_seconds',
      help: 'When a phase is due, in the past where it is already.',
      samples: phases.map(({ labels, status: { next } }) => ({ labels, value: seconds(next) })),
    },
    {
      name: 'backup_collection_bytes',
      help: 'Size of the files in the newest collection of a set.',
      samples: sets.map(({ name, newest }) => ({ labels: { set: name }, value: newest?.bytes })),
    },
    {
      name: 'backup_collection_entries',
      help: 'Entries of the newest collection of a set.',
      samples: sets.map(({ name, newest }) => ({ labels: { set: name }, value: newest?.entries })),
    },
    {
      name: 'backup_export_written_bytes',
      help: 'What the last good export of a set had to write to a target.',
      samples: exports.map(({ labels, status }) => ({ labels, value: status.writtenBytes })),
    },
    {
      name: 'backup_staging_free_bytes',
      help: 'Free space of the filesystem of staging.',
      samples: [{ labels: {}, value: staging.freeBytes }],
    },
    {
      name: 'backup_target_free_bytes',
      help: 'Free space of a drive when it was last seen.',
      samples: drives.map(({ labels, status }) => ({ labels, value: status.freeBytes })),
    },
    {
      name: 'backup_drive_last_seen_timestamp_seconds',
      help: 'When a drive was last seen.',
      samples: drives.map(({ labels, status }) => ({ labels, value: seconds(status.lastSeen) })),
    },
    {
      name: 'backup_drive_overdue',
      help: '1 where a drive was not exported to for too long, else 0.',
      samples: drives.map(({ labels, status }) => ({ labels, value: Number(status.isOverdue) })),
    },
    {
      name: 'backup_last_proof_timestamp_seconds',
      help:
        'When the last drill or verification of a target ended, whatever its result; of one that '
        + 'took several runs, when its first bundle was read.',
      samples: proofs.map(({ labels, proof: { since, time } }) => {
        return { labels, value: seconds(since ?? time) }
      }),
    },
    {
      name: 'backup_last_proof_good',
      help: '1 where that drill or verification found everything whole, else 0.',
      samples: proofs.map(({ labels, proof }) => {
        return { labels, value: Number(proof.result === 'good') }
      }),
    },
    {
      name: 'backup_score',
      help: 'The 3-2-1 score: how many copies, media and off-site copies there are.',
      samples: scoreSamples(score),
    },
    {
      name: 'backup_score_wanted',
      help: 'What the 3-2-1 score has to reach.',
      samples: scoreSamples(score?.wanted),
    },
    {
      name: 'backup_score_lost',
      help: 'How many places counted for the score before, and do not now.',
      samples: [{ labels: {}, value: score?.places.filter(({ isLost }) => isLost).length }],
    },
    {
      name: 'backup_problems',
      help: 'How many problems backup status shows.',
      samples: [bySeverity('attention'), bySeverity('bad')],
    },
    {
      name: 'backup_status_timestamp_seconds',
      help: 'When these numbers were made.',
      samples: [{ labels: {}, value: seconds(document.time) }],
    },
  ]
}

function scoreSamples(numbers: ScoreNumbers | undefined): readonly Sample[] {
  return [
    { labels: { of: 'copies' }, value: numbers?.copies },
    { labels: { of: 'media' }, value: numbers?.media },
    { labels: { of: 'off_site' }, value: numbers?.offSite },
  ]
}

interface Labelled<Status> {
  readonly status: Status
  readonly labels: Readonly<Record<string, string>>
}

function phasesOf({ sets, targets }: StatusDocument): readonly Labelled<PhaseStatus>[] {
  const collects = sets.flatMap(({ name, phases }) => {
    return phases.map((status) => {
      return { status, labels: { set: name, target: '', phase: status.phase } }
    })
  })
  const exports = targets.flatMap(({ name, exports: all }) => {
    return all.map((status: ExportStatus) => {
      return { status, labels: { set: status.set, target: name, phase: status.phase } }
    })
  })
  return [...collects, ...exports]
}

/** By target and, of the kind `drive`, by drive: one proof says nothing of another drive. */
function proofsOf({
  targets,
}: StatusDocument): readonly { readonly proof: ProofStatus; readonly labels: Sample['labels'] }[] {
  return targets.flatMap(({ name, proofs, drives }) => {
    const own = drives.length > 0 ? [] : [{ drive: '', proofs }]
    const all = [...own, ...drives.map((drive) => ({ drive: drive.name, proofs: drive.proofs }))]
    return all.flatMap(({ drive, proofs: some }) => {
      return some.map((proof) => ({ proof, labels: { target: name, drive, kind: proof.kind } }))
    })
  })
}

/** Since 1970; undefined for what is not known. */
function seconds(time: string | undefined): number | undefined {
  return time === undefined ? undefined : Date.parse(time) / 1000
}
