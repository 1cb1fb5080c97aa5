#!/usr/bin/env bash
# npm run test:vm: a Debian system in qemu, the package installed in it, and drives that are plugged in and pulled out.
# Needs root on Debian (x86-64), 5 GB and the Debian mirror; with an emulated processor about ten minutes. Ends with
# `N passed, N failed`. Exit 0 when nothing failed, 2 when something has to be installed first, else 1.
# VM_CACHE: where the built system is kept; VM_ACCEL: kvm or tcg instead of what works.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
table='
qemu-system-x86_64 qemu-system-x86
debootstrap        debootstrap
mkfs.ext4          e2fsprogs
mkfs.exfat         exfatprogs
sfdisk             fdisk
setpriv            util-linux
'
missing=$(printf '%s' "$table" | while read -r program package; do
  [ -z "$program" ] || command -v "$program" >/dev/null || printf '%s ' "$package"
done)
if [ -n "$missing" ]; then
  line="apt-get update && apt-get install -y --no-install-recommends $missing"
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    printf '%s\n' "missing: $missing" 'install it with this line, then run this again:' \
      "  sudo sh -c '$line'" >&2
    exit 2
  fi
  echo "installing: $missing"
  log=$(mktemp)
  DEBIAN_FRONTEND=noninteractive sh -c "$line" >"$log" 2>&1 || { tail -n 20 "$log" >&2; exit 2; }
  rm -f "$log"
fi
test/programs.sh demo
node_modules/.bin/tsc -p . || { echo 'the types are wrong: nothing was run' >&2; exit 1; }
system=$(test/vm/build-image.sh)
exec node dist/test/vm/plug-in.js "$system"
