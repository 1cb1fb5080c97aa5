import { chmodSync, mkdirSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { readPower } from '../../lib/machine/power.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

type Supply = Readonly<Record<string, string>>

/** A sysfs with these power supplies, and only these programs, each printing a line. */
function machine(
  supplies: Readonly<Record<string, Supply>>,
  programs: Readonly<Record<string, string>> = {},
): string {
  const directory = tempDirectory()
  for (const [name, properties] of Object.entries(supplies)) {
    const path = `${directory}/class/power_supply/${name}`
    mkdirSync(path, { recursive: true })
    for (const [file, text] of Object.entries(properties)) {
      writeFileSync(`${path}/${file}`, `${text}\n`)
    }
  }
  mkdirSync(`${directory}/bin`)
  for (const [name, script] of Object.entries({ busctl: 'exit 1', ...programs })) {
    writeFileSync(`${directory}/bin/${name}`, `#!/bin/sh\n${script}\n`)
    chmodSync(`${directory}/bin/${name}`, 0o755)
  }
  process.env['PATH'] = `${directory}/bin:/usr/bin:/bin`
  return directory
}

const battery = { type: 'Battery', scope: 'System', status: 'Discharging' }

const power = suite('power')

for (const [name, supplies, expected] of [
  ['no power supply at all is no battery', {}, false],
  ['a cable that is plugged in', { AC: { type: 'Mains', online: '1' }, BAT0: battery }, false],
  ['a cable that is out', { AC: { type: 'Mains', online: '0' }, BAT0: battery }, true],
  ['a battery alone that empties', { BAT0: { type: 'Battery', status: 'Discharging' } }, true],
  ['a battery alone that is charged', { BAT0: { type: 'Battery', status: 'Charging' } }, false],
  [
    'a cable of the second USB port',
    { usb0: { type: 'USB', online: '0' }, usb1: { type: 'USB', online: '1' }, BAT0: battery },
    false,
  ],
  ['the battery of a mouse', { mouse: { type: 'Battery', scope: 'Device' } }, false],
  ['a desktop with an empty USB port', { usb0: { type: 'USB', online: '0' } }, false],
] as const) {
  power(`${name}: ${expected ? 'on battery' : 'not on battery'}`, async () => {
    const sysfs = machine(supplies)
    assert.is((await readPower({ platform: 'linux', sysfs })).onBattery, expected)
  })
}

for (const [answer, expected] of [
  ['u 0', false],
  ['u 1', true],
  ['u 2', false],
  ['u 3', true],
  ['u 4', false],
  ['s "1"', false],
] as const) {
  power(`NetworkManager's ${answer} is ${expected ? 'metered' : 'not metered'}`, async () => {
    const check = '[ "$3 $7" = "get-property Metered" ] || exit 1'
    const sysfs = machine({}, { busctl: `${check}\necho '${answer}'` })
    assert.equal(await readPower({ platform: 'linux', sysfs }), {
      onBattery: false,
      metered: expected,
    })
  })
}

power('without NetworkManager nothing is metered', async () => {
  const sysfs = machine({}, { busctl: "echo 'u 1'; exit 1" })
  assert.is((await readPower({ platform: 'linux', sysfs })).metered, false)
})

power('pmset says it on macOS', async () => {
  for (const [source, expected] of [
    ['Battery Power', true],
    ['AC Power', false],
  ] as const) {
    const sysfs = machine({}, { pmset: `printf "Now drawing %s '${source}'\\n" from` })
    assert.is((await readPower({ platform: 'darwin', sysfs })).onBattery, expected)
  }
})

power.run()
