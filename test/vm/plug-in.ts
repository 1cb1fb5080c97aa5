// A drive is plugged in, and the export runs by itself: the whole of it in a real system, with
// systemd, udev, a desktop session, and drives that are pulled out in the middle.
//
// run.sh builds what it needs and starts it: plug-in.js SYSTEM (the directory of build-image.sh).
// Prints a transcript: each step, each command in the guest with its output, each check. Goes on
// after a failed check, for what follows may tell more. The last line has the counts; exit status 1
// when a check failed or a step could not be done.

import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, realpathSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { tempDirectory } from '../helpers/temp-dir.ts'
import { type Outcome, startVm, type Vm } from './vm.ts'

/** What npm installs from. */
const PROJECT = ['README.md', 'LICENSE', 'package.json', 'package-lock.json', 'node_modules']
const PARTS = ['dist', 'config', 'systemd', 'docs']

/** Not compressible, so that it has to be written. Two or three bundles of 8 MiB. */
const DAY_MIB = 24

/** A drive this slow has a bundle or two when it is pulled out, and more to come. */
const SLOW_BYTES_PER_SECOND = 3_000_000
const PULLED_AT_BYTES = 10_000_000

/** Mounting and unmounting write a little. */
const NOTHING_BYTES = 1_000_000

/** From plugging in to the end of an export; most of it is an emulated processor starting Node. */
const RUN_SECONDS = 240

/** A notification is shown, a unit ends, soon after what it is about. */
const SOON_SECONDS = 60

/** What is shown of an output that is longer. */
const SHOWN_LINES = 30

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..')
let vm: Vm
let stop = async (): Promise<void> => await Promise.resolve()
let passed = 0
let failed = 0

interface TestDrive {
  /** Of the target, too. */
  readonly name: string
  readonly label: string
  readonly image: string
  /** A link of udev's: how the configuration knows it. */
  readonly link: string
  readonly unit: string
  readonly mount: string
}

async function main(system: string): Promise<void> {
  say('The system boots')
  const project = makeProjectImage()
  vm = await startVm({ system, project })
  stop = vm.stop
  console.log(`    ${vm.accelerator}, up in ${vm.bootSeconds} s`)
  await guest('. /etc/os-release; echo "$PRETTY_NAME, $(uname -r), node $(node --version)"')
  await until('loginctl show-session 1 -p Name -p Type -p State | grep -B 9 State=active')
  await until(`runuser -u me -- busctl --address=unix:path=/run/user/1000/bus list | grep ${BUS}`)
  await installProgram()
  const t9 = await prepareDrive({ name: 't9', label: 'T9', filesystem: 'ext4' })
  const t7 = await prepareDrive({ name: 't7', label: 'T7', filesystem: 'exfat' })
  await installSchedule([t9, t7])
  for (const drive of [t9, t7]) await tryDrive(drive)
}

const BUS = 'org.freedesktop.Notifications'

/** As the README has it; what npm fetches and compiles was fetched and compiled before. */
async function installProgram(): Promise<void> {
  say('The package is installed, and a first collection made, as README.md says')
  await guest('cd /opt/two-phase-backup && npm install --global --offline .', 180)
  await guest('backup --version')
  await guest(`mkdir -p /var/backup /data/photos && cp -r /opt/two-phase-backup/docs /data/
head -c ${DAY_MIB}M /dev/urandom >/data/photos/first.raw`)
  await guest(`backup init --source /data --staging /var/backup/staging --machine vm \\
  --config /etc/backup/config.yaml --identity /root/identity.txt --no-passphrase`)
  await guest(`cat >/root/targets <<'END'
targets:
  - name: t9
    kind: drive
    label: T9
    bundle_size: 8 MiB
END
sed -i -e '/^targets: \\[\\]/{r /root/targets' -e 'd}' -e 's/external: weekly/external: daily/' \\
  /etc/backup/config.yaml
sed -n '/^targets/,/^signing/p' /etc/backup/config.yaml`)
  await guest('backup-collect', RUN_SECONDS)
}

