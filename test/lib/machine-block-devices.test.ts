// What lsblk prints where udev runs is transcribed: no machine with such drives is here. diskutil
// is a stand-in that prints property lists as diskutil(8) describes them.

import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import {
  type BlockFilesystem,
  listBlockFilesystems,
  matchesDrive,
  parseBlkid,
  parseLsblk,
} from '../../lib/machine/block-devices.ts'
import { listExternalVolumes, readPlist } from '../../lib/machine/diskutil.ts'
import * as assert from '../helpers/assert.ts'
import { type DriveType, driveImage } from '../helpers/drive-image.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { withPrograms } from '../helpers/stand-in.ts'

const test = suite('machine/block-devices')

const T9 = '0b6a4a2e-2c0f-4f51-9d1e-5a1f6e1c7a11'

/** As lsblk prints it: a USB SSD that calls itself fixed, with one exFAT partition. */
const usb = {
  name: 'sdb',
  path: '/dev/sdb',
  type: 'disk',
  fstype: null,
  label: null,
  uuid: null,
  partuuid: null,
  rm: false,
  hotplug: true,
  tran: 'usb',
  ro: false,
  size: 2000398934016,
  model: 'PSSD T9         ',
  serial: 'S7DLNJ0W600001',
  children: [
    {
      name: 'sdb1',
      path: '/dev/sdb1',
      type: 'part',
      fstype: 'exfat',
      label: 'T9',
      uuid: '64A5-F009',
      partuuid: 'C2A1B5D4-01',
      rm: false,
      hotplug: true,
      tran: null,
      ro: false,
      size: 2000397868544,
      model: null,
      serial: null,
    },
  ],
}

const nvme = {
  name: 'nvme0n1',
  path: '/dev/nvme0n1',
  type: 'disk',
  fstype: null,
  rm: false,
  hotplug: false,
  tran: 'nvme',
  ro: false,
  size: 1000204886016,
  model: 'Samsung SSD 980 PRO 1TB',
  serial: 'S5GXNX0T000001',
  children: [
    { ...part('nvme0n1p1', 'vfat', 'EFI', 'AB12-34CD'), tran: 'nvme' },
    { ...part('nvme0n1p2', 'swap', null, 'f6a8c2f0-0000-4000-8000-000000000001'), tran: 'nvme' },
    { ...part('nvme0n1p3', 'LVM2_member', null, 'q3-x'), tran: 'nvme' },
  ],
}

/** As older versions print it: numbers and truth as text. */
const card = {
  name: 'mmcblk0',
  path: '/dev/mmcblk0',
  type: 'disk',
  fstype: null,
  rm: '0',
  hotplug: '1',
  tran: null,
  ro: '1',
  size: '31914983424',
  model: null,
  serial: '0x12345678',
  children: [
    {
      ...part('mmcblk0p1', 'ext4', 'Karte "ü" 50%', T9.toUpperCase()),
      ro: '1',
      size: '31910789120',
    },
  ],
}

const locked = {
  ...usb,
  name: 'sdc',
  path: '/dev/sdc',
  children: [
    {
      ...part('sdc1', 'crypto_LUKS', null, 'aaaaaaaa-0000-4000-8000-000000000002'),
      children: [
        {
          ...part('luks-aaaaaaaa', 'btrfs', 'Safe', 'bbbbbbbb-0000-4000-8000-000000000003'),
          path: '/dev/mapper/luks-aaaaaaaa',
          type: 'crypt',
        },
      ],
    },
  ],
}

function part(name: string, fstype: string, label: string | null, uuid: string) {
  const rest = { rm: false, hotplug: false, tran: null, ro: false, size: 1, model: null }
  return { name, path: `/dev/${name}`, type: 'part', fstype, label, uuid, ...rest, serial: null }
}

const list = (...blockdevices: readonly unknown[]): string => JSON.stringify({ blockdevices })

