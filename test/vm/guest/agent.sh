#!/bin/bash
# In the guest: runs what the test sends through the virtio port `agent`, one request after the other.
# A request is one line, `TOKEN SECONDS SCRIPT`, the script in base64. The answer is what the script prints, errors
# included, and then a line `<<<TOKEN exit STATUS>>>`; 124 means that the time was up.
set -eu
exec 3<>/dev/virtio-ports/agent
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
cd /root
while read -r token seconds script <&3; do
  base64 -d <<<"$script" >/run/request.sh
  status=0
  timeout --kill-after=5 "$seconds" bash -eu /run/request.sh </dev/null >&3 2>&3 3>&- || status=$?
  printf '\n<<<%s exit %s>>>\n' "$token" "$status" >&3
done
