#!/usr/bin/env bash
# npm run bench:upload: sends the same files to the same Ceph in one run with this program, `restic backup` and `rclone copy`,
# four streams each, and prints megabytes a second and ratios; then sends 20 GB (or as many as the first argument says)
# to a server that throws them away, and prints how memory goes. Needs root on Debian for Ceph's packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
gigabytes=${1:-20}
test/programs.sh upload
node_modules/.bin/tsc -p . || { echo 'bench: the types are wrong' >&2; exit 1; }
work=$(mktemp -d "${TMPDIR:-/tmp}/backup-bench.XXXXXX")
finish() {
  test/s3/down.sh "$work/ceph"
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM
port=${S3_PORT:-47580}
mkdir -p "$work/home/data" "$work/h"
for i in $(seq 12); do head -c 24M /dev/urandom >"$work/home/data/$i"; done
megabytes=288
endpoint=http://127.0.0.1:$port
export AWS_ACCESS_KEY_ID=testkey AWS_SECRET_ACCESS_KEY=testsecret AWS_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null RESTIC_PASSWORD=bench XDG_CACHE_HOME=$work/cache
unset AWS_CA_BUNDLE
export RCLONE_CONFIG=$work/rclone.conf
cat >"$RCLONE_CONFIG" <<EOF
[ceph]
type = s3
provider = Ceph
access_key_id = testkey
secret_access_key = testsecret
endpoint = $endpoint
EOF
backup() { HOME=$work/h node dist/commands/main.js "$@"; }
backup init --source "$work/home/data" --staging "$work/staging" --machine bench --no-passphrase >/dev/null
ENDPOINT=$endpoint node --input-type=module -e '
  import { readFileSync, writeFileSync } from "node:fs"
  import { parse } from "yaml"
  const [path] = process.argv.slice(1)
  const target = { name: "cloud", kind: "s3", bucket: "ours", path: "b", region: "us-east-1" }
  const more = { endpoint: process.env.ENDPOINT, path_style: true, bundle_size: "64 MiB", streams: 4 }
  const configuration = parse(readFileSync(path, "utf8"))
  const targets = [{ ...target, ...more }]
  writeFileSync(path, JSON.stringify({ ...configuration, targets, notify: { desktop: false } }))
' "$work/h/.config/backup/config.yaml"
backup collect >/dev/null

# run NAME COMMAND…: what it took, in wall_NAME.
run() {
  local name=$1 wall cpu
  shift
  sync
  if ! /usr/bin/time -o "$work/time" -f '%e %U %S %M' "$@" >"$work/log" 2>&1; then
    tail -n 20 "$work/log" >&2
    exit 1
  fi
  read -r wall user system memory < <(tail -n 1 "$work/time")
  cpu=$(awk -v u="$user" -v s="$system" 'BEGIN { print u + s }')
  printf -v "wall_$name" '%s' "$wall"
  awk -v n="$name" -v w="$wall" -v c="$cpu" -v m="$memory" -v b="$megabytes" 'BEGIN {
    printf "%-8s %7.2f s   cpu %6.2f s   %6.1f MB/s   peak %4d MB\n", n, w, c, b / w, m / 1024 }'
}

for round in 1 2; do
  # Each round begins with an empty service: it has 2 GB.
  test/s3/down.sh "$work/ceph" 2>/dev/null || true
  test/s3/up.sh "$work/ceph" "$port" >/dev/null 2>&1
  for bucket in ours restic rclone; do
    curl --silent --output /dev/null --request PUT --aws-sigv4 aws:amz:us-east-1:s3 --user testkey:testsecret \
      --header "x-amz-content-sha256: $(printf '' | sha256sum | cut -d' ' -f1)" "$endpoint/$bucket"
  done
  # rclone wants the bucket to be its own; restic writes its keys.
  restic -q -r "s3:$endpoint/restic" init >/dev/null
  # What this service does with checksums is asked once a month, not at every export.
  rm -rf "$work/staging/.state/repositories" "$work/staging/.state/targets.json" "$work/staging/.state/unfinished"
  echo "round $round: $megabytes MB of noise to Ceph"
  run rclone rclone copy --transfers 4 --s3-upload-concurrency 4 --s3-chunk-size 8M "$work/home/data" ceph:rclone/data
  run restic restic -r "s3:$endpoint/restic" -o s3.connections=4 backup "$work/home/data"
  run ours env HOME="$work/h" node dist/commands/main.js external
  awk -v o="$wall_ours" -v r="$wall_restic" -v c="$wall_rclone" 'BEGIN {
    printf "ours / restic %.2f   ours / rclone %.2f\n", o / r, o / c }'
done
test/s3/down.sh "$work/ceph"
echo "$gigabytes GB to a service that checks and throws away:"
node dist/test/bench/upload-memory.js "$work/spool" "$gigabytes"