/** Programs that print this: a heredoc, whose end no output contains. */
const printing = (text: string): string => `cat <<'END OF OUTPUT'\n${text}\nEND OF OUTPUT`

async function failure(action: Promise<unknown>): Promise<BackupError> {
  const error = await action.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  assert.ok(error instanceof BackupError, String(error))
  return error
}

test('a partition has what only its disk tells', () => {
  const [disk, t9] = parseLsblk(list(usb))
  assert.is(disk?.filesystem, undefined)
  assert.equal(t9, {
    device: '/dev/sdb1',
    disk: '/dev/sdb',
    kind: 'part',
    filesystem: 'exfat',
    label: 'T9',
    uuid: '64a5-f009',
    partUuid: 'c2a1b5d4-01',
    sizeBytes: 2000397868544,
    isRemovable: true,
    readOnly: false,
    transport: 'usb',
    model: 'PSSD T9',
    serial: 'S7DLNJ0W600001',
    hasChildren: false,
  })
})

test('a USB disk is removable though it says that it is fixed, and an NVMe disk is not', () => {
  const quiet = { ...usb, hotplug: false, children: [{ ...usb.children[0], hotplug: false }] }
  assert.ok(parseLsblk(list(quiet)).every(({ isRemovable }) => isRemovable))
  assert.not(parseLsblk(list(nvme)).some(({ isRemovable }) => isRemovable))
})

test('what older versions print as text is understood', () => {
  const [, found] = parseLsblk(list(card))
  assert.is(found?.isRemovable, true)
  assert.is(found?.readOnly, true)
  assert.is(found?.sizeBytes, 31910789120)
  assert.is(found?.label, 'Karte "ü" 50%')
  assert.is(found?.uuid, T9)
  assert.is(found?.serial, '0x12345678')
})

test('an opened LUKS device is on the disk that it was opened from', () => {
  const found = parseLsblk(list(locked)).at(-1)
  assert.is(found?.device, '/dev/mapper/luks-aaaaaaaa')
  assert.is(found?.disk, '/dev/sdc')
  assert.is(found?.transport, 'usb')
  assert.is(found?.isRemovable, true)
})

test('a device made of two stands in the list once', () => {
  const raid = { ...part('md0', 'ext4', 'both', T9), type: 'raid1' }
  const member = (name: string) => ({
    ...part(name, 'linux_raid_member', null, 'r'),
    children: [raid],
  })
  const devices = parseLsblk(list(member('sdx'), member('sdy')))
  assert.equal(
    devices.map(({ device, disk }) => [device, disk]),
    [
      ['/dev/sdx', '/dev/sdx'],
      ['/dev/md0', '/dev/sdx'],
      ['/dev/sdy', '/dev/sdy'],
    ],
  )
})

test('only what can be mounted is listed', async () => {
  const image = part('loop3', 'squashfs', null, 's')
  const blkid = 'exit 2'
  const lsblk = printing(list(usb, nvme, card, locked, image))
  await withPrograms({ lsblk, blkid }, async () => {
    const devices = (await listBlockFilesystems()).map(({ device }) => device)
    const wanted = ['sdb1', 'nvme0n1p1', 'mmcblk0p1', 'mapper/luks-aaaaaaaa']
    assert.equal(
      devices,
      wanted.map((name) => `/dev/${name}`),
    )
  })
})

test('output that is no list is an error, and not an empty one', async () => {
  for (const lsblk of ['echo {', 'echo "lsblk: unknown column: TRAN" >&2; exit 1', 'echo "[]"']) {
    await withPrograms({ lsblk }, async () => {
      const error = await failure(listBlockFilesystems())
      assert.is(error.code, 'PROGRAM_FAILED')
    })
  }
})

