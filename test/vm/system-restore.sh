#!/usr/bin/env bash
# npm run test:system: does docs/system-restore.md bring a machine back? Two Debian systems in chroots: `old` has users,
# packages, a crontab and units, and is backed up by our program; `new` is a fresh one, in which the commands of the page
# are run, as they stand there. Then stock programs compare the two. Needs root on Debian, 3 GB and the Debian mirror;
# three minutes. Ends with `N passed, N failed`; exit 0 when nothing failed, 2 when something is missing, else 1.
# VM_CACHE: where the base system is kept (else ~/.cache/two-phase-backup-vm); VM_MIRROR: the Debian mirror.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
project=$PWD page=$PWD/docs/system-restore.md
mirror=${VM_MIRROR:-http://deb.debian.org/debian}
cache=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/two-phase-backup-vm}
[ "$(id -u)" = 0 ] || { echo 'system: needs root (chroot, debootstrap)' >&2; exit 2; }
test/programs.sh vm
node_modules/.bin/tsc -p . || { echo 'the types are wrong: nothing was run' >&2; exit 1; }
mkdir -p "$cache"
work=$(mktemp -d "$cache/system.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
passed=0 failed=0

# check WHAT COMMAND…: the command prints nothing.
check() {
  local what=$1 output
  shift
  output=$("$@" 2>&1) || [ -n "$output" ] || [ "$1" = grep ] || output="$1 failed"
  if [ -z "$output" ]; then
    passed=$((passed + 1))
    echo "ok    $what"
  else
    failed=$((failed + 1))
    printf 'FAIL  %s\n%s\n' "$what" "$(head -n 30 <<<"$output")"
  fi
}

# inside NAME: runs the script on standard input in that system. Its mounts and host name end with it.
inside() {
  unshare --mount --uts --pid --fork bash -ec '
    root=$0/$1
    hostname "$1"
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount --rbind /dev "$root/dev"
    mkdir -p "$root"/media/me/{T9,keys} "$root/opt/two-phase-backup" "$root/opt/node_modules"
    mount -o loop "$0/drive" "$root/media/me/T9"
    mount --bind "$0/keys" "$root/media/me/keys"
    mount --bind -o ro "$2" "$root/opt/two-phase-backup"
    mount --bind -o ro "$3" "$root/opt/node_modules"
    exec env -i HOME=/root LC_ALL=C PATH=/opt/node:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin \
      DEBIAN_FRONTEND=noninteractive chroot "$root" bash -s
  ' "$work" "$1" "$project" "$(realpath node_modules)"
}

# quietly COMMAND…: its output is shown only when it fails.
quietly() {
  "$@" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; echo "system: failed: $*" >&2; exit 1; }
}

# blocks KIND: the blocks of the page that begin with ```KIND, each after a line with its number.
blocks() {
  awk -v kind="$1" '
    /^```/ && within { within = open = 0; next }
    /^```/ { within = 1; number++; open = ($0 == "```" kind); if (open) print "# block " number; next }
    open { print }
  ' "$2"
}

base=$cache/system-base
if [ ! -e "$base.done" ]; then
  echo 'a fresh Debian' >&2
  rm -rf "$base"
  quietly debootstrap --variant=minbase \
    --include=systemd-sysv,ca-certificates,libstdc++6,rsync,age,zstd,jq,minisign bookworm "$base" "$mirror"
  printf '#!/bin/sh\nexit 101\n' >"$base/usr/sbin/policy-rc.d"
  chmod 755 "$base/usr/sbin/policy-rc.d"
  touch "$base.done"
fi
mkdir -p "$work/keys" "$work/drive-root/backup"
truncate -s 256M "$work/drive"
quietly mkfs.ext4 -q -d "$work/drive-root" "$work/drive"
for name in old new; do
  cp -a "$base" "$work/$name"
  cp /etc/resolv.conf "$work/$name/etc/resolv.conf"
  # Node, and the commands as a global installation would make them.
  mkdir -p "$work/$name/opt/node/links"
  cp "$(readlink -f "$(command -v node)")" "$work/$name/opt/node/node"
  for command in backup backup-collect backup-external backup-restore; do
    ln -s /opt/two-phase-backup/dist/commands/main.js "$work/$name/opt/node/links/$command"
    printf '#!/bin/sh\nexec /opt/node/node /opt/node/links/%s "$@"\n' "$command" >"$work/$name/opt/node/$command"
    chmod 755 "$work/$name/opt/node/$command"
  done
done

