#!/usr/bin/env bash
# npm run demo: a backup of a small tree from beginning to end, in a fresh directory that is removed afterwards.
# Every command is printed before its output. KEEP=yes leaves the directory there. Exit 0 when every step did what it
# says, 2 when something has to be installed first.
set -euo pipefail
cd "$(dirname "$0")/.."
project=$PWD
test/programs.sh demo
node_modules/.bin/tsc -p . || { echo 'demo: the types are wrong' >&2; exit 1; }

# Nothing of the user's own configuration takes part.
unset BACKUP_CONFIG DBACKUP DDATA BACKUP_RETENTION
umask 077
work=$(mktemp -d "${TMPDIR:-/tmp}/backup-demo.XXXXXX")
work=$(cd "$work" && pwd -P)
finish() {
  status=$?
  cd /
  if [ "${KEEP:-no}" = yes ]; then echo "kept: $work"; else rm -rf "$work"; fi
  [ $status = 0 ] || echo "demo: FAILED (exit $status)" >&2
}
trap finish EXIT

bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
steps=0

# say SENTENCE: the one line that explains what comes next.
say() {
  steps=$((steps + 1))
  printf '\n%s%d. %s%s\n' "$bold" "$steps" "$1" "$plain"
}

# show COMMAND…: prints it, then runs it.
show() {
  printf '$ %s\n' "$*"
  "$@"
}

# shell LINE: the same for a line with pipes in it.
shell() {
  printf '$ %s\n' "$1"
  bash -euo pipefail -c "$1"
}

# The programs under their own names, as an installation has them.
mkdir -p "$work/bin" "$work/main"
for name in backup backup-collect backup-external backup-restore; do
  ln -s "$project/dist/commands/main.js" "$work/main/$name"
  printf '#!/bin/sh\nexec node "%s/main/%s" "$@"\n' "$work" "$name" >"$work/bin/$name"
  chmod 755 "$work/bin/$name"
done
PATH=$work/bin:$PATH:/usr/sbin:/sbin

home=$work/home drive=$work/drive keys=$work/keys config=$work/config.yaml restored=$work/restored
mkdir -p "$home"/{photos,notes} "$drive" "$keys"

say 'A small home: texts and sources, 8 MB of photos, and what backups like to lose.'
cp -R "$project/docs" "$project/lib" "$project/config" "$home/"
mkdir "$home/project"
for package in zx yaml uvu; do cp -R "node_modules/$package" "$home/project/$package"; done
for number in 1 2 3 4; do head -c 2097152 /dev/urandom >"$home/photos/photo-$number.raw"; done
echo 'version 1' >"$home/notes/plan.txt"
echo 'not worth keeping' >"$home/notes/draft.tmp"
ln "$home/photos/photo-1.raw" "$home/notes/the same photo.raw"
ln -s ../photos "$home/notes/photos"
dd if=/dev/urandom of="$home/sparse.img" bs=65536 count=1 seek=1000 2>/dev/null
printf 'odd' >"$home/notes/-odd"$'\n'"\"name'.txt"
if [ "$(uname)" = Linux ]; then
  printf 'latin' >"$home/notes/caf"$'\351'.txt
  setfattr -n user.origin -v 'a camera' "$home/photos/photo-2.raw" || echo '(no xattrs here)'
  setfacl -m u:12345:r "$home/notes/plan.txt" || echo '(no ACLs here)'
else
  xattr -w user.origin 'a camera' "$home/photos/photo-2.raw"
fi
chmod 640 "$home/notes/plan.txt"
touch -d '1999-12-31T23:59:59.123456789' "$home/photos/photo-3.raw" 2>/dev/null ||
  touch -t 199912312359.59 "$home/photos/photo-3.raw"
count=$(find "$home" -type f -print0 | tr -dc '\0' | wc -c | tr -d ' ')
shell "du -sh '$home'"
echo "$count files"

say 'Configuration and keys, once: the identity is what you would keep off this machine.'
printf 'correct horse battery staple' >"$work/passphrase"
show backup init --config "$config" --staging "$work/staging" --target "$drive" \
  --source "$home" --passphrase-file "$work/passphrase" --identity "$keys/identity.age"
set_name=$(sed -n 's/^ *- name: *//p' "$config" | head -n 1 | tr -d '"')
identity=(--identity "$keys/identity.age" --passphrase-file "$work/passphrase")

say 'Look first: can this machine do what the configuration says?'
show backup doctor --config "$config"