test('blkid gives back every byte of a label', () => {
  const lines = [
    'ID_FS_LABEL=a_b',
    'ID_FS_LABEL_ENC=a\\x20\\x22\\x27\\x5cx20ü\\x25',
    'ID_FS_UUID_ENC=FBB1-FCEB',
    'ID_FS_TYPE=exfat',
    'ID_FS_USAGE=filesystem',
    'ID_PART_ENTRY_UUID=C2A1B5D4-01',
  ]
  assert.equal(parseBlkid(lines.join('\n')), {
    filesystem: 'exfat',
    label: 'a "\'\\x20ü%',
    uuid: 'fbb1-fceb',
    partUuid: 'c2a1b5d4-01',
  })
})

test('what blkid finds that is no filesystem has no label to be found by', () => {
  const lines = ['ID_FS_TYPE=crypto_LUKS', 'ID_FS_USAGE=crypto', 'ID_FS_LABEL_ENC=T9']
  const found = parseBlkid(lines.join('\n'))
  assert.is(found.filesystem, undefined)
  assert.is(found.label, undefined)
})

test('a drive is known by label, by UUID in any case, or by both at once', () => {
  const t9 = { label: 'T9', uuid: '64a5-f009' }
  assert.ok(matchesDrive(t9, { label: 'T9' }))
  assert.ok(matchesDrive(t9, { uuid: '64A5-F009' }))
  assert.ok(matchesDrive(t9, { label: 'T9', uuid: '64a5-f009' }))
  assert.not(matchesDrive(t9, { label: 't9' }))
  assert.not(matchesDrive(t9, { label: 'T9', uuid: '0000-0000' }))
  assert.not(matchesDrive(t9, { label: 'T8', uuid: '64a5-f009' }))
  assert.not(matchesDrive(t9, {}))
  assert.not(matchesDrive({ label: undefined, uuid: undefined }, {}))
})

if (canRunAsRoot('drives on loop devices')) {
  const labels: readonly (readonly [DriveType, string])[] = [
    ['ext4', 'a"b \'ü%41\\$`'],
    ['xfs', 'x"y ü%\\'],
    ['btrfs', 'My Backup\'s "Überfluß" 100% \\x20 long'],
    ['exfat', 'Mü "%'],
    ['vfat', 'T9 X'],
    ['ntfs', 'N ü'],
  ]
  for (const [type, label] of labels) {
    test(`finds an unmounted drive with ${type} by its label and by its UUID`, async () => {
      const drive = driveImage({ type, label })
      const found = await listBlockFilesystems()
      for (const by of [{ label }, { uuid: drive.uuid.toUpperCase() }]) {
        const [one, ...others] = found.filter((filesystem) => matchesDrive(filesystem, by))
        assert.equal(others, [])
        assert.is(one?.device, drive.device)
        assert.is(one?.disk, drive.device)
        assert.is(one?.filesystem, type)
        assert.is(one?.label, label)
        assert.equal(one?.mountPoints, [])
        assert.ok((one?.sizeBytes ?? 0) >= 16 * 1024 * 1024)
      }
      drive.detach()
      const later = await listBlockFilesystems()
      assert.not(later.some((filesystem) => matchesDrive(filesystem, { label })))
    })
  }

  test('lists both of two drives with one label', async () => {
    const drives = [driveImage({ label: 'Twin' }), driveImage({ type: 'exfat', label: 'Twin' })]
    const found = (await listBlockFilesystems()).filter((one) =>
      matchesDrive(one, { label: 'Twin' }),
    )
    const devices = (of: readonly Pick<BlockFilesystem, 'device'>[]): string[] =>
      of.map(({ device }) => device).sort()
    assert.equal(devices(found), devices(drives))
    for (const drive of drives) drive.detach()
  })

  test('leaves out a device that cannot be read, and only that one', async () => {
    const [dead, alive] = [driveImage({ label: 'Dead' }), driveImage({ label: 'Alive' })]
    const blkid = `
      for word; do [ "$word" = ${dead.device} ] && exit 8; done
      PATH=/usr/sbin:/sbin exec blkid "$@"`
    await withPrograms({ blkid }, async () => {
      const found = await listBlockFilesystems()
      assert.not(found.some(({ device }) => device === dead.device))
      assert.ok(found.some(({ device }) => device === alive.device))
    })
    for (const drive of [dead, alive]) drive.detach()
  })

  test('waits for no device when it is interrupted', async () => {
    const drive = driveImage({ label: 'Slow' })
    await withPrograms({ blkid: 'exec sleep 20' }, async () => {
      const startMs = Date.now()
      const error = await failure(listBlockFilesystems({ signal: AbortSignal.timeout(300) }))
      assert.is(error.code, 'INTERRUPTED')
      assert.ok(Date.now() - startMs < 5000)
    })
    drive.detach()
  })
}

