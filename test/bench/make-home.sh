#!/usr/bin/env bash
# Makes a tree like someone's home in DIR, from what a Debian machine has: many small texts, headers and libraries,
# photos that do not compress, and a disk image of mixed content. About 2 GB in 55,000 files; `small` about 200 MB.
# Usage: make-home.sh DIR [small]
set -euo pipefail
home=$1
photos=64
images=64
parts='doc man locale perl python3 icons mime zoneinfo'
if [ "${2:-}" = small ]; then photos=2 images=4 parts=mime; fi
mkdir -p "$home/photos" "$home/lib"

# Copies a tree with its path below /, as far as it is there and readable.
take() {
  [ ! -d "$1" ] || cp -a --parents "$1" "$home/" 2>/dev/null || true
}

for part in $parts; do take "/usr/share/$part"; done
[ ! -d /usr/include ] || cp -a /usr/include "$home/include"
if [ "${2:-}" != small ]; then
  for tree in /usr/lib/python3 /usr/lib/x86_64-linux-gnu/perl /usr/lib/node_modules \
    /usr/local/lib/node_modules; do take "$tree"; done
  find -L /usr/lib/*-linux-gnu -maxdepth 1 -type f -size +200k 2>/dev/null | sort >"$home/lib/list"
  head -n 150 "$home/lib/list" | while read -r library; do cp -L "$library" "$home/lib/"; done
  rm "$home/lib/list"
fi

for number in $(seq 0 $((photos - 1))); do
  head -c 8388608 /dev/urandom >"$home/photos/img_$number.raw"
done

# The disk image: noise, text and zeros in turn, so that it compresses as such files do.
text=$(mktemp)
trap 'rm -f "$text"' EXIT
{
  find /usr/include /usr/share/perl /usr/lib/python3* -type f -name '*.[hp]*' -print0 2>/dev/null |
    xargs -0 cat 2>/dev/null | head -c 67108864 >"$text"
} || true
for number in $(seq 0 $((images - 1))); do
  head -c 1048576 /dev/urandom
  dd if="$text" bs=1M skip=$((number % 60)) count=2 status=none
  head -c 1048576 /dev/zero
done >"$home/disk.img"
du -sh "$home"
find "$home" -type f | wc -l
