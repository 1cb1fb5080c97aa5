// Names of sets, machines and targets: which are legal, and the nearest legal name to a text.
//
// They become directory names on exFAT drives and in buckets, so docs/format.md §1 keeps them plain
// and away from Windows device names. Pure; throws nothing.

/** docs/format.md §1: long enough for any host name, short enough for every filesystem. */
export const MAX_NAME_LENGTH = 64

/** Windows opens a device, not a file, by these names, so a drive could not be read there. */
const DEVICE_NAME = /^(con|prn|aux|nul|com[0-9]|lpt[0-9])$/

/** Whether `name` may name a set, a machine or a target. */
export function isValidName(name: string): boolean {
  const plain = /^[a-z0-9][a-z0-9_-]*$/.test(name) && name.length <= MAX_NAME_LENGTH
  return plain && !DEVICE_NAME.test(name)
}

/** The nearest valid name to any text; undefined where nothing of it can be kept. */
export function cleanName(text: string): string | undefined {
  const cleaned = text
    .toLowerCase()
    .replace(/[^a-z0-9_-]+/g, '-')
    .replace(/^[^a-z0-9]+/, '')
  const name = cleaned.slice(0, MAX_NAME_LENGTH).replace(/-+$/, '')
  if (DEVICE_NAME.test(name)) return `${name}-1`
  return isValidName(name) ? name : undefined
}

/** A machine's name after its host name: without the domain, which changes with the network. */
export function machineName(hostName: string): string | undefined {
  return cleanName(hostName.split('.')[0] ?? '')
}
