// How names and texts are written in systemd's units, udev's links and rules, launchd's property
// lists and a crontab.
//
// Pure. lib/work/schedule-units.ts renders the templates with these; the tests compare the unit
// names with systemd-escape(1) and the labels with blkid(8). All take and give text and work on its
// UTF-8 bytes where the other program does. Throws nothing: what cannot be written is undefined.

/** What systemd takes as the name of a unit, in bytes. */
const MAX_UNIT_NAME_BYTES = 255

/**
 * A path as the name of a unit without its suffix, as `systemd-escape --path` writes it:
 * `/dev/disk/by-label/T9` is `dev-disk-by\x2dlabel-T9`. The path is absolute.
 */
export function escapeUnitPath(path: string): string {
  const names = path.split('/').filter((name) => name !== '' && name !== '.')
  if (names.length === 0) return '-'
  const escaped = names.map((name) => escapeBytes(name, /[A-Za-z0-9:_.]/)).join('-')
  return escaped.startsWith('.') ? `\\x2e${escaped.slice(1)}` : escaped
}

/**
 * A label as udev writes it in `/dev/disk/by-label` and ID_FS_LABEL_ENC: letters of every language,
 * digits and a few signs stay, every other byte is `\xNN`.
 */
export function encodeUdevName(label: string): string {
  return [...label]
    .map((character) => (isAscii(character) ? escapeBytes(character, UDEV_KEEPS) : character))
    .join('')
}

const UDEV_KEEPS = /[#+\-.:=@_A-Za-z0-9]/

/**
 * The spellings that udev may give a UUID that is known in lower case: FAT's and NTFS's are in
 * upper case, UDF's are as long as those of NTFS, all others are in lower case.
 */
export function udevUuids(uuid: string): readonly string[] {
  const lower = uuid.toLowerCase()
  if (/^[0-9a-f]{4}-[0-9a-f]{4}$/.test(lower)) return [lower.toUpperCase()]
  if (/^[0-9a-f]{16}$/.test(lower)) return [...new Set([lower.toUpperCase(), lower])]
  return [lower]
}

/**
 * The instances of `backup-drive@.service` for a drive: its device units without `.device`. By its
 * UUID where that is known, else by its label. Undefined where the name would be too long.
 */
export function driveInstances({
  label,
  uuid,
}: {
  readonly label: string | undefined
  readonly uuid: string | undefined
}): readonly string[] | undefined {
  const paths =
    uuid === undefined
      ? [`/dev/disk/by-label/${encodeUdevName(label ?? '')}`]
      : udevUuids(uuid).map((spelling) => `/dev/disk/by-uuid/${encodeUdevName(spelling)}`)
  const instances = paths.map(escapeUnitPath)
  // The longest name that is made of it.
  const fits = instances.every((instance) => {
    return `backup-failed@backup-drive@${instance}.service.service`.length <= MAX_UNIT_NAME_BYTES
  })
  return fits ? instances : undefined
}

/**
 * One word of a unit: an argument of `ExecStart=:` (the colon keeps `$` as it is), an assignment of
 * `Environment=`, or a path of `ReadWritePaths=`. Undefined for control characters, which not every
 * directive has a way to write.
 */
export function quoteUnitWord(word: string): string | undefined {
  if (hasControl(word)) return undefined
  return `"${word.replace(/[\\"]/g, '\\$&').replaceAll('%', '%%')}"`
}

/** Text between the tags of a property list. */
export function escapeXml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
}

/** A word for sh. */
export function quoteShellWord(word: string): string {
  return /^[\w/.:=@+-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`
}

/**
 * A command of sh as cron wants it: a `%` would be the end of its line. Undefined where there is a
 * line break, which a crontab cannot hold.
 */
export function escapeCronCommand(command: string): string | undefined {
  return hasControl(command) ? undefined : command.replaceAll('%', '\\%')
}

function hasControl(text: string): boolean {
  return /[\u0000-\u001f\u007f]/.test(text)
}

function isAscii(character: string): boolean {
  return character.charCodeAt(0) < 0x80
}

/** Every byte that does not match as `\xNN`. */
function escapeBytes(text: string, kept: RegExp): string {
  let escaped = ''
  for (const byte of new TextEncoder().encode(text)) {
    const character = String.fromCharCode(byte)
    const isKept = byte < 0x80 && kept.test(character)
    escaped += isKept ? character : `\\x${byte.toString(16).padStart(2, '0')}`
  }
  return escaped
}
