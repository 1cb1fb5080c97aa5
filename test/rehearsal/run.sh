#!/usr/bin/env bash
# npm run rehearsal: a drive of ours is opened in a system that has none of our software, by the words of RECOVER.txt
# alone, and what comes out is compared with the source from outside. Prints a transcript; docs/recovery-rehearsal.md
# is one of these. By hand: needs root, debootstrap, rsync and the Debian mirror ($REHEARSAL_MIRROR), 1 GB, two minutes.
# The bare system is kept in $REHEARSAL_CACHE (else ~/.cache/two-phase-backup-rehearsal). Exit 0: the trees are equal.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${REHEARSAL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/two-phase-backup-rehearsal}
mirror=${REHEARSAL_MIRROR:-http://deb.debian.org/debian}
suite=bookworm
# The line of RECOVER.txt, and nothing else.
packages=$(sed -n 's/^ *- On Debian or Ubuntu: *apt-get install //p' config/RECOVER.txt)
[ -n "$packages" ] || { echo 'rehearsal: RECOVER.txt names no packages' >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo 'rehearsal: needs root' >&2; exit 2; }
for program in debootstrap rsync unshare script; do
  command -v "$program" >/dev/null || { echo "rehearsal: $program is not installed" >&2; exit 2; }
done
main=dist/commands/main.js
[ -e "$main" ] || { echo 'rehearsal: npm run build first' >&2; exit 2; }

key=$(printf '%s\n' "$suite" "$mirror" "$packages" | sha256sum | cut -c 1-16)
base=$cache/$key
if [ ! -e "$base.done" ]; then
  mkdir -p "$cache"
  rm -rf "$base"
  echo "rehearsal: making a bare Debian $suite in $cache" >&2
  debootstrap --variant=minbase "$suite" "$base" "$mirror" >"$base.log" 2>&1 || { tail "$base.log" >&2; exit 1; }
  # shellcheck disable=SC2086 # words
  unshare --mount --pid --fork sh -ec 'mount -t proc proc "$0/proc"; root=$0; exec chroot "$root" "$@"' "$base" \
    env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get install -y --no-install-recommends $packages \
    >>"$base.log" 2>&1 || { tail "$base.log" >&2; exit 1; }
  : >"$base.done"
fi

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
home=$work/home source=$work/home/data drive=$work/drive passphrase='correct horse battery staple'
mkdir -p "$source" "$drive" "$work/paper"
printf '%s\n' "$passphrase" >"$work/passphrase"

# ---- the source, and three generations of it, by our program ----

backup() { HOME=$home node "$main" "$@"; }
quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }; }
quietly backup init --source "$source" --staging "$work/staging" --target "$drive" --machine laptop \
  --passphrase-file "$work/passphrase"
printf '\nnotify: { desktop: false }\n' >>"$home/.config/backup/config.yaml"
mv "$home/.config/backup"/identity.age* "$work/paper/"

mkdir -p "$source/letters/a b" "$source/bin"
for i in $(seq 200); do printf 'letter %s\n' "$i" >"$source/letters/$i.txt"; done
head -c 6000000 /dev/urandom >"$source/film"
printf 'umlauts and a newline' >"$source/letters/a b/$(printf 'gr\303\274n\n\377')"
printf '#!/bin/sh\n' >"$source/bin/tool"
chmod 4755 "$source/bin/tool"
ln "$source/film" "$source/letters/the same film"
ln -s ../film "$source/letters/link"
mkfifo "$source/letters/fifo"
truncate -s 20M "$source/sparse"
printf 'in the middle' | dd of="$source/sparse" bs=1 seek=9000000 conv=notrunc status=none
chown 1234:5678 "$source/letters/7.txt"
setfattr -n user.colour -v blue "$source/letters/8.txt" 2>/dev/null || :
setfacl -m u:4321:r "$source/letters/9.txt" 2>/dev/null || :
touch -d '1969-07-20 20:17:40.123456789' "$source/letters/10.txt"
generation() {
  quietly backup collect
  quietly backup external
}
generation
printf 'changed\n' >>"$source/letters/1.txt"
mv "$source/letters/2.txt" "$source/letters/moved.txt"
printf 'patched' | dd of="$source/film" bs=1 seek=3000000 conv=notrunc status=none
sleep 1
generation
rm "$source/letters/3.txt"
chmod 600 "$source/letters/4.txt"
sleep 1
generation

# ---- the other system ----

# Ours is not there: no Node, none of our files but the drive's.
for ours in node nodejs npm; do
  [ -z "$(chroot "$base" sh -c "command -v $ours" || :)" ] || { echo "rehearsal: $ours is in the system" >&2; exit 1; }
done
root=$work/root
mkdir "$root" "$work/upper" "$work/work"

# typed: what is typed in that system; each line is shown, then run. The answers of questions come from a terminal.
cat >"$work/session.sh" <<'END'
set -eu
step() {
  printf '\n# %s\n' "$*"
  sh -c "$*"
}
cd /mnt/drive
step 'head -n 20 RECOVER.txt'
step 'sh recover.sh -l'
step 'sh recover.sh -i /mnt/paper/identity.age -o /root/easy'
step 'sh recover.sh -i /mnt/paper/identity.age -o /root/letters -t '"$FIRST"' "'"$LETTERS"'/3.txt"'
END
first=$(cd "$drive/machines/laptop/data" && printf '%s\n' ????-* | head -n 1)
newest=$(cat "$drive/machines/laptop/data/latest")

