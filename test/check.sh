#!/usr/bin/env bash
# npm run check: types, then tidy, then every test. The same command locally and in CI.
set -euo pipefail
cd "$(dirname "$0")/.."
echo 'types and tidy'
test/run.sh tidy
echo
echo 'tests'
exec test/run.sh
