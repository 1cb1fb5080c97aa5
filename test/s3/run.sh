#!/usr/bin/env bash
# npm run test:s3: the S3 target against a real service, the gateway of a Ceph of one node, in memory. Needs root on
# Debian for Ceph's packages (or that they are installed), 600 MB of memory and about two minutes.
# Ends with uvu's summary. Exit 0 when nothing failed, 2 when something has to be installed first, else 1.
# S3_PORT: where the gateway listens, 47080 where nothing is said.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
test/programs.sh s3
node_modules/.bin/tsc -p . || { echo 'the types are wrong: nothing was run' >&2; exit 1; }
directory=$(mktemp -d)
finish() {
  test/s3/down.sh "$directory"
  rm -rf "$directory"
}
trap finish EXIT
trap 'exit 130' INT TERM
port=${S3_PORT:-47080}
echo 'starting Ceph'
test/s3/up.sh "$directory" "$port" || { tail -n 20 "$directory"/log/*.log >&2; exit 1; }
status=0
for file in dist/test/s3/*.js; do
  S3_ENDPOINT=http://127.0.0.1:$port node "$file" || status=1
done
exit $status
