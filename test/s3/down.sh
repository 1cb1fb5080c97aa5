#!/usr/bin/env bash
# Stops what up.sh started in DIR, by the process ids that it wrote there. Usage: down.sh DIR.
set -euo pipefail
for file in "$1"/run/*.pid; do
  [ -f "$file" ] || continue
  pid=$(cat "$file")
  # The id may be another process's by now: only one that was started with this directory's file.
  grep -qs -- "$1/ceph.conf" "/proc/$pid/cmdline" || continue
  kill "$pid" 2>/dev/null || continue
  for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
done
