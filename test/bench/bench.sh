#!/usr/bin/env bash
# npm run bench [-- [--small] DIR]: this program beside what one would use instead (restic, borg, a plain pipe, rsync),
# on one tree, in one run. Each step prints wall seconds, CPU seconds and peak memory; the ratios at the end are what
# counts, for absolute times differ from hour to hour on the same machine.
#
# DIR is for scratch: 15 GB, empty or from an earlier run, whose tree is then used again. Without it a directory below
# TMPDIR is made and removed. --small takes a tree of 200 MB, to try the script itself.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
project=$PWD
size=whole
if [ "${1:-}" = --small ]; then size=small; shift; fi
test/programs.sh bench
node_modules/.bin/tsc -p . || { echo 'bench: the types are wrong' >&2; exit 1; }

if [ $# -gt 0 ]; then
  mkdir -p "$1"
  work=$(cd "$1" && pwd -P)
else
  work=$(mktemp -d "${TMPDIR:-/tmp}/backup-bench.XXXXXX")
  trap 'cd /; rm -rf "$work"' EXIT
fi
tree=$work/home
scratch=$work/scratch
rm -rf "$scratch"
mkdir "$scratch"

unset BACKUP_CONFIG DBACKUP DDATA BACKUP_RETENTION
export RESTIC_PASSWORD=bench BORG_PASSPHRASE=bench
export RESTIC_REPOSITORY=$scratch/restic BORG_REPO=$scratch/borg
export XDG_CACHE_HOME=$scratch/cache BORG_BASE_DIR=$scratch/borg-base

# step KEY NAME WARM COMMAND…: WARM is read into the page cache first, so that every side starts from the same state.
# What was measured stays in wall_KEY.
step() {
  local key=$1 name=$2 warm=$3
  shift 3
  sync
  find "$warm" -type f -exec cat {} + >/dev/null 2>&1 || true
  if ! /usr/bin/time -o "$scratch/time" -f '%e %U %S %M' "$@" >"$scratch/log" 2>&1; then
    cat "$scratch/log" >&2
    echo "bench: failed: $name" >&2
    exit 1
  fi
  local wall user system memory
  read -r wall user system memory < <(tail -n 1 "$scratch/time")
  printf -v "wall_$key" '%s' "$wall"
  [ "${key#ours}" = "$key" ] || [ "$memory" -le "${peak:-0}" ] || peak=$memory
  awk -v n="$name" -v w="$wall" -v u="$user" -v s="$system" -v m="$memory" 'BEGIN {
    printf "%-34s wall %8.2f s   cpu %8.2f s   peak %5d MB\n", n, w, u + s, m / 1024 }'
}

# bytes FIND-ARGUMENTS…: the sum of the sizes of what find finds.
bytes() {
  find "$@" -type f -printf '%s\n' | awk '{ sum += $1 } END { printf "%d", sum }'
}

size_line() {
  printf '%-34s %s MB\n' "$1: size" "$((($2 + 500000) / 1000000))"
}

# ratio NAME A B [LIMIT]: A / B, and whether it keeps the limit that we set ourselves.
ratio() {
  awk -v n="$1" -v a="$2" -v b="$3" -v l="${4:-}" 'BEGIN {
    r = b > 0 ? a / b : 0
    verdict = l == "" ? "" : sprintf("at most %.2f: %s", l, r <= l ? "yes" : "NO")
    printf "%-48s %6.2f   %s\n", n, r, verdict }'
}

# Our program with what every call has in common; a script, because a function cannot be timed.
cat >"$scratch/ours" <<SCRIPT
#!/bin/sh
verb=\$1
shift
exec node "$project/dist/commands/main.js" \$verb --config "$scratch/config.yaml" --quiet "\$@"
SCRIPT
chmod +x "$scratch/ours"

echo "$(date -u +%Y-%m-%d), $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)," \
  "node $(node --version), $(restic version | cut -d' ' -f1-2), $(borg --version)"