echo '== The old system, and its backup'
cat >"$work/build" <<'END'
set -euo pipefail
apt-get update
# Other numbers than the new system has, where dbus comes first.
apt-get install -y --no-install-recommends chrony
apt-get install -y --no-install-recommends dbus cron openssh-server sudo tree acl attr
groupadd -g 2000 team
useradd -m -u 1000 -s /bin/bash -G team,sudo me
useradd -m -u 1005 -s /bin/bash -G team anna
useradd -r -d /srv/service service
echo 'me:correct horse' | chpasswd
printf '0 3 * * * true\n' | crontab -u me -
printf '0 4 * * * service true\n' >/etc/cron.d/service
printf '[Service]\nExecStart=/usr/local/bin/hello\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/hello.service
printf '#!/bin/sh\necho hello\n' >/usr/local/bin/hello
chmod 755 /usr/local/bin/hello
systemctl enable hello.service && systemctl mask fstrim.timer && systemctl disable chrony.service
# A source with a key of its own, which is outside /etc, and a package that is in no source.
cp /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/extra.gpg
echo 'deb [signed-by=/usr/share/keyrings/extra.gpg] http://deb.debian.org/debian bookworm-updates main' \
  >/etc/apt/sources.list.d/extra.list
mkdir -p /tmp/own/DEBIAN
printf 'Package: our-own\nVersion: 1\nArchitecture: all\nMaintainer: me\nDescription: x\n' >/tmp/own/DEBIAN/control
dpkg-deb --build /tmp/own /tmp/own.deb && dpkg -i /tmp/own.deb
echo laptop >/etc/hostname
mkdir -p /home/me/work /srv/service /home/team
echo text >/home/me/work/file
ln /home/me/work/file /home/me/work/second
ln -s work/file /home/me/link
setfattr -n user.colour -v green /home/me/work/file
setfacl -m u:anna:r /home/me/work/file
chown -R me:me /home/me
install -d -m 2775 -o root -g team /home/team
install -m 640 -o anna -g team /etc/hostname /home/team/shared
install -m 600 -o service -g service /dev/null /srv/service/secret
head -c 3000000 /dev/urandom >/srv/service/data
apt-get clean
END
quietly inside old <"$work/build"
cat >"$work/backup" <<'END'
set -euo pipefail
backup init --system --source /home --source /srv --staging /var/backups/staging --target /media/me/T9/backup \
  --machine laptop --config /etc/backup/config.yaml --identity /media/me/keys/identity.txt --no-passphrase >/dev/null
echo 'notify: { desktop: false }' >>/etc/backup/config.yaml
backup-collect
backup-external
END
inside old <"$work/backup" 2>&1 | tee "$work/backup.log"
cat >"$work/again" <<'END'
set -euo pipefail
backup-collect --set system --json 2>/dev/null | jq -r 'select(.kind == "result" and .copiedFiles > 0)'
END
check 'a second collection copies nothing' inside old <"$work/again"

quietly inside new <<<'apt-get update && apt-get install -y --no-install-recommends dbus && apt-get clean'
echo '== The new system: the blocks of docs/system-restore.md'
{
  echo 'set -euo pipefail'
  blocks sh "$page" | sed \
    -e 's|^IDENTITY=.*|IDENTITY=/media/me/keys/identity.txt|' \
    -e 's|^TARGET=.*|TARGET=drive|' \
    -e 's|^DATA=.*|DATA=data|'
} >"$work/guide"
blocks 'sh instead' "$page" | sed 's|-o /restore$|-o /restore-again|' >"$work/instead"
[ "$(grep -c '^# block' "$work/guide")" -gt 8 ] || { echo 'the page has no blocks' >&2; exit 1; }
# The other way of step 3 goes behind the way of step 3.
number=$(sed -n 's/^# block //p' "$work/instead")
awk -v number="$number" -v instead="$work/instead" '
  /^# block / && $3 > number && !done {
    while ((getline line <instead) > 0) print line
    print "rsync -aHAXSnic --numeric-ids --delete /restore/ /restore-again/ >/root/other-way; rm -r /restore-again"
    done = 1
  }
  { print }
' "$work/guide" >"$work/commands"
sed -i '1s/.*/set -veuo pipefail/' "$work/commands"
inside new <"$work/commands" >"$work/new.log" 2>&1 || { tail -n 60 "$work/new.log"; exit 1; }
# What apt says of every single package is of no interest.
grep -Ev '^(Get:|Selecting |Preparing |Unpacking |Setting up |\(Reading |Processing |Created symlink |Creating )|already the newest|set to manually|invoke-rc.d' \
  "$work/new.log"

