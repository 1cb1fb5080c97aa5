#!/usr/bin/env bash
# npm run test:vm: a Debian system in qemu, the package installed in it, and drives that are plugged in and pulled out.
# Needs root on Debian (x86-64), 5 GB and the Debian mirror; with an emulated processor about ten minutes. Ends with
# `N passed, N failed`. Exit 0 when nothing failed, 2 when something has to be installed first, else 1.
# VM_CACHE: where the built system is kept; VM_ACCEL: kvm or tcg instead of what works.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
test/programs.sh vm
node_modules/.bin/tsc -p . || { echo 'the types are wrong: nothing was run' >&2; exit 1; }
system=$(test/vm/build-image.sh)
exec node dist/test/vm/plug-in.js "$system"