if [ ! -e "$work/home.$size" ]; then
  rm -rf "$tree" "$work"/home.*
  if [ $size = small ]; then "$here/make-home.sh" "$tree" small; else "$here/make-home.sh" "$tree"; fi
  touch "$work/home.$size"
fi
printf '%s files, %s bytes\n\n' "$(find "$tree" -type f | wc -l)" "$(bytes "$tree")"

repository=$scratch/drive
mkdir "$repository"
node "$project/dist/commands/main.js" init --quiet --config "$scratch/config.yaml" \
  --staging "$scratch/staging" --target "$repository" --source "$tree" \
  --no-passphrase --identity "$scratch/identity.txt" >/dev/null
# Nothing may be left out on our side that the others keep.
sed -i -e 's/^    exclusions:$/    exclusions: []/' -e '/^      - "\*\.tmp"$/d' \
  -e '/^      - ~\/\.cache/d' "$scratch/config.yaml"
set_name=$(sed -n 's/^ *- name: *//p' "$scratch/config.yaml" | head -n 1 | tr -d '"')
# Everybody's secret is at hand: restic's and borg's passphrase in the environment, our identity in a file.
unlock=(--identity "$scratch/identity.txt")

echo 'first'
step rsync 'rsync copy' "$tree" rsync -aHAXS "$tree/" "$scratch/r1/"
step ours_collect 'ours: collect' "$tree" "$scratch/ours" collect
step ours_export 'ours: export' "$scratch/staging" "$scratch/ours" external
size_line ours "$(bytes "$repository")"
ours_size=$(bytes "$repository")
restic init -q --repository-version 2
step restic_backup 'restic backup' "$tree" restic backup -q "$tree"
size_line restic "$(bytes "$scratch/restic")"
restic_size=$(bytes "$scratch/restic")
borg init -e repokey-blake2 2>/dev/null
step borg_create 'borg create (zstd,3)' "$tree" borg create -C zstd,3 ::first "$tree"
size_line borg "$(bytes "$scratch/borg")"
age-keygen -o "$scratch/pipe.key" 2>/dev/null
R=$(age-keygen -y "$scratch/pipe.key")
export R T=$tree W=$scratch
step pipe 'tar | zstd -3 -T2 | age' "$tree" \
  bash -o pipefail -c 'tar -C "$T" -cf - . | zstd -3 -T2 -q | age -r "$R" >"$W/pipe.age"'
size_line pipe "$(bytes "$scratch/pipe.age")"

printf '\nverify\n'
step ours_verify 'ours: --verify' "$repository" \
  "$scratch/ours" restore --source external --verify "${unlock[@]}"
step restic_check 'restic check --read-data' "$scratch/restic" restic check -q --read-data
step borg_check 'borg check --verify-data' "$scratch/borg" borg check --verify-data

printf '\nrestore\n'
step ours_restore 'ours: restore' "$repository" "$scratch/ours" restore --source external \
  --date latest --set "$set_name" --into "$scratch/restored" "${unlock[@]}"
step restic_restore 'restic restore' "$scratch/restic" \
  restic restore -q latest --target "$scratch/restic-restored"
mkdir "$scratch/borg-restored" "$scratch/pipe-restored"
step borg_extract 'borg extract' "$scratch/borg" \
  bash -c 'cd "$W/borg-restored" && borg extract ::first'
step pipe_extract 'age | zstd | tar' "$scratch/pipe.age" bash -o pipefail -c \
  'age -d -i "$W/pipe.key" "$W/pipe.age" | zstd -dc | tar -C "$W/pipe-restored" -xf -'
mkdir "$scratch/rsync-restored"
step rsync_back 'rsync back from staging' "$scratch/staging" rsync -aHAXS "$(ls -d "$scratch"/staging/*/latest/)" "$scratch/rsync-restored/"
step ours_one 'ours: restore one file' "$repository" "$scratch/ours" restore --source external \
  --date latest --set "$set_name" --path "$tree/photos/img_1.raw" --into "$scratch/one" "${unlock[@]}"
