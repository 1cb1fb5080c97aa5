#!/usr/bin/env bash
# Starts a Ceph of one node with an S3 gateway on 127.0.0.1, with all data in memory: a real S3 service for tests.
# Needs Debian's packages ceph-mon ceph-osd ceph-mgr radosgw. Usage: up.sh DIR [PORT]. Ready when it prints the
# endpoint and the keys, after about 20 seconds. Stop it with down.sh DIR.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mkdir -p "$1" && cd "$1" && pwd)
port=${2:-47080}
mon=$((port - 79))
rm -rf "$dir"/{mon,osd,mgr,run,log,keyring,monmap,ceph.conf}
mkdir -p "$dir"/{mon,osd,mgr,run,log}
sed -e "s#@DIR@#$dir#g; s#@PORT@#$port#g; s#@MON@#$mon#g" "$here/ceph.conf.in" >"$dir/ceph.conf"
ceph=(--conf "$dir/ceph.conf")
key="$dir/keyring"
grant() { ceph-authtool "$@" >/dev/null; }
all=(--cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *')
grant --create-keyring "$key" --gen-key -n mon. --cap mon 'allow *'
grant "$key" --gen-key -n client.admin "${all[@]}"
grant "$key" --gen-key -n mgr.x --cap mon 'allow profile mgr' --cap osd 'allow *'
grant "$key" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap mgr 'allow profile osd' --cap osd 'allow *'
grant "$key" --gen-key -n client.rgw --cap mon 'allow rw' --cap osd 'allow rwx' --cap mgr 'allow rw'
monmaptool --create --add a "127.0.0.1:$mon" --fsid 11111111-2222-3333-4444-555555555555 \
  "$dir/monmap" --clobber >/dev/null
ceph-mon "${ceph[@]}" -i a --mkfs --monmap "$dir/monmap" --keyring "$key"
ceph-mon "${ceph[@]}" -i a
sleep 2
ceph-mgr "${ceph[@]}" -i x
timeout 60 ceph "${ceph[@]}" osd new 22222222-2222-3333-4444-555555555555 0 >/dev/null
ceph-osd "${ceph[@]}" -i 0 --mkfs --osd-uuid 22222222-2222-3333-4444-555555555555 2>/dev/null
timeout 60 ceph "${ceph[@]}" osd crush add osd.0 1.0 host=localhost root=default 2>/dev/null
ceph-osd "${ceph[@]}" -i 0 >/dev/null
sleep 3
timeout 60 radosgw "${ceph[@]}" -n client.rgw
for _ in $(seq 60); do
  curl -s -o /dev/null "http://127.0.0.1:$port" && break
  sleep 1
done
timeout 60 radosgw-admin "${ceph[@]}" user create --uid=tester --display-name=tester \
  --access-key=testkey --secret-key=testsecret >/dev/null 2>&1
echo "endpoint=http://127.0.0.1:$port access_key=testkey secret_key=testsecret"
