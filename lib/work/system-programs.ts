// What is recorded of this machine: which programs are asked, which files are copied, and what of
// their answers changes by itself and is left out.
//
// system-record.ts runs and reads them. Nothing here may change from one day to the next on a
// machine that nobody touched: times, counters, free space, numbers of generations and addresses
// that are lent are left out, so that a quiet day collects nothing. Throws nothing.

export interface ProgramRecord {
  /** The record's name, relative to the directory of records. */
  readonly file: string
  readonly program: string
  readonly args: readonly string[]
  /** A path without which the program has nothing to say. */
  readonly where?: string
  /** Who asks it; everybody where it is not said. */
  readonly who?: 'root' | 'user'
  /** Exit codes besides 0 that are no failure: then there is nothing of the kind here. */
  readonly none?: readonly number[]
  /** The lasting part of what it prints. */
  readonly keep?: (text: string) => string
}

const DPKG = '/var/lib/dpkg/status'
const FORMAT = '${binary:Package} ${Version}\\n'

const PACKAGES: readonly ProgramRecord[] = [
  record('packages/dpkg-selections.txt', 'dpkg --get-selections', { where: DPKG }),
  {
    ...record('packages/dpkg-versions.txt', 'dpkg-query --show', { where: DPKG }),
    args: ['--show', `--showformat=${FORMAT}`],
  },
  record('packages/dpkg-architectures.txt', 'dpkg --print-foreign-architectures', { where: DPKG }),
  record('packages/dpkg-owners.txt', 'dpkg-statoverride --list', { where: DPKG, none: [1] }),
  record('packages/apt-manual.txt', 'apt-mark showmanual', { where: DPKG, keep: sorted }),
  record('packages/rpm.txt', 'rpm --query --all', { where: '/var/lib/rpm', keep: sorted }),
  record('packages/dnf-manual.txt', 'dnf -q -C repoquery --userinstalled --qf %{name}\\n', {
    where: '/var/lib/dnf',
    keep: sorted,
  }),
  record('packages/pacman-manual.txt', 'pacman -Qqe'),
  record('packages/pacman-foreign.txt', 'pacman -Qqm', { none: [1] }),
  record('packages/apk.txt', 'apk info -v', { keep: sorted }),
  record('packages/brew.txt', 'brew list --versions', { who: 'user', keep: sorted }),
  record('packages/flatpak.txt', 'flatpak list --app --columns=application,branch,origin'),
  record('packages/snap.txt', 'snap list', { where: '/run/snapd.socket' }),
]

const DISKS: readonly ProgramRecord[] = [
  record('disks/lvm-volumes.txt', 'lvs --noheadings --units b -o vg_name,lv_name,segtype,lv_size', {
    who: 'root',
  }),
  record('disks/lvm-disks.txt', 'pvs --noheadings --units b -o pv_name,vg_name,pv_uuid,pv_size', {
    who: 'root',
  }),
  record('disks/raid.txt', 'mdadm --detail --scan', { who: 'root' }),
  record('disks/zfs.txt', 'zfs list -H -t filesystem,volume -o name,mountpoint', {
    who: 'root',
    where: '/dev/zfs',
  }),
  record('disks/zfs-properties.txt', 'zfs get -H -s local -o name,property,value all', {
    who: 'root',
    where: '/dev/zfs',
  }),
  record('disks/zpool.txt', 'zpool status -P', {
    who: 'root',
    where: '/dev/zfs',
    keep: poolLayout,
  }),
  record('disks/mounts.txt', 'findmnt --real --list --noheadings -o TARGET,SOURCE,FSTYPE,OPTIONS', {
    keep: lastingMounts,
  }),
  record('disks/diskutil.txt', 'diskutil list internal'),
]

const SYSTEM: readonly ProgramRecord[] = [
  record('system/kernel.txt', 'uname -srm'),
  record('system/hostname.txt', 'hostnamectl', {
    where: '/run/systemd/system',
    keep: without(/Boot ID|Uptime|Firmware Age/),
  }),
  record('system/boot.txt', 'efibootmgr -v', {
    who: 'root',
    where: '/sys/firmware/efi/efivars',
    keep: without(/^Boot(Current|Next)/),
  }),
  record('system/dkms.txt', 'dkms status'),
  // Read off the links, so it is the same where systemd does not run.
  record('services/enabled.txt', 'systemctl --root=/ list-unit-files --state=enabled --no-legend', {
    where: '/etc/systemd/system',
    keep: firstWords,
  }),
  record('services/masked.txt', 'systemctl --root=/ list-unit-files --state=masked --no-legend', {
    where: '/etc/systemd/system',
    keep: firstWords,
  }),
  record('services/failed.txt', 'systemctl list-units --failed --plain --no-legend', {
    where: '/run/systemd/system',
    keep: firstWords,
  }),
  record('services/openrc.txt', 'rc-update show'),
  record('users/crontab.txt', 'crontab -l', { who: 'user', none: [1] }),
  record('users/dscl.txt', 'dscl . -list /Users UniqueID'),
  record('network/addresses.json', 'ip -json address', { keep: lastingAddresses }),
  record('network/routes.json', 'ip -json route', { keep: lastingRoutes }),
]

/** Asked one after another, in this order. */
export const PROGRAM_RECORDS: readonly ProgramRecord[] = [...PACKAGES, ...DISKS, ...SYSTEM]

