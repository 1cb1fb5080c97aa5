#!/usr/bin/env bash
# npm run bench:collect [-- FILES]: what a whole collection costs where source and staging are on btrfs, beside plain
# `rsync --link-dest` of the same tree in the same run; each number the median of five.
#
# Two measurements: a tree of FILES (57,000) without a change, with every file compared and with `keep_snapshot`; and the
# same 100 changed files in that tree and in one a tenth of it, with `keep_snapshot`. Needs root, and 3 GB below TMPDIR; a
# loop device is made and removed.
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

# configure NAME KEEP: a configuration whose only set is the tree NAME.
configure() {
  cat >"$work/$1-$2.yaml" <<YAML
machine: bench
staging: $work/m/staging-$1-$2
backup_sets:
  - { name: data, sources: [$work/m/$1/tree], snapshot: required, keep_snapshot: $2 }
retention: { local: 2 }
YAML
}

for size in small large; do
  btrfs -q subvolume create $size
  count=$files
  [ $size = large ] || count=$((files / 10))
  tree "$size/tree" "$count"
  configure $size true
done
configure large false
printf '%s files, %s in the small tree\n' "$(find large/tree -type f | wc -l)" "$(find small/tree -type f | wc -l)"

now() { date +%s%N; }
median() { sort -n "$1" | sed -n 3p; }

# timed NAME COMMAND…: adds its nanoseconds to the file NAME, the sync included.
timed() {
  local name=$1 start
  shift
  sync
  start=$(now)
  "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  sync -f .
  echo $(($(now) - start)) >>"$work/$name"
}

collect() { node "$project/dist/commands/main.js" collect --quiet --config "$work/$1.yaml"; }
link_dest() {
  rsync -aHAXS --relative --modify-window=-1 --link-dest="$work/m/plain/$1" "$work/m/large/./tree/" "plain/$2/"
}

mkdir plain
rsync -aHAXS --relative large/./tree/ plain/0/
for configuration in large-true large-false small-true; do collect $configuration; done

for number in 1 2 3 4 5; do
  timed plain link_dest $((number - 1)) $number
  timed compared collect large-false
  timed told collect large-true
done
for number in 1 2 3 4 5; do
  for size in small large; do
    for directory in $(seq 1 100); do echo "$number" >>"$size/tree/$directory/file-aa"; done
    timed changed-$size collect $size-true
  done
done

line() { awk -v n="$1" -v t="$(median "$work/$2")" 'BEGIN { printf "%-44s %7.2f s\n", n, t / 1e9 }'; }
ratio() {
  awk -v n="$1" -v a="$(median "$work/$2")" -v b="$(median "$work/$3")" -v l="$4" 'BEGIN {
    printf "%-44s %7.2f   at most %.2f: %s\n", n, a / b, l, a / b <= l ? "yes" : "NO" }'
}
line 'no change: rsync --link-dest' plain
line 'no change: collect, every file compared' compared
line 'no change: collect, keep_snapshot' told
line '100 changed files, small tree' changed-small
line '100 changed files, large tree' changed-large
ratio 'collect, compared / rsync --link-dest' compared plain 1
ratio 'collect, keep_snapshot / rsync --link-dest' told plain 0.34
ratio 'tenfold tree, same change' changed-large changed-small 2
