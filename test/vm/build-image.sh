#!/usr/bin/env bash
# Makes the system that test/vm boots: Debian 12 with systemd, a desktop session that takes notifications, this
# machine's Node, and the programs that the README names. Prints the directory with base.img, vmlinuz and initrd.img.
# Kept in $VM_CACHE (else ~/.cache/two-phase-backup-vm) and made anew when this script or test/vm/guest changes.
# Needs root, about 3 GB there and the Debian mirror ($VM_MIRROR, else deb.debian.org); a minute or two.
set -euo pipefail
cd "$(dirname "$0")"
cache=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/two-phase-backup-vm}
mirror=${VM_MIRROR:-http://deb.debian.org/debian}
suite=bookworm

# With the reason for each.
packages=(
  systemd-sysv udev kmod                 # what boots, and what sees the drive
  dbus dbus-user-session libpam-systemd  # sessions, each with a bus
  libnotify-bin python3-dbus python3-gi  # notify-send, and the desktop that takes what it sends
  kbd                                    # chvt: the session is in the foreground
  linux-image-amd64 initramfs-tools      # the cloud kernel has no usb-storage
  exfat-fuse exfatprogs fuse3            # exFAT without the kernel's driver
  libstdc++6                             # Node
  rsync btrfs-progs                      # the README's line, less what only compiling needs
  procps                                 # a system has it
  age minisign zstd jq                   # the stock programs that open a drive
)

[ "$(uname -m)" = x86_64 ] || { echo 'vm: the image is for x86-64 only' >&2; exit 2; }
key=$({ cat build-image.sh guest/*; node --version; echo "$mirror"; } | sha256sum | cut -c 1-16)
image=$cache/$key
if [ -e "$image/base.img" ]; then
  echo "$image"
  exit 0
fi
[ "$(id -u)" = 0 ] || { echo 'vm: building the image needs root (debootstrap)' >&2; exit 2; }
mkdir -p "$cache"
# One at a time; whoever waited finds the image there.
exec 9>"$cache/lock"
flock 9
if [ -e "$image/base.img" ]; then
  echo "$image"
  exit 0
fi
work=$(mktemp -d "$cache/building.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root log=$work/log

# quietly COMMAND…: its output is shown only when it fails.
quietly() {
  "$@" >"$log" 2>&1 </dev/null || {
    tail -n 30 "$log" >&2
    echo "vm: failed: $*" >&2
    exit 1
  }
}

# inside COMMAND…: in the new system, with a /proc that goes with the command.
inside() {
  quietly env DEBIAN_FRONTEND=noninteractive LC_ALL=C unshare --mount --pid --fork \
    sh -ec 'mount -t proc proc "$0/proc"; exec chroot "$0" "$@"' "$root" "$@"
}

echo "vm: building a Debian $suite image in $cache" >&2
quietly debootstrap --variant=minbase "$suite" "$root" "$mirror"
mkdir -p "$root/etc/initramfs-tools/conf.d"
# Only what mounts the root: a small initrd boots sooner where the processor is emulated.
echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/vm"
printf '%s\n' virtio_pci virtio_blk ext4 >"$root/etc/initramfs-tools/modules"
inside apt-get install -y --no-install-recommends "${packages[@]}"
inside apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*

# Debian 12 has Node 18: the one that runs the tests goes in, with what it links to.
node=$(readlink -f "$(command -v node)")
install -m 755 "$node" "$root/usr/bin/node"
ldd "$node" | grep -o '/[^ ]*' | while read -r library; do
  [ -e "$root$library" ] || install -D "$library" "$root$library"
done
npm=$(dirname "$(dirname "$(readlink -f "$(command -v npm)")")")
mkdir -p "$root/usr/lib/node_modules"
cp -r "$npm" "$root/usr/lib/node_modules/npm"
ln -sf ../lib/node_modules/npm/bin/npm-cli.js "$root/usr/bin/npm"
inside node --version

echo vm >"$root/etc/hostname"
echo '127.0.0.1 localhost vm' >"$root/etc/hosts"
cat >"$root/etc/fstab" <<'END'
/dev/vda      /                      ext4 defaults        0 0
LABEL=PROJECT /opt/two-phase-backup  ext4 defaults,nofail 0 0
END
mkdir -p "$root/opt/two-phase-backup"
install -m 755 guest/agent.sh "$root/usr/local/sbin/"
install -m 755 guest/desktop.py "$root/usr/local/bin/"
install -m 644 guest/*.service "$root/etc/systemd/system/"
inside useradd --create-home --uid 1000 --shell /bin/bash me
inside systemctl enable agent.service desktop.service
# Nothing else wakes up while the test looks.
inside systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
  e2scrub_all.timer e2scrub_reap.service fstrim.timer getty@tty1.service \
  systemd-timesyncd.service systemd-networkd.service

cp "$(readlink -f "$root"/vmlinuz)" "$work/vmlinuz"
cp "$(readlink -f "$root"/initrd.img)" "$work/initrd.img"
quietly mkfs.ext4 -F -q -d "$root" -L VMROOT "$work/base.img" 3G
rm -rf "$root" "$log"
# One image is kept; a machine that runs from an older one still holds its files open.
for older in "$cache"/*; do
  [[ ${older##*/} =~ ^([0-9a-f]{16}|building\..{6})$ && $older != "$work" ]] && rm -rf "$older"
done
chmod 755 "$work"
mv "$work" "$image"
echo "$image"
