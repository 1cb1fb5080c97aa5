#!/usr/bin/env bash
# Everything that the tests, the demo and the benchmark need beside Node: system programs and npm packages.
# Usage: test/programs.sh test|demo|bench|s3|upload|vm
# Installs what is missing where it may (as root on Debian, or with Homebrew); elsewhere prints the one line
# that does it, and exits 2. Runs under bash 3.2 too, which is what macOS has.
set -euo pipefail
cd "$(dirname "$0")/.."
purpose=${1:-test}
PATH=$PATH:/usr/sbin:/sbin

# program, Debian package, Homebrew formula (- where there is none), who needs it:
# all: everyone; test: the tests; root: only those tests that need root; bench: the benchmark; s3, upload and vm: the
# suites test:s3, bench:upload and test:vm (whatever s3 needs, upload needs too).
table='
rsync       rsync             rsync       all
age         age               age         all
age-keygen  age               age         all
minisign    minisign          minisign    all
zstd        zstd              zstd        all
tar         tar               gnu-tar     all
jq          jq                jq          all
argon2      argon2            argon2      all
sha256sum   coreutils         coreutils   all
script      bsdutils          -           all
getfattr    attr              -           all
setfattr    attr              -           all
getfacl     acl               -           all
setfacl     acl               -           all
bsdtar      libarchive-tools  libarchive  test
dash        dash              dash        test
curl        curl              curl        test
setcap      libcap2-bin       -           root
lsattr      e2fsprogs         -           root
mkfs.ext4   e2fsprogs         -           root
mkfs.xfs    xfsprogs          -           root
xfs_io      xfsprogs          -           root
mkfs.btrfs  btrfs-progs       -           root
btrfs       btrfs-progs       -           root
zfs         zfs-fuse          -           root
losetup     mount             -           root
runuser     util-linux        -           root
unshare     util-linux        -           root
lsblk       util-linux        -           root
blkid       util-linux        -           root
mount.exfat-fuse exfat-fuse   -           root
mkfs.exfat  exfatprogs        -           root
mkfs.vfat   dosfstools        -           root
mkfs.ntfs   ntfs-3g           -           root
par2        par2              par2        test
fallocate   util-linux        -           root
partx       util-linux        -           root
sfdisk      fdisk             -           root
fusermount3 fuse3             -           root
notify-send libnotify-bin     -           root
dbus-daemon dbus-daemon       -           root
logger      bsdutils          -           root
systemd-analyze systemd       -           test
systemd-escape systemd       -           test
/usr/lib/python3/dist-packages/dbus/__init__.py python3-dbus - root
/usr/lib/python3/dist-packages/gi/__init__.py python3-gi - root
/usr/lib/python3/dist-packages/fusepy.py python3-fusepy - root
sshd        openssh-server    -           root
ssh-keygen  openssh-client    -           root
ssh-agent   openssh-client    -           root
ssh-add     openssh-client    -           root
restic      restic            restic      bench
borg        borgbackup        borgbackup  bench
python3     python3           python3     root
python3     python3           python3     bench
/usr/bin/time time            -           bench
ceph-mon    ceph-mon          -           s3
ceph-osd    ceph-osd          -           s3
ceph-mgr    ceph-mgr          -           s3
radosgw     radosgw           -           s3
curl        curl              curl        s3
rclone      rclone            rclone      upload
restic      restic            restic      upload
/usr/bin/time time            -           upload
qemu-system-x86_64 qemu-system-x86 -      vm
debootstrap debootstrap       -           vm
mkfs.ext4   e2fsprogs         -           vm
mkfs.exfat  exfatprogs        -           vm
sfdisk      fdisk             -           vm
setpriv     util-linux        -           vm
'

stop() {
  printf '%s\n' "$@" >&2
  exit 2
}

# needed WHO: whether this purpose, on this machine, needs what WHO needs.
needed() {
  case $1 in
    all) true ;;
    test) [ "$purpose" = test ] ;;
    root) [ "$purpose" = test ] && [ "$(uname)" = Linux ] && [ "$(id -u)" = 0 ] ;;
    s3) [ "$purpose" = s3 ] || [ "$purpose" = upload ] ;;
    *) [ "$purpose" = "$1" ] ;;
  esac
}

# missing debian|homebrew|program: one word a line for everything that is needed and not there.
missing() {
  printf '%s' "$table" | while read -r program debian homebrew who; do
    [ -n "$program" ] && needed "$who" || continue
    [ "$(uname)" = Linux ] || [ "$homebrew" != - ] || continue
    case $program in
      /*) [ -e "$program" ] && continue ;;
      *) command -v "$program" >/dev/null && continue ;;
    esac
    case $1 in
      debian) echo "$debian" ;;
      homebrew) echo "$homebrew" ;;
      program) echo "${program##*/}" ;;
    esac
  done | sort -u | tr '\n' ' ' | sed 's/ $//'
}

# install WHAT APT-PACKAGES BREW-FORMULAE: installs them, or says the one line and stops.
install() {
  if command -v apt-get >/dev/null; then
    local line="apt-get update && apt-get install -y --no-install-recommends $2"
    [ "$(id -u)" = 0 ] || stop "missing: $1" 'install it with this line, then run this again:' \
      "  sudo sh -c '$line'"
    echo "installing: $2"
    local log
    log=$(mktemp)
    DEBIAN_FRONTEND=noninteractive sh -c "$line" >"$log" 2>&1 || {
      tail -n 20 "$log" >&2
      stop "could not install: $2" 'this line has to succeed first:' "  $line"
    }
    rm -f "$log"
  elif command -v brew >/dev/null; then
    [ "$(id -u)" != 0 ] || stop "missing: $1" 'Homebrew refuses root; as your own user, run:' \
      "  brew install $3"
    echo "installing: $3"
    # shellcheck disable=SC2086 # a list of words
    brew install --quiet $3 || stop "could not install: $3" 'this line has to succeed first:' \
      "  brew install $3"
  else
    stop "missing: $1" "install with this system's package manager (Debian's names):" "  $2"
  fi
}

node -e '
  const [major, minor] = process.versions.node.split(".").map(Number)
  process.exit(major > 20 || (major === 20 && minor >= 15) ? 0 : 1)
' || stop "Node $(node --version) is too old" 'install Node 20.15 or newer: https://nodejs.org'

if [ -n "$(missing program)" ]; then
  install "$(missing program)" "$(missing debian)" "$(missing homebrew)"
  [ -z "$(missing program)" ] || stop "still missing: $(missing program)"
fi

# The hidden lock file is the last thing that npm writes into node_modules.
installed=node_modules/.package-lock.json
if [ ! -e $installed ] || [ package-lock.json -nt $installed ]; then
  echo 'npm ci: zstd-napi compiles for 30 to 120 seconds where its prebuilt file cannot be fetched'
  log=$(mktemp)
  if ! npm ci >"$log" 2>&1; then
    if ! command -v g++ >/dev/null || ! command -v make >/dev/null; then
      install 'a C++ compiler, which zstd-napi needs here' 'g++ make python3' 'python3'
      npm ci >"$log" 2>&1 || failed=yes
    else
      failed=yes
    fi
    if [ "${failed:-no}" = yes ]; then
      cat "$log" >&2
      rm -f $installed "$log"
      stop 'npm ci failed; what it said is above'
    fi
  fi
  rm -f "$log"
  touch $installed
fi
