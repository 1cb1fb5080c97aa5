import { suite } from 'uvu'
import {
  CACHE_SIGNATURE,
  compileGlob,
  compilePathFilters,
  filterText,
  hasCacheSignature,
  reasonText,
} from '../../lib/model/filter.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import * as assert from '../helpers/assert.ts'

const filter = suite('filter')

/** `glob → [what it fits], [what it does not fit]`; a slash at the end makes a directory. */
const GLOBS: readonly (readonly [string, readonly string[], readonly string[]])[] = [
  ['*.iso', ['/a.iso', '/x/y/a.iso', '/x/.iso', '/x/a.iso/'], ['/a.iso.gz', '/x.iso/a', '/xiso']],
  ['a?c', ['/abc', '/x/aéc', '/a🙂c'], ['/ac', '/abbc', '/a/c']],
  ['[a-c]x', ['/ax', '/y/bx'], ['/dx', '/-x']],
  ['[!a-c]x', ['/dx', '/éx'], ['/ax', '/x', '//x']],
  ['[[:digit:]]', ['/1'], ['/a', '/11']],
  ['{a,b*}.c', ['/a.c', '/bb.c', '/x/b.c'], ['/c.c', '/{a,b*}.c']],
  ['x{1,{2,3}y}', ['/x1', '/x2y', '/x3y'], ['/x2', '/x']],
  ['{a}', ['/{a}'], ['/a']],
  ['a,b', ['/a,b'], ['/a', '/b']],
  ['{a', ['/{a'], ['/a']],
  ['\\*', ['/*', '/x/*'], ['/a']],
  ['[a', ['/[a'], ['/a']],
  ['build/', ['/build/', '/x/build/'], ['/build', '/x/build/y/']],
  ['/data/x', ['/data/x', '/data/x/'], ['/data/x/y', '/y/data/x', '/data/xy']],
  ['/data/*', ['/data/x', '/data/.x'], ['/data', '/data/x/y']],
  ['/data/**', ['/data/x', '/data/x/y'], ['/data/', '/database/x']],
  ['/data/**/c', ['/data/c', '/data/x/c', '/data/x/y/c'], ['/data/xc', '/data/c/x', '/x/data/c']],
  ['/data/**/cache/*', ['/data/cache/a', '/data/x/cache/b'], ['/data/cache/', '/data/mycache/a']],
  ['**/x/y', ['/x/y', '/a/x/y', '/a/b/x/y'], ['/ax/y', '/x/y/z']],
  ['x/y', ['/x/y', '/a/x/y'], ['/ax/y', '/x/y/z']],
  ['/a**z', ['/az', '/abz', '/ab/cz'], ['/b/az']],
  ['{*.iso,/data/x}', ['/y/a.iso', '/data/x'], ['/y/data/x']],
  ['/data/{a,b/c}/*.o', ['/data/a/x.o', '/data/b/c/x.o'], ['/data/b/x.o']],
  ['a.c+(b)$', ['/a.c+(b)$'], ['/abc', '/a.cc(b)']],
  ['日本*', ['/x/日本語'], ['/x/日']],
]

filter('a glob fits what its table says, and nothing else of it', () => {
  for (const [glob, fitting, others] of GLOBS) {
    const fits = compileGlob(glob)
    const answer = (path: string): boolean => {
      return fits(path.replace(/(?<=.)\/$/, ''), path.endsWith('/'))
    }
    for (const path of fitting) assert.ok(answer(path), `${glob} fits ${path}`)
    for (const path of others) assert.not(answer(path), `${glob} does not fit ${path}`)
  }
})

filter('a regular expression sees a slash behind a directory, and characters, not bytes', () => {
  const fits = compilePathFilters({ globs: [], regexes: ['/tmp/$', '^/x/.$'] })
  assert.equal(fits('/a/tmp', true), { kind: 'regex', rule: '/tmp/$' })
  assert.is(fits('/a/tmp', false), undefined)
  assert.equal(fits(filterText(rawPathFromText('/x/é')), false)?.rule, '^/x/.$')
})

filter('names that are no text are matched by their bytes, and spoil no others', () => {
  const name = filterText(`/b\xe9ta/${rawPathFromText('é')}`)
  assert.is(name, '/béta/é')
  assert.ok(compileGlob('b?ta')('/b\xe9ta', true))
})

filter('a cache tag is valid only with the whole signature at its start', () => {
  assert.is(CACHE_SIGNATURE.length, 43)
  assert.ok(hasCacheSignature(`${CACHE_SIGNATURE}\n# comment`))
  assert.not(hasCacheSignature(CACHE_SIGNATURE.slice(0, 42)))
  assert.not(hasCacheSignature(` ${CACHE_SIGNATURE}`))
})

filter('a reason names the file and the line of its rule', () => {
  const file = { path: '/x/.gitignore', line: 7 }
  assert.is(
    reasonText({ kind: 'ignore-file', rule: '*.o', file }),
    'the rule "*.o" in /x/.gitignore, line 7',
  )
})

filter.run()
