// The little XML that S3 speaks: writing it from plain objects, and taking texts out of requests.
//
// An array repeats its element. Reading knows elements without attributes that do not contain
// themselves, which is all that S3's requests are made of.

export type Xml =
  string | number | boolean | undefined | readonly Xml[] | { readonly [name: string]: Xml }

const NAMESPACE = 'http://s3.amazonaws.com/doc/2006-03-01/'

export function xmlDocument(name: string, content: Xml): string {
  const namespace = name === 'Error' ? '' : ` xmlns="${NAMESPACE}"`
  const inner = children(content)
  return `<?xml version="1.0" encoding="UTF-8"?>\n<${name}${namespace}>${inner}</${name}>`
}

/** Text of the first element of this name. */
export function xmlText(xml: string, name: string): string | undefined {
  const inner = xmlAll(xml, name)[0]
  return inner === undefined ? undefined : unescaped(inner.trim())
}

/** What is inside each element of this name, as XML. */
export function xmlAll(xml: string, name: string): string[] {
  const pattern = new RegExp(`<${name}(?:\\s[^>]*)?(?:/>|>([\\s\\S]*?)</${name}>)`, 'g')
  return [...xml.matchAll(pattern)].map((match) => match[1] ?? '')
}

function children(content: Xml): string {
  if (content === undefined) return ''
  if (typeof content !== 'object') return escaped(String(content))
  if (Array.isArray(content)) return content.map(children).join('')
  return Object.entries(content)
    .flatMap(([name, value]: [string, Xml]) => {
      if (value === undefined) return []
      // Attributes: only the type of an ACL's grantee has one.
      const [element] = name.split(' ')
      const values: readonly Xml[] = Array.isArray(value) ? value : [value]
      return values.map((one) => `<${name}>${children(one)}</${element}>`)
    })
    .join('')
}

function escaped(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replace(/[\r\n]/g, (character) => `&#${character.charCodeAt(0)};`)
}

function unescaped(text: string): string {
  return text
    .replace(/&#(x?)([0-9a-fA-F]+);/g, (_, hex: string, digits: string) =>
      String.fromCodePoint(parseInt(digits, hex === '' ? 10 : 16)),
    )
    .replaceAll('&quot;', '"')
    .replaceAll('&apos;', "'")
    .replaceAll('&lt;', '<')
    .replaceAll('&gt;', '>')
    .replaceAll('&amp;', '&')
}