step restic_one 'restic restore one file' "$scratch/restic" \
  restic restore -q latest --target "$scratch/restic-one" --include "$tree/photos/img_1.raw"
rsync -aHAXSnic --delete "$tree/" "$scratch/restored$tree/" >"$scratch/differences"
printf 'rsync -aHAXSnic --delete finds %s differences\n' "$(wc -l <"$scratch/differences")"
head -n 5 "$scratch/differences"
rm -rf "$scratch/restored" "$scratch/restic-restored" "$scratch/borg-restored" "$scratch/pipe-restored"

# newest GLOB: bytes of the newest export's files of that kind.
newest() {
  local directory
  directory=$(find "$repository/machines" -name manifest.tar.zst.age | sort | tail -n 1)
  bytes "${directory%/*}" -name "$1"
}

printf '\nno change\n'
step rsync_same 'rsync --link-dest' "$tree" \
  rsync -aHAXS --link-dest="$scratch/r1" "$tree/" "$scratch/r2/"
step ours_collect_same 'ours: collect' "$tree" "$scratch/ours" collect
step ours_export_same 'ours: export' "$scratch/staging" "$scratch/ours" external
same_data=$(newest 'data-*')
same_manifest=$(newest 'manifest*')
step restic_same 'restic backup' "$tree" restic backup -q "$tree"
step borg_same 'borg create' "$tree" borg create -C zstd,3 ::same "$tree"

# From here on the tree is another one: the next run has to make it anew.
rm "$work/home.$size"
changed=$("$here/edit-home.sh" "$tree" 1)
printf '\nafter a day of work (%s bytes changed)\n' "$changed"
step ours_collect_edit 'ours: collect' "$tree" "$scratch/ours" collect
step ours_export_edit 'ours: export' "$scratch/staging" "$scratch/ours" external
edit_data=$(newest 'data-*')
printf '%-34s data bundles %s, catalog bundles %s bytes\n' 'ours: written' "$edit_data" "$(newest 'catalog-*')"
before=$(bytes "$scratch/restic")
step restic_edit 'restic backup' "$tree" restic backup -q "$tree"
printf '%-34s %s bytes\n' 'restic: written' "$(($(bytes "$scratch/restic") - before))"
before=$(bytes "$scratch/borg")
step borg_edit 'borg create' "$tree" borg create -C zstd,3 ::edit "$tree"
printf '%-34s %s bytes\n' 'borg: written' "$(($(bytes "$scratch/borg") - before))"

# Set by step through printf -v.
# shellcheck disable=SC2154
{
  printf '\nratios\n'
  ratio 'first export / restic backup, wall' "$wall_ours_export" "$wall_restic_backup" 0.5
  ratio 'collect and export / restic backup, wall' \
    "$(awk "BEGIN { print $wall_ours_collect + $wall_ours_export }")" "$wall_restic_backup"
  ratio 'first export / borg create, wall' "$wall_ours_export" "$wall_borg_create"
  ratio 'first export / plain pipe, wall' "$wall_ours_export" "$wall_pipe"
  ratio 'repository / restic repository, bytes' "$ours_size" "$restic_size" 1
  ratio '--verify / restic check --read-data, wall' "$wall_ours_verify" "$wall_restic_check" 0.5
  ratio 'restore / restic restore, wall' "$wall_ours_restore" "$wall_restic_restore" 0.4
  ratio 'plain pipe / restic restore, wall' "$wall_pipe_extract" "$wall_restic_restore"
  ratio 'rsync from staging / restic restore, wall' "$wall_rsync_back" "$wall_restic_restore"
  ratio 'restore one file / restic, wall' "$wall_ours_one" "$wall_restic_one"
  ratio 'data bundles after a day / bytes changed' "$edit_data" "$changed" 1.5
  ratio 'peak memory of ours / 400 MB' "$((peak / 1024))" 400 1
  # The directories above the tree are in the collection, too: when one of them has a new time, it is written.
  printf '%-48s %s bytes of data bundles, %s of manifest\n' 'no change' "$same_data" "$same_manifest"
}