# ---- by hand, as RECOVER.txt says it, step by step ----

cat >"$work/by-hand.sh" <<'END'
set -eu
say() { printf '\n# %s\n' "$*"; }
cd /mnt/drive
IDENTITY=/mnt/paper/identity.age KEY=/root/key NEW=/root/by-hand
mkdir "$NEW"
say '1. cat identity.age.salt, and the two commands it shows'
cat "$IDENTITY.salt"
IFS= read -r PASSPHRASE
salt=$(sed -n 's/^.*argon2 \([^ ]*\) -id.*$/\1/p' "$IDENTITY.salt" | head -n 1)
digits=$(printf %s "$PASSPHRASE" | argon2 "$salt" -id -t 3 -m 18 -p 1 -l 32 -r)
say 'age -d -o KEY identity.age, with the digits pasted'
printf '%s\n' "$digits" | script -qec "age -d -o $KEY $IDENTITY" /dev/null >/dev/null
grep -c AGE-SECRET-KEY-1 "$KEY"
say '2. ls machines/laptop/data'
ls machines/laptop/data
cd "machines/laptop/data/$NEWEST"
say '3. sha256sum -c verification.sha256; minisign -V -P RW... -m verification.sha256'
sha256sum -c verification.sha256
minisign -V -P "$(sed -n 's/^# signing key of laptop: //p' "$KEY")" -m verification.sha256
say '4. and 5.: every data bundle that verification.sha256 names, those of earlier dates first'
sed -n 's/^[0-9a-f]*  \(.*data-.*\)$/\1/p' verification.sha256 | sed "s|^data|../$NEWEST/data|" | sort |
  while read -r bundle; do
    echo "age -d -i KEY $bundle | zstd -dc | tar -xpf - -C NEW-DIRECTORY"
    age -d -i "$KEY" "$bundle" | zstd -dc | tar -xpf - -C "$NEW"
  done
say 'ls -A NEW-DIRECTORY; what was edited later is in .entries and .pieces'
ls -A "$NEW"
ls "$NEW/.entries" | wc -l
say 'age -d -i KEY manifest.tar.zst.age | zstd -dc | tar -xOf - manifest.json'
age -d -i "$KEY" manifest.tar.zst.age | zstd -dc | tar -xOf - manifest.json | jq -c '{set, stamp, complete, statistics}'
rm "$KEY"
END
cp "$work/session.sh" "$work/by-hand.sh" "$work/upper/"

inside() {
  unshare --mount --pid --fork sh -ec '
    root=$0 base=$1 work=$2; shift 2
    mount -t overlay overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/work" "$root"
    mkdir -p "$root/mnt/drive" "$root/mnt/paper"
    mount --bind "$work/drive" "$root/mnt/drive"; mount -o remount,bind,ro "$root/mnt/drive"
    mount --bind "$work/paper" "$root/mnt/paper"; mount -o remount,bind,ro "$root/mnt/paper"
    mount -t proc proc "$root/proc"
    # A new terminal cannot be had without these.
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    rm -f "$root/dev/ptmx"; ln -s pts/ptmx "$root/dev/ptmx"
    exec chroot "$root" "$@"' "$root" "$base" "$work" "$@"
}

# What is given to the passphrase's question: once for each run of recover.sh.
before=$(find "$drive" -type f -exec sha256sum {} + | sort | sha256sum)
status=0
{
  echo "rehearsal of $(date -u +%Y-%m-%d), Debian $(cat "$base/etc/debian_version")"
  inside dpkg-query -W -f '${Package} ${Version}\n' age zstd jq tar minisign argon2 dash coreutils bsdutils
  printf '%s\n%s\n' "$passphrase" "$passphrase" |
    inside env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 FIRST="$first" \
      LETTERS="${source#/}/letters" sh /session.sh 2>&1
  printf '%s\n' "$passphrase" |
    inside env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 NEWEST="$newest" sh /by-hand.sh 2>&1
} || status=$?

# ---- from outside ----

# Nothing of it goes by our program: rsync alone says what differs.
compare() { rsync -aHAXSnic --delete --modify-window=-1 "$source/" "$work/upper/root/$1$source/"; }
echo
echo '# from outside: rsync -aHAXSnic --delete --modify-window=-1 SOURCE RESTORED'
differences=$(compare easy) || status=1
if [ -n "$differences" ]; then
  printf '%s\n' "$differences"
  status=1
else
  echo 'no difference'
fi
[ -f "$work/upper/root/letters$source/letters/3.txt" ] || { echo 'the deleted letter is not there'; status=1; }
[ ! -e "$work/upper/root/key" ] || { echo 'the identity was left'; status=1; }
[ "$before" = "$(find "$drive" -type f -exec sha256sum {} + | sort | sha256sum)" ] || { echo 'the drive was changed'; status=1; }
[ "$status" -eq 0 ] && echo 'rehearsal: everything came back' || echo "rehearsal: FAILED ($status)"
exit "$status"