say 'Phase one, collect: a dated, plain, browsable tree in staging.'
show backup-collect --config "$config"

say 'Phase two, export: encrypted bundles on the drive, read back before they count.'
show backup-external --config "$config"
first=$(find "$drive" -name 'data-*.age' -exec cat {} + | wc -c | tr -d ' ')

say 'A day of work: one file edited, one moved, one removed, one new, one with other permissions.'
sleep 1 # another day has another stamp
shell "cd '$home' && echo 'version 2' >>notes/plan.txt && mv photos/photo-4.raw photos/moved.raw &&
  rm project/uvu/readme.md && echo new >notes/new.txt && chmod 600 project/zx/package.json"

say 'Both phases again, before they are due: only what changed is written, and a moved photo costs nothing.'
show backup --force --config "$config"
all=$(find "$drive" -name 'data-*.age' -exec cat {} + | wc -c | tr -d ' ')
echo "data bundles: $first bytes the first time, $((all - first)) the second"
[ "$all" -gt "$first" ] && [ $((all - first)) -lt $((first / 10)) ]

say 'Why is a file there, or not? The rule, and the collections that hold it.'
show backup why --config "$config" "$home/notes/plan.txt"
show backup why --config "$config" "$home/notes/draft.tmp"

say 'How does everything stand, and what is due when?'
show backup status --config "$config"

say 'What is on the drive.'
show backup-restore --config "$config" --source external --list "${identity[@]}"

say 'Proof: every byte is read, decrypted, decompressed and compared, and nothing is written.'
show backup-restore --config "$config" --source external --verify "${identity[@]}"

say 'Restore the newest export into an empty directory.'
mkdir "$restored"
show backup-restore --config "$config" --source external --date latest --set "$set_name" \
  --into "$restored" "${identity[@]}"

say 'The referee: rsync compares contents and all metadata, and prints nothing.'
shell "rsync -aHAXSnic --delete --exclude='*.tmp' '$home/' '$restored$home/' | tee '$work/differences'"
[ ! -s "$work/differences" ]
echo '(nothing)'

# Everything from here on is done with stock programs only.
export_directory=$(find "$drive/machines" -name manifest.tar.zst.age | sort | tail -n 1)
export_directory=${export_directory%/*}
first_directory=$(find "$drive/machines" -name data-0001.tar.zst.age | sort | head -n 1)
first_directory=${first_directory%/*}

say 'Without this program: the checksums, by sha256sum.'
shell "cd '$export_directory' && sha256sum -c verification.sha256"

say 'Without this program: the signature over them, by minisign, with the public key you kept.'
signing_key=$(find "$work" -name 'signing.pub' -not -path "$drive/*" | head -n 1)
shell "cd '$export_directory' && minisign -V -p '$signing_key' -m verification.sha256"

say 'Without this program: argon2 and age open the identity (age asks for its passphrase on a terminal).'
# The recipe that stands in the .salt file; the passphrase goes through a pipe, never through an argument.
salt=$(sed -n 's/.*argon2 \([^ ]*\) -id .*/\1/p' "$keys/identity.age.salt" | head -n 1)
echo "$ argon2 $salt -id -t 3 -m 18 -p 1 -l 32 -r <$work/passphrase"
stretched=$(argon2 "$salt" -id -t 3 -m 18 -p 1 -l 32 -r <"$work/passphrase")
echo "(64 hexadecimal digits: ${#stretched})"
echo "$ age -d -o $work/identity.txt $keys/identity.age"
open="age -d -o '$work/identity.txt' '$keys/identity.age'"
if [ "$(uname)" = Linux ]; then
  (sleep 1; printf '%s\n' "$stretched"; sleep 2) | script -qec "$open" /dev/null >/dev/null
else
  (sleep 1; printf '%s\n' "$stretched"; sleep 2) | script -q /dev/null sh -c "$open" >/dev/null
fi
[ -s "$work/identity.txt" ]

say 'Without this program: age, zstd and tar list the first bundle.'
shell "age -d -i '$work/identity.txt' '$first_directory/data-0001.tar.zst.age' | zstd -dc |
  tar -t | tee '$work/listing' | sed -n '1,5p'"
echo "… $(wc -l <"$work/listing" | tr -d ' ') entries"
[ -s "$work/listing" ]

printf '\n%sDone: %d steps, %s files.%s ' "$bold" "$steps" "$count" "$plain"
echo 'Collected, exported twice, verified, restored, compared equal, and opened with stock programs.'
