// A text as a QR code made of block characters, for paper and for cameras: the identity, so that it
// can be kept off the machine. The only importer of qrcode-generator.
//
// Used by init.ts and keys.ts. Two rows of modules make one line of text. Throws nothing for the
// short texts it is for.

import qrcode from 'qrcode-generator'

/** The standard asks for four modules of white around the code. */
const QUIET_ZONE = 4

/** Black on white whatever the terminal's own colours are. */
const BLACK_ON_WHITE = '\x1b[30;47m'
const RESET = '\x1b[0m'

/**
 * The lines of the code. With `colors` for a terminal; without, black blocks on whatever is behind,
 * for paper.
 */
export function qrLines(text: string, { colors }: { colors: boolean }): string[] {
  const code = qrcode(0, 'M')
  // Identities are upper-case letters, digits and hyphens: the alphanumeric mode makes a smaller
  // code of them.
  code.addData(text, /^[0-9A-Z $%*+./:-]+$/.test(text) ? 'Alphanumeric' : 'Byte')
  code.make()
  const count = code.getModuleCount()
  const isDark = (row: number, column: number): boolean => {
    const inside = row >= 0 && column >= 0 && row < count && column < count
    return inside && code.isDark(row, column)
  }
  const lines: string[] = []
  for (let row = -QUIET_ZONE; row < count + QUIET_ZONE; row += 2) {
    let line = ''
    for (let column = -QUIET_ZONE; column < count + QUIET_ZONE; column++) {
      line += block(isDark(row, column), isDark(row + 1, column))
    }
    lines.push(colors ? `${BLACK_ON_WHITE}${line}${RESET}` : line.trimEnd())
  }
  return lines
}

function block(upper: boolean, lower: boolean): string {
  if (upper && lower) return '█'
  if (upper) return '▀'
  return lower ? '▄' : ' '
}
