// `backup keys show`: an identity as text and QR code, for paper. `backup keys public`: what others
// need to trust and to encrypt to.
//
// The only command that prints a secret, and only when asked in these words.
// lib/machine/identity.ts reads the file. Throws USAGE, IDENTITY_ABSENT, PASSPHRASE_WRONG,
// CONFIG_ABSENT.

import { resolve } from 'node:path'
import { BackupError } from '../lib/errors.ts'
import type { ExitCode } from '../lib/errors.ts'
import { recipientOf } from '../lib/format/age-keys.ts'
import { readIdentityFile } from '../lib/machine/identity.ts'
import { rawPathFromText } from '../lib/model/raw-path.ts'
import { openSigner } from '../lib/work/signing.ts'
import { isGiven, textOption } from './command.ts'
import type { Command, CommandContext } from './command.ts'
import { passphraseFromFile } from './passphrase.ts'
import { qrLines } from './qr.ts'

const USAGE = `Usage: backup keys public
       backup keys show --identity FILE [--passphrase-file FILE]

public prints the recipients that this machine encrypts to and the public key that
it signs with: what another machine needs in its configuration.

show prints the secret identity as text and as a QR code, to keep on paper.

  --identity FILE          the identity file
  --passphrase-file FILE   its first line is the passphrase (else it is asked for)
`

export const command: Command = {
  name: 'backup keys',
  summary: 'show the public keys, or the identity for paper',
  usage: USAGE,
  positionals: true,
  options: { identity: { type: 'string' }, 'passphrase-file': { type: 'string' } },
  run: async (context) => {
    const [word, ...rest] = context.positionals
    const hint = 'see `backup keys --help`'
    if (rest.length > 0) throw new BackupError('USAGE', `unexpected word "${rest[0]}"`, { hint })
    switch (word) {
      case 'show':
        return await showIdentity(context)
      case 'public':
        return await showPublic(context)
      default: {
        const found = word === undefined ? '' : `, found "${word}"`
        const message = `expected \`keys public\` or \`keys show\`${found}`
        throw new BackupError('USAGE', message, { hint })
      }
    }
  },
}

async function showPublic({ loadConfiguration, reporter }: CommandContext): Promise<ExitCode> {
  const configuration = await loadConfiguration()
  const { machine, recipients } = configuration
  const { publicKey } = await openSigner(configuration)
  for (const recipient of recipients) reporter.print(`recipient: ${recipient}`)
  reporter.print(`signing key of ${machine}: ${publicKey}`)
  const facts = { machine, recipients, signingKey: publicKey }
  reporter.report({ kind: 'result', command: 'keys public', ...facts })
  return 0
}

async function showIdentity(context: CommandContext): Promise<ExitCode> {
  const { values, reporter, stdout } = context
  const path = textOption(values, 'identity')
  if (path === undefined) throw new BackupError('USAGE', 'keys show needs --identity FILE')
  if (isGiven(values, 'json')) {
    throw new BackupError('USAGE', 'keys show is for paper and does not go with --json', {
      hint: 'the file itself is what programs read: age -i FILE',
    })
  }
  const { identities, signingKeys } = await readIdentityFile({
    path: rawPathFromText(resolve(path)),
    askPassphrase: () => askPassphrase(context),
  })
  for (const identity of identities) {
    reporter.print(`identity (secret): ${identity}`)
    reporter.print(`recipient: ${recipientOf(identity)}`)
    for (const line of qrLines(identity, { colors: stdout.isTTY === true })) reporter.print(line)
  }
  for (const { machine, publicKey } of signingKeys) {
    reporter.print(`signing key of ${machine}: ${publicKey}`)
  }
  return 0
}

async function askPassphrase({ values, askSecret }: CommandContext): Promise<string> {
  const file = textOption(values, 'passphrase-file')
  if (file !== undefined) return await passphraseFromFile(file)
  return await askSecret('Passphrase of the identity: ')
}