/** Files, and directories of files, that are copied to `files/` below the records as they are. */
export const COPIED: readonly string[] = [
  '/etc/os-release',
  '/etc/hostname',
  '/etc/hosts',
  '/etc/fstab',
  '/etc/crypttab',
  '/etc/passwd',
  '/etc/group',
  '/etc/modules',
  '/etc/default/grub',
  '/etc/apt/sources.list',
  '/etc/apt/sources.list.d',
  '/etc/apt/keyrings',
  '/etc/apt/trusted.gpg.d',
  '/etc/apt/preferences.d',
  '/usr/share/keyrings',
  '/etc/yum.repos.d',
  '/etc/pacman.conf',
  '/etc/apk/world',
  '/etc/apk/repositories',
  '/boot/loader/loader.conf',
  '/boot/loader/entries',
  '/boot/firmware/config.txt',
  '/boot/firmware/cmdline.txt',
  '/proc/cmdline',
]

/** What belongs to a machine and decides whether it comes up as it was; the guide lists it. */
export const CRITICAL: readonly { readonly path: string; readonly what: string }[] = [
  { path: '/etc/fstab', what: 'what is mounted where, by UUID' },
  { path: '/etc/crypttab', what: 'which disks are opened with a key' },
  { path: '/etc/lvm/backup', what: 'the volume groups, for vgcfgrestore' },
  { path: '/etc/passwd', what: 'users and their numbers, which files are owned by' },
  { path: '/etc/shadow', what: 'their passwords' },
  { path: '/etc/group', what: 'groups and their numbers' },
  { path: '/etc/subuid', what: 'numbers that containers of users have' },
  { path: '/etc/sudoers', what: 'who may become root' },
  { path: '/etc/hostname', what: 'the name' },
  { path: '/etc/machine-id', what: 'the id that the journal and DHCP know' },
  { path: '/etc/ssh', what: 'the keys by which others know this machine' },
  { path: '/etc/ssl/private', what: 'private keys of services' },
  { path: '/etc/NetworkManager/system-connections', what: 'networks and their passwords' },
  { path: '/etc/netplan', what: 'the network' },
  { path: '/etc/network/interfaces', what: 'the network' },
  { path: '/etc/systemd/system', what: 'units of your own, and which are enabled' },
  { path: '/etc/default/grub', what: 'how it boots' },
  { path: '/etc/initramfs-tools', what: 'what is there before the root is mounted' },
  { path: '/etc/apt', what: 'where packages come from' },
  { path: '/etc/backup', what: 'the configuration and signing key of the backup' },
  { path: '/var/spool/cron', what: 'crontabs of users' },
  { path: '/usr/local', what: 'what was installed by hand' },
]

/** Drives that somebody plugged in, and what containers and snaps mount, come and go. */
export const PASSING_PLACE =
  /^\/(media|run|snap|tmp|proc|var\/lib\/(docker|containers|machines|snapd))\//

function record(file: string, command: string, rest: Partial<ProgramRecord> = {}): ProgramRecord {
  const [program = '', ...args] = command.split(' ')
  return { file, program, args, ...rest }
}

function linesOf(text: string): string[] {
  return text.split('\n').filter((line) => line.trim() !== '')
}

function joined(lines: readonly string[]): string {
  return lines.map((line) => `${line}\n`).join('')
}

function sorted(text: string): string {
  return joined(linesOf(text).sort())
}

function firstWords(text: string): string {
  return joined(
    linesOf(text)
      .map((line) => line.trim().split(/\s+/)[0] ?? '')
      .sort(),
  )
}

function without(pattern: RegExp): (text: string) => string {
  return (text) => joined(linesOf(text).filter((line) => !pattern.test(line)))
}

/** Of `zpool status`: the pool and what it is made of, not how it feels. */
function poolLayout(text: string): string {
  return joined(
    linesOf(text).flatMap((line) => {
      if (/^\s*pool:/.test(line)) return [line.trim()]
      const device = /^\t(\s*\S+)\s+[A-Z]+\s+\d/.exec(line)
      return device === null ? [] : [`  ${device[1]}`]
    }),
  )
}

function lastingMounts(text: string): string {
  const lines = linesOf(text).map((line) => line.trim().replace(/\s+/g, ' '))
  return joined(lines.filter((line) => !PASSING_PLACE.test(line)).sort())
}

/** Links of containers and virtual machines. */
const PASSING_LINK = /^(lo$|veth|docker|br-|virbr|vnet|tap|cni|flannel|cali)/

interface Link {
  readonly ifname?: string
  readonly address?: string
  readonly link_type?: string
  readonly addr_info?: readonly {
    readonly local?: string
    readonly prefixlen?: number
    readonly dynamic?: boolean
    readonly temporary?: boolean
    readonly scope?: string
  }[]
}

function lastingAddresses(text: string): string {
  const links = (JSON.parse(text || '[]') as readonly Link[])
    .filter(({ ifname = '' }) => !PASSING_LINK.test(ifname))
    .map(({ ifname, address, link_type: type, addr_info: addresses = [] }) => ({
      name: ifname,
      type,
      hardware: address,
      // Lent ones change; their network comes from a server anyway.
      addresses: addresses
        .filter((one) => one.dynamic !== true && one.temporary !== true && one.scope === 'global')
        .map(({ local, prefixlen }) => `${local}/${prefixlen}`),
    }))
  return `${JSON.stringify(links, undefined, 2)}\n`
}

interface Route {
  readonly dst?: string
  readonly gateway?: string
  readonly dev?: string
  readonly protocol?: string
}

function lastingRoutes(text: string): string {
  const routes = (JSON.parse(text || '[]') as readonly Route[])
    .filter(({ dev = '', protocol }) => !PASSING_LINK.test(dev) && protocol !== 'dhcp')
    .map(({ dst, gateway, dev }) => ({ to: dst, by: gateway, link: dev }))
  return `${JSON.stringify(routes, undefined, 2)}\n`
}
