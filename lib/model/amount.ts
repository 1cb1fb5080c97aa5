// Amounts as people write and read them: sizes ("256 MiB") and durations ("1:02:03").
//
// formatSize is the inverse of parseSize as far as rounding lets it be. Pure; throws nothing.

const UNITS: Readonly<Record<string, number>> = {
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TB: 1e12,
  TiB: 2 ** 40,
}

const DURATION_UNITS_MS: Readonly<Record<string, number>> = {
  s: 1000,
  min: 60_000,
  h: 3_600_000,
  d: 86_400_000,
  w: 7 * 86_400_000,
  m: 30 * 86_400_000,
  y: 365 * 86_400_000,
}

/**
 * Milliseconds from `90s`, `10min`, `12h`, `2d`, `8w`, `6m` (of 30 days), `2y` (of 365); undefined
 * else.
 */
export function parseDuration(duration: string): number | undefined {
  const parts = /^([0-9]{1,6}) ?([a-z]+)$/.exec(duration)
  const unitMs = DURATION_UNITS_MS[parts?.[2] ?? '']
  return parts === null || unitMs === undefined ? undefined : Number(parts[1]) * unitMs
}

/** Bytes from `"256 MiB"`, `"1.5GB"` or a number of bytes; undefined where it is no size. */
export function parseSize(size: string | number): number | undefined {
  if (typeof size === 'number') return Number.isSafeInteger(size) && size >= 0 ? size : undefined
  const parts = /^([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)?$/.exec(size)
  const unitBytes = UNITS[parts?.[2] ?? 'B']
  if (parts === null || unitBytes === undefined) return undefined
  const sizeBytes = Math.round(Number(parts[1]) * unitBytes)
  return Number.isSafeInteger(sizeBytes) ? sizeBytes : undefined
}

/**
 * `0 B`, `1023 B`, `1.5 KiB`, `256 MiB`, `1.2 TiB`: three digits at most behind the largest fitting
 * unit.
 */
export function formatSize(sizeBytes: number): string {
  const names = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  let amount = sizeBytes
  let unit = 0
  while (amount >= 999.5 && unit < names.length - 1 && (unit > 0 || amount >= 1024)) {
    amount /= 1024
    unit++
  }
  const decimals = unit === 0 || amount >= 99.95 || Number.isInteger(amount) ? 0 : 1
  return `${amount.toFixed(decimals)} ${names[unit]}`
}

/** `0:07`, `12:34`, `1:02:03`. */
export function formatDuration(durationMs: number): string {
  const seconds = Math.max(0, Math.round(durationMs / 1000))
  const two = (part: number) => String(part).padStart(2, '0')
  const hours = Math.floor(seconds / 3600)
  const minutes = Math.floor(seconds / 60) % 60
  if (hours > 0) return `${hours}:${two(minutes)}:${two(seconds % 60)}`
  return `${minutes}:${two(seconds % 60)}`
}