/** A repository on it, by hand, once. */
async function prepareDrive({
  name,
  label,
  filesystem,
}: {
  readonly name: string
  readonly label: string
  readonly filesystem: 'ext4' | 'exfat'
}): Promise<TestDrive> {
  say(`A drive with ${filesystem} and the label ${label} is prepared`)
  const image = makeDriveImage({ label, filesystem })
  if (filesystem === 'exfat') {
    console.log('    (the kernel has an exFAT driver: taken away here, so that FUSE has to do it)')
    await guest('echo install exfat /bin/false >/etc/modprobe.d/exfat.conf')
    await guest('! modprobe exfat')
  }
  await vm.plug({ name, image })
  await until(`lsblk -o NAME,TRAN,FSTYPE,LABEL,UUID /dev/disk/by-label/${label}`)
  const isConfigured = (await ask(`grep -q 'name: ${name}' /etc/backup/config.yaml`)).status === 0
  // By its label where the configuration says so, else by its UUID, which `drives add` writes.
  const device = `/dev/disk/by-label/${label}`
  await guest(`backup drives add ${name}${isConfigured ? '' : ` --device ${device}`} --yes`)
  const uuid = (await ask(`blkid -s UUID -o value ${device}`)).output
  const link = isConfigured ? device : `/dev/disk/by-uuid/${uuid}`
  const escape = `systemd-escape --path --template=backup-drive@.service ${link}`
  const { output: unit } = await ask(escape)
  await guest('backup drives')
  await checkUnmounted('after it was prepared')
  await vm.unplug(name)
  const mount = filesystem === 'exfat' ? 'mount.exfat-fuse -o ro' : 'mount -o ro'
  return { name, label, image, link, unit, mount }
}

async function installSchedule(drives: readonly TestDrive[]): Promise<void> {
  say('Plugging in is made to start the export')
  await guest('backup schedule install --system')
  await guest('systemctl list-timers --no-pager backup.timer')
  for (const { unit, name } of drives) {
    const { status } = await attempt(
      `find /etc/systemd/system -path '*.wants/*' -name '${inFind(unit)}' | grep .`,
    )
    check(status === 0, `the device of ${name} wants ${unit}`)
  }
  await guest('backup schedule status')
  console.log('    (the timer is stopped: what runs from here on was started by plugging in)')
  await guest('systemctl stop backup.timer')
}

/** A backslash is no escape there. */
function inFind(unit: string): string {
  return unit.replaceAll('\\', '\\\\')
}

async function tryDrive(drive: TestDrive): Promise<void> {
  const { name, mount } = drive

  say(`${name} is plugged in: it is exported to, unmounted, and the person is told`)
  const first = await plugAndWait(drive)
  check(first.isGood, 'the service ended well')
  await checkExports(drive, 1)
  await checkUnmounted('after the run')
  await checkTold(first, /safe to unplug/i, 'the desktop says that it is safe to unplug')
  await checkVerified(drive)
  await vm.unplug(name)

  say(`${name} is plugged in again, with nothing new to export`)
  const second = await plugAndWait(drive)
  check(second.isGood, 'the service ended well')
  const writtenBytes = await vm.writtenBytes(name)
  check(writtenBytes < NOTHING_BYTES, `next to nothing was written to it (${writtenBytes} bytes)`)
  await checkExports(drive, 1)
  await checkUnmounted('after the run')
  await vm.unplug(name)

  say(`A day later there is more to export, and ${name} is pulled out in the middle`)
  await guest(
    `date --set='+25 hours'
head -c ${DAY_MIB}M /dev/urandom >/data/photos/for-${name}.raw
backup-collect`,
    RUN_SECONDS,
  )
  const third = await plugAndPull(drive)
  check(!third.isGood, 'the service did not end well')
  check(/unharmed|harmed|lost|safe/i.test(third.journal), 'its error says what is unharmed')
  check(!/before you pull it|this is a bug/.test(third.journal), 'and nothing that is no help now')
  await checkUnmounted('although it was pulled out')
  await checkTold(
    third,
    /unplug|pulled|failed|interrupted|not there/i,
    'the desktop tells that it failed',
  )
  const { status } = await attempt('! pgrep -af -- --plugged-in')
  check(status === 0, 'no process is left')

  say(`${name} is plugged in once more: the next run needs no help`)
  const fourth = await plugAndWait(drive)
  check(fourth.isGood, 'the service ended well')
  await checkExports(drive, 2)
  await checkUnmounted('after the run')
  await checkTold(fourth, /safe to unplug/i, 'the desktop says that it is safe to unplug')
  await checkVerified(drive)
  await checkRestored(drive)
  if (mount.includes('fuse')) {
    const { status: noDriver } = await attempt('! grep -w exfat /proc/filesystems')
    check(noDriver === 0, 'the kernel had no driver for it all the while')
  }
  await vm.unplug(name)
}