const plist = (body: string): string => `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN"
  "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
${body}
</plist>`

const listed = plist(`<dict>
	<key>AllDisks</key>
	<array>
		<string>disk4</string>
		<string>disk4s1</string>
	</array>
	<key>AllDisksAndPartitions</key>
	<array>
		<dict>
			<key>Content</key>
			<string>GUID_partition_scheme</string>
			<key>OSInternal</key>
			<false/>
			<key>Partitions</key>
			<array/>
		</dict>
	</array>
	<key>VolumesFromDisks</key>
	<array/>
</dict>`)

const wholeDisk = plist(`<dict>
	<key>DeviceNode</key>
	<string>/dev/disk4</string>
	<key>FilesystemType</key>
	<string></string>
	<key>MountPoint</key>
	<string/>
</dict>`)

const volume = plist(`<dict>
	<key>BusProtocol</key>
	<string>USB</string>
	<key>DeviceNode</key>
	<string>/dev/disk4s1</string>
	<key>DiskUUID</key>
	<string>1B2C3D4E-0000-4000-8000-000000000004</string>
	<key>FilesystemType</key>
	<string>msdos</string>
	<key>MediaName</key>
	<string>PSSD T9 Media</string>
	<key>MountPoint</key>
	<string>/Volumes/Tom &amp; Jo &lt;&#252;&gt;</string>
	<key>ParentWholeDisk</key>
	<string>disk4</string>
	<key>RemovableMediaOrExternalDevice</key>
	<true/>
	<key>TotalSize</key>
	<integer>2000398934016</integer>
	<key>VolumeName</key>
	<string>Tom &amp; Jo &lt;&#252;&gt;</string>
	<key>VolumeUUID</key>
	<string>5E9A0000-0000-3000-8000-00000000ABCD</string>
	<key>WritableMedia</key>
	<false/>
</dict>`)

test('on a Mac every external volume is listed, and no whole disk', async () => {
  const diskutil = `
    case "$*" in
      'list -plist external') ${printing(listed)}
      ;;
      'info -plist disk4') ${printing(wholeDisk)}
      ;;
      'info -plist disk4s1') ${printing(volume)}
      ;;
      *) exit 64 ;;
    esac`
  await withPrograms({ diskutil }, async () => {
    assert.equal(await listExternalVolumes({}), [
      {
        device: '/dev/disk4s1',
        disk: '/dev/disk4',
        filesystem: 'vfat',
        label: 'Tom & Jo <ü>',
        uuid: '5e9a0000-0000-3000-8000-00000000abcd',
        partUuid: '1b2c3d4e-0000-4000-8000-000000000004',
        sizeBytes: 2000398934016,
        isRemovable: true,
        readOnly: true,
        transport: 'usb',
        model: 'PSSD T9 Media',
        serial: undefined,
        mountPoints: ['/Volumes/Tom & Jo <ü>'],
      },
    ])
  })
})

test('a property list that is cut off or nested wrongly is an error', () => {
  for (const text of ['', '<plist><dict><key>a</key>', '<array></dict>', '</array>']) {
    assert.throws(
      () => readPlist(text),
      (error: unknown) => error instanceof BackupError && error.code === 'PROGRAM_FAILED',
    )
  }
  assert.equal(
    readPlist('<dict><key>a</key><array><string/><dict/><real>1.5</real></array></dict>'),
    { a: ['', {}, 1.5] },
  )
})

test.run()
