// Which storage classes of a bucket can be read at once.
//
// The names are Amazon's; other services have some of them, or their own. Used wherever it matters
// whether an object has to be thawed. Pure; throws nothing.

/** Whose objects have to be thawed before they can be read. */
const COLD: ReadonlySet<string> = new Set(['GLACIER', 'DEEP_ARCHIVE'])

/** Whose objects can always be read at once. */
const ALWAYS_HOT: ReadonlySet<string> = new Set([
  'STANDARD',
  'STANDARD_IA',
  'ONEZONE_IA',
  'GLACIER_IR',
  'REDUCED_REDUNDANCY',
  'EXPRESS_ONEZONE',
])

/** Whether objects of this class have to be thawed, whatever else is known of them. */
export function isCold(storageClass: string): boolean {
  return COLD.has(storageClass)
}

/** Whether objects of this class never have to be thawed; false where only asking tells. */
export function isAlwaysHot(storageClass: string): boolean {
  return ALWAYS_HOT.has(storageClass)
}
