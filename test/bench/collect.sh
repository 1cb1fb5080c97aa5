#!/usr/bin/env bash
# npm run bench:collect [-- FILES]: what a collection costs in staging on btrfs, beside plain `rsync --link-dest` in the
# same run. Two measurements, each the median of five: a tree of 57,000 files without a change, compared or told by
# `btrfs send`; and the same 100 changed files in a tree of that size and in one a tenth of it, told by `btrfs send`.
# Sealing the catalog, which every kind of staging does alike, is not in them. Needs root, and 3 GB below TMPDIR; a loop
# device is made and removed.
set -euo pipefail
files=${1:-57000}
cd "$(dirname "$0")/../.."
project=$PWD
node_modules/.bin/tsc -p . || { echo 'bench: the types are wrong' >&2; exit 1; }
work=$(mktemp -d "${TMPDIR:-/tmp}/backup-bench.XXXXXX")
trap 'cd /; umount "$work/m" 2>/dev/null; rm -rf "$work"' EXIT
truncate -s 8G "$work/image"
mkfs.btrfs -q "$work/image" >/dev/null
mkdir "$work/m"
mount -o loop "$work/image" "$work/m"
cd "$work/m"

# tree DIR FILES: small files, 50 in a directory.
head -c 51200 /dev/urandom >"$work/content"
tree() {
  local directory
  mkdir -p "$1"
  for directory in $(seq 1 $(($2 / 50))); do
    mkdir "$1/$directory"
    split -b 1024 -a 2 "$work/content" "$1/$directory/file-"
  done
}

for size in small large; do
  btrfs -q subvolume create $size
  count=$files
  [ $size = large ] || count=$((files / 10))
  tree "$size/tree" "$count"
  btrfs -q subvolume snapshot -r $size $size-0
  mkdir set-$size
done
printf '%s files, %s in the small tree\n' "$(find large/tree -type f | wc -l)" "$(find small/tree -type f | wc -l)"

now() { date +%s%N; }
median() { sort -n | sed -n 3p; }
collect() { node "$project/dist/test/bench/collect.js" "$@"; }

mkdir plain
rsync -aHAXS --relative "$work/m/large-0/./tree/" plain/0/
collect whole "$work/m/large-0" '' "$work/m/set-large" 0 '' >/dev/null
collect whole "$work/m/small-0" '' "$work/m/set-small" 0 '' >/dev/null
btrfs -q subvolume snapshot -r large large-same
sync -f .

echo 'no change'
for number in 1 2 3 4 5; do
  start=$(now)
  rsync -aHAXS --relative --modify-window=-1 --link-dest="$work/m/plain/$((number - 1))" \
    "$work/m/large-0/./tree/" plain/$number/
  sync -f .
  echo $(($(now) - start)) >>"$work/plain"
  start=$(now)
  collect whole "$work/m/large-0" '' "$work/m/set-large" "same-$number" 0 >"$work/log"
  sync -f .
  echo $(($(now) - start)) >>"$work/ours"
  start=$(now)
  collect changed "$work/m/large-same" "$work/m/large-0" "$work/m/set-large" "told-$number" 0 >>"$work/log"
  sync -f .
  echo $(($(now) - start)) >>"$work/told"
done
tail -n 2 "$work/log"

# change SIZE NUMBER: 100 files, the same in both trees; then a snapshot.
change() {
  local directory
  for directory in $(seq 1 25); do
    for name in aa ab ac ad; do echo "$2" >>"$1/tree/$directory/file-$name"; done
  done
  btrfs -q subvolume snapshot -r "$1" "$1-$2"
}

echo '100 files changed'
for number in 1 2 3 4 5; do
  for size in small large; do
    change $size $number
    sync -f .
    start=$(now)
    collect changed "$work/m/$size-$number" "$work/m/$size-$((number - 1))" "$work/m/set-$size" \
      $number $((number - 1)) >"$work/log"
    sync -f .
    echo $(($(now) - start)) >>"$work/$size"
    echo "$size: $(tail -n 1 "$work/log")"
  done
done
for size in small large; do
  differences=$(rsync -aHAXSnic --delete $size-5/tree/ set-$size/5/tree/ | wc -l)
  [ "$differences" = 0 ] || { echo "bench: $size differs in $differences places" >&2; exit 1; }
done

awk -v plain="$(median <"$work/plain")" -v ours="$(median <"$work/ours")" -v told="$(median <"$work/told")" \
  -v small="$(median <"$work/small")" -v large="$(median <"$work/large")" 'BEGIN {
  printf "no change: link-dest %.2f s, btrfs %.2f s, ratio %.2f (at most 0.33: %s)\n",
    plain / 1e9, ours / 1e9, ours / plain, ours <= plain / 3 ? "yes" : "NO"
  printf "no change, told by btrfs send: %.2f s, ratio %.2f (at most 0.33: %s)\n",
    told / 1e9, told / plain, told <= plain / 3 ? "yes" : "NO"
  printf "a change in a tree ten times as large: %.2f s and %.2f s, ratio %.2f (at most 2: %s)\n",
    small / 1e9, large / 1e9, large / small, large <= small * 2 ? "yes" : "NO"
}'
