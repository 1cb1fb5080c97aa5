#!/usr/bin/env bash
# npm test [-- WORD…]: installs what is needed, builds, and runs every test file (or those whose path has a WORD).
# Ends with the line `N passed, N failed` (and `, N skipped`). Exit 0 when nothing failed, 2 when something has
# to be installed by hand first, else 1. With CI=true a skip is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
test/programs.sh test
if ! node_modules/.bin/tsc -p .; then
  echo 'the types are wrong: no test was run'
  echo '0 passed, 1 failed'
  exit 1
fi
exec node dist/test/run.js "$@"