# printed N: what block N printed, without the commands themselves.
printed() {
  awk -v number="$1" '/^# block / { on = ($3 == number); next } on' "$work/new.log" |
    grep -vxFf "$work/commands" || true
}

# same PATH OPTION…: rsync sees no difference below PATH; PATH itself was there.
same() {
  local path=$1
  shift
  rsync -aHAXSnic --numeric-ids --delete "$@" "$work/old/$path/" "$work/new/$path/" | grep -v ' \./$' || true
}

# asked NAME COMMAND: its output in that system.
asked() {
  inside "$1" <<<"$2"
}

# alike COMMAND: both systems answer, and the same.
alike() {
  asked old "$1" >"$work/answer"
  [ -s "$work/answer" ] || echo 'no answer'
  asked new "$1" | diff "$work/answer" -
}

# absent OPTION PATTERN: says so when the log of the new system has no such line.
absent() {
  grep -q "$@" "$work/new.log" || echo "not in the log: $*"
}

echo '== Compared'
for number in $(awk '/^```/ { fences++ } /has to print nothing/ { print fences / 2 + 1 }' "$page"); do
  check "block $number printed nothing, as the page says it has to" printed "$number"
done
check 'recover.sh restores the same' grep -v ' \./$' "$work/new/root/other-way"
check '/home is the same, owners by number, ACLs and attributes' same home
check '/srv is the same' same srv
check '/usr/local is the same' same usr/local
check 'crontabs are the same' same var/spool/cron
check '/root is the same' same root --exclude=/before --exclude=/other-way --exclude=/.cache
sed -n "/^cat >.root.before.stays/,/^END/p" "$work/guide" | sed '1d;$d' >"$work/stays"
check '/etc is the same, but for what stays' same etc --omit-dir-times --omit-link-times --exclude-from="$work/stays"
check 'users have their numbers and passwords' alike 'getent passwd me anna service _chrony messagebus sshd; getent shadow me'
check 'groups have their numbers and members' alike 'getent group team sudo me messagebus'
check 'packages are the same, but for the one that is in no source' \
  alike "dpkg-query -W -f '\${binary:Package} \${Version} \${db:Status-Want}\n' | grep -v our-own"
check 'what was asked for is the same' alike 'apt-mark showmanual | grep -v our-own'
check 'that package was named' absent -x our-own
check 'units are enabled and masked alike' \
  alike 'systemctl --root=/ list-unit-files --no-legend --state=enabled,masked,disabled'
check 'hello.service is enabled' asked new 'systemctl is-enabled hello.service | grep -vx enabled || true'
check 'every file of the system has the owner and mode it had' alike \
  "find /usr /var/lib /etc -xdev ! -path '/var/lib/apt/*' ! -path '/var/lib/dpkg/*' ! -path '/usr/share/keyrings/extra.gpg' \
    \\( ! -user root -o ! -group root -o -perm /7000 \\) -printf '%M %U:%G %p\n' | sort"
check 'no file belongs to nobody' asked new 'find / -xdev \( -nouser -o -nogroup \) -print'
check 'the key of a source is back, readable to apt' asked new 'stat -c %a /usr/share/keyrings/extra.gpg | grep -vx 644 || true'
check 'nothing is left of the restore' asked new 'ls -d /restore* 2>/dev/null || true'
cat >"$work/next" <<'END'
set -euo pipefail
{ backup-collect && backup-external; } >/root/before/next 2>&1 || cat /root/before/next
backup-restore --list --source external --identity /media/me/keys/identity.txt --json | jq -r 'select(.stamp) | .set' | sort | uniq -c | grep -v ' 2 ' || true
END
check 'the new system goes on backing up, under the same name' inside new <"$work/next"

# Step 4, on an image.
truncate -s 64M "$work/disk" "$work/empty"
printf 'label: dos\n,16M,U\n,32M,L\n' | sfdisk -q "$work/disk"
mkdir -p "$work/records/disks"
sfdisk --dump "$work/disk" >"$work/records/disks/sda.sfdisk"
blocks 'sh disk' "$page" | sed "s|^DISK=.*|DISK=$work/empty|" >"$work/partition"
quietly env RECORDS="$work/records" bash -eu "$work/partition"
check 'a new disk gets the old table' diff \
  <(sfdisk --dump "$work/disk" | sed "s|$work/disk|DISK|") <(sfdisk --dump "$work/empty" | sed "s|$work/empty|DISK|")
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