interface Run {
  readonly isGood: boolean
  /** What the service and systemd said of it. */
  readonly journal: string
  /** How many notifications there were before. */
  readonly toldBefore: number
}

async function plugAndWait(drive: TestDrive): Promise<Run> {
  const before = await beforeRun()
  await vm.plug(drive)
  return await waitForRun(drive, before)
}

/** Pulls the drive out when a part of the export was written to it. */
async function plugAndPull(drive: TestDrive): Promise<Run> {
  const before = await beforeRun()
  await vm.plug({ ...drive, bytesPerSecond: SLOW_BYTES_PER_SECOND })
  const endMs = performance.now() + RUN_SECONDS * 1000
  let writtenBytes = 0
  while (writtenBytes < PULLED_AT_BYTES && performance.now() < endMs) {
    await sleep(250)
    writtenBytes = await vm.writtenBytes(drive.name)
  }
  const { output: state } = await ask(
    `systemctl show --property=ActiveState --value '${drive.unit}'`,
  )
  console.log(`    pulled out after ${writtenBytes} bytes were written; the service was ${state}`)
  check(state === 'activating', 'the service was at work when the drive was pulled out')
  await vm.unplug(drive.name)
  return await waitForRun(drive, before)
}

interface Before {
  readonly cursor: string
  readonly told: number
}

async function beforeRun(): Promise<Before> {
  const { output } = await ask('journalctl --lines=0 --show-cursor | sed -n "s/^-- cursor: //p"')
  return { cursor: output, told: (await notifications()).length }
}

/** The end of the service's run that began after `before`. */
async function waitForRun({ unit }: TestDrive, { cursor, told }: Before): Promise<Run> {
  const journal = `journalctl --output=cat --after-cursor='${cursor}' --unit='${unit}'`
  const endings = 'Deactivated successfully|Failed with result'
  const { output, status } = await ask(
    `until ${journal} | grep -qE '${endings}'; do sleep 0.5; done; ${journal}`,
    RUN_SECONDS,
  )
  console.log(`    the journal of ${unit}:`)
  show(output)
  if (status !== 0) show((await ask(`systemctl status '${unit}'; ${journal}`)).output)
  check(status === 0, 'the service ran')
  const isGood = status === 0 && !output.includes('Failed with result')
  return { isGood, journal: output, toldBefore: told }
}

async function notifications(): Promise<readonly string[]> {
  const { output } = await ask('cat /home/me/notifications.jsonl 2>/dev/null || true')
  return output.split('\n').filter((line) => line !== '')
}

async function checkTold({ toldBefore }: Run, wanted: RegExp, sentence: string): Promise<void> {
  const endMs = performance.now() + SOON_SECONDS * 1000
  let told: readonly string[] = []
  for (;;) {
    told = (await notifications()).slice(toldBefore)
    if (told.some((line) => wanted.test(line)) || performance.now() > endMs) break
    await sleep(500)
  }
  for (const line of told) console.log(`    on the desktop: ${line}`)
  check(
    told.some((line) => wanted.test(line)),
    sentence,
  )
}

/** In no process's view, whatever namespace the service had. */
async function checkUnmounted(when: string): Promise<void> {
  const { output } = await ask("grep -hsE ' /dev/sd| /run/backup/' /proc/[0-9]*/mountinfo || true")
  if (output !== '') show(output)
  check(output === '', `no drive is mounted anywhere ${when}`)
  const { output: left } = await ask('ls -A /run/backup 2>/dev/null || true')
  if (left !== '') show(`/run/backup: ${left}`)
}

/** By the kernel's and find's word: manifests, and nothing half-written. */
async function checkExports({ link, mount }: TestDrive, expected: number): Promise<void> {
  const { output } = await attempt(`mkdir -p /mnt/look && ${mount} ${link} /mnt/look
find /mnt/look/backup -type f -printf '%P %s\\n' | sort; umount /mnt/look`)
  const files = output.split('\n')
  const found = files.filter((line) => line.includes('manifest.tar.zst.age ')).length
  check(found === expected, `exports on the drive: ${expected}`)
  check(!files.some((line) => line.includes('.partial ')), 'nothing half-written is on it')
}

async function checkVerified({ name }: TestDrive): Promise<void> {
  const { status } = await attempt(
    `backup-restore --source external --target ${name} --verify --identity /root/identity.txt`,
    RUN_SECONDS,
  )
  check(status === 0, 'every byte of every export is verified')
  await checkUnmounted('after the verification')
}

