// `configuration.yaml` in an export's manifest (docs/format.md §9): what somebody with nothing but
// the identity needs to set the machine up again.
//
// configurationMember and configurationOf are inverses. export.ts adds the member; `backup init
// --from` reads it (init-from.ts). It holds no secrets (lib/machine/config-document.ts), and an
// export never fails for it: what cannot be read or parsed is left out, with a warning. Throws
// nothing of its own.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import { readConfigurationText } from '../machine/config.ts'
import { withoutSecrets } from '../machine/config-document.ts'
import type { Report } from '../model/report.ts'

export const CONFIGURATION_MEMBER = 'configuration.yaml'

/** The file's text without secrets; undefined, with a warning, where it cannot be had. */
export async function configurationMember(
  path: string,
  report: Report,
): Promise<Buffer | undefined> {
  try {
    return Buffer.from(withoutSecrets(await readConfigurationText(path)))
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    const message = `the export is made without the configuration: ${error.message}`
    report({ kind: 'notice', level: 'warning', code: 'CONFIGURATION_LEFT_OUT', message })
    return undefined
  }
}

/** What readManifestMembers gave → the text; undefined where the export has none. */
export function configurationOf(members: ReadonlyMap<string, Buffer>): string | undefined {
  return members.get(CONFIGURATION_MEMBER)?.toString()
}