async function checkRestored({ name }: TestDrive): Promise<void> {
  const { status } = await attempt(
    `rm -rf /root/restored
backup-restore --source external --target ${name} --date latest --into /root/restored \\
  --identity /root/identity.txt
diff -r /data /root/restored/data && echo the same`,
    RUN_SECONDS,
  )
  check(status === 0, 'what is restored from it is what was exported')
}

/** Everything that the README's `npm install --global .` needs, as a disk. */
function makeProjectImage(): string {
  const directory = tempDirectory()
  const tree = join(directory, 'tree')
  mkdirSync(tree)
  for (const part of [...PROJECT, ...PARTS]) {
    cpSync(realpathSync(join(root, part)), join(tree, part), {
      recursive: true,
      verbatimSymlinks: true,
    })
  }
  const image = join(directory, 'project.img')
  host('truncate -s 400M "$1" && mkfs.ext4 -q -F -d "$2" -L PROJECT "$1"', image, tree)
  return image
}

/** A disk as one buys it: a partition table, and one partition with a filesystem. */
function makeDriveImage({
  label,
  filesystem,
}: {
  readonly label: string
  readonly filesystem: 'ext4' | 'exfat'
}): string {
  const directory = tempDirectory()
  const image = join(directory, 'drive.img')
  const format = filesystem === 'ext4' ? 'mkfs.ext4 -q -F -m 0' : 'mkfs.exfat'
  host(
    `truncate -s 254M "$1.part" && ${format} -L ${label} "$1.part" >/dev/null
truncate -s 256M "$1" && echo 'start=1MiB, size=254MiB, type=7' |
  sfdisk --quiet --label dos "$1"
dd if="$1.part" of="$1" bs=1M seek=1 conv=notrunc,sparse status=none && rm "$1.part"`,
    image,
  )
  return image
}

function host(script: string, ...words: readonly string[]): void {
  const path = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`
  const { status, stderr } = spawnSync('bash', ['-euo', 'pipefail', '-c', script, '-', ...words], {
    encoding: 'utf8',
    env: { ...process.env, PATH: path },
  })
  if (status !== 0) throw new Error(`${script}: ${stderr}`)
}

/** Runs a script in the guest and shows it. @throws Error when it fails */
async function guest(script: string, seconds = 60): Promise<Outcome> {
  const outcome = await attempt(script, seconds)
  if (outcome.status !== 0) throw new Error(`exit ${outcome.status}: ${script}`)
  return outcome
}

/** The same for what may fail: a check follows. */
async function attempt(script: string, seconds = 60): Promise<Outcome> {
  console.log(script.replaceAll(/^/gm, '    ').replace('    ', '  $ '))
  const outcome = await vm.run(script, { seconds })
  show(outcome.output)
  if (outcome.status !== 0) console.log(`    (exit ${outcome.status})`)
  return outcome
}

/** Without showing it. */
async function ask(script: string, seconds = 60): Promise<Outcome> {
  return await vm.run(script, { seconds })
}

/** Again and again, until it succeeds; then it is shown. */
async function until(script: string): Promise<void> {
  const { status } = await ask(`until { ${script}; } &>/dev/null; do sleep 0.5; done`, SOON_SECONDS)
  await guest(script)
  if (status !== 0) throw new Error(`never: ${script}`)
}

function say(title: string): void {
  console.log(`\n== ${title} (${Math.round(performance.now() / 1000)} s)`)
}

function show(output: string): void {
  if (output === '') return
  const lines = output.split('\n')
  for (const line of lines.slice(0, SHOWN_LINES)) console.log(`    ${line}`)
  if (lines.length > SHOWN_LINES) console.log(`    … ${lines.length - SHOWN_LINES} more lines`)
}

function check(isTrue: boolean, sentence: string): void {
  if (isTrue) passed += 1
  else failed += 1
  console.log(`  ${isTrue ? 'ok  ' : 'FAIL'}  ${sentence}`)
}

// By themselves they end the process without the handlers that remove what it made; not once, for
// `timeout` sends two.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => process.exit(130))
}
try {
  await main(process.argv[2] ?? '')
} catch (error) {
  failed += 1
  console.log(`  FAIL  ${error instanceof Error ? error.message : String(error)}`)
}
await stop()
console.log(`\n${passed} passed, ${failed} failed`)
process.exit(failed === 0 ? 0 : 1)
