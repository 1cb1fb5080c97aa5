#!/bin/sh
# Rebuilds an export from this repository with stock programs: age, zstd, jq, tar, awk, sha256sum.
# RECOVER.txt, beside this file, says what it is for. It reads the repository and never writes to it.
#
# An export is a catalog and bundles. A bundle is age( zstd( tar ) ). The catalog says for every
# entry which byte ranges of which bundles' tar are its header and its content, perhaps in bundles of
# earlier stamps and of other sets. All those ranges in the catalog's order, each entry padded to
# 512 bytes, are one tar stream: this script finds the ranges, writes that stream, and tar does the rest.
set -eu
umask 077
unset CDPATH
user_locale=${LC_ALL:-${LC_CTYPE:-${LANG:-}}}
LC_ALL=C
export LC_ALL

usage() {
  cat <<'END'
Usage: sh recover.sh -i IDENTITY -o DIRECTORY [options] [PATH...]
       sh recover.sh -l

Rebuilds an export in DIRECTORY, which is made, or empty. With PATHs, only what they name: paths as
the export has them, without a leading slash.

  -i IDENTITY    the identity file (AGE-SECRET-KEY-1...), protected by a passphrase or not; where
                 there is IDENTITY.salt, leave it beside it
  -o DIRECTORY   where to
  -l             list what there is: machine, set, stamp
  -m MACHINE     which machine (default: the only one)
  -s SET         which set (default: the only one)
  -t STAMP       which export (default: the newest)
  -k KEY         the machine's public signing key, RW..., or a file that holds it
                 (default: the one in the identity file). "none": check no signatures, and take
                 also what still decrypts of damaged bundles
  -w SCRATCH     a directory with room for unpacked bundles (default: where DIRECTORY is)
  -r REPOSITORY  the repository (default: where this script is)
  -f             go on although DIRECTORY is not empty: tar replaces what has the same name

Exit status: 0 done; 3 done, but the export was incomplete; 1 no room, or a newer format; 2 wrong usage, or a program is missing;
12 the identity does not open it; 13 something is damaged or missing, the rest is there.
END
}

say() { printf 'recover.sh: %s\n' "$*" >&2; }
warn() { say "warning: $*"; }
fail() {
  failure=$1
  shift
  say "error: $*"
  exit "$failure"
}

# need PROGRAM PACKAGE: PACKAGE is Debian's name; Homebrew's is the same nearly always.
need() {
  command -v "$1" >/dev/null 2>&1 || fail 2 "$1 is not installed: apt-get install $2"
}

# ---- the command line ----

identity_file='' directory='' list='' machine='' set='' stamp='' key='' scratch='' force=''
repository=$(cd "$(dirname "$0")" && pwd)
while getopts i:o:lm:s:t:k:w:r:fh option; do
  case $option in
    i) identity_file=$OPTARG ;;
    o) directory=$OPTARG ;;
    l) list=yes ;;
    m) machine=$OPTARG ;;
    s) set=$OPTARG ;;
    t) stamp=$OPTARG ;;
    k) key=$OPTARG ;;
    w) scratch=$OPTARG ;;
    r) repository=$(cd "$OPTARG" && pwd) || fail 2 "there is no directory $OPTARG" ;;
    f) force=yes ;;
    h) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
shift $((OPTIND - 1))
case $identity_file in -*) identity_file=./$identity_file ;; esac
[ -d "$repository/machines" ] || fail 2 "$repository is no repository: it has no directory machines"

# ---- which export ----

# exports MACHINE SET: the stamps that have a manifest, oldest first.
exports() {
  for manifest in "$repository/machines/$1/$2"/????-??-??T??????Z/manifest.tar.zst.age; do
    [ -f "$manifest" ] || continue
    export_path=${manifest%/*}
    printf '%s\n' "${export_path##*/}"
  done
}

# sets MACHINE: those that have an export.
sets() {
  for set_path in "$repository/machines/$1"/*/; do
    set_path=${set_path%/}
    [ -z "$(exports "$1" "${set_path##*/}")" ] || printf '%s\n' "${set_path##*/}"
  done
}

machines() {
  for machine_path in "$repository"/machines/*/; do
    machine_path=${machine_path%/}
    [ -z "$(sets "${machine_path##*/}")" ] || printf '%s\n' "${machine_path##*/}"
  done
}

# only WHAT OPTION NAMES: the one name there is.
only() {
  case $3 in
    '') fail 2 "there is no $1 with a finished export" ;;
    *[!a-z0-9_-]*) fail 2 "there is more than one $1: choose with $2:" $3 ;;
    *) printf '%s\n' "$3" ;;
  esac
}

if [ -n "$list" ]; then
  machines | while read -r machine; do
    sets "$machine" | while read -r set; do
      exports "$machine" "$set" | while read -r stamp; do
        printf '%s %s %s\n' "$machine" "$set" "$stamp"
      done
    done
  done
  exit 0
fi

[ -n "$directory" ] || { usage >&2; fail 2 'give a directory to restore into: -o DIRECTORY'; }
[ -n "$identity_file" ] || { usage >&2; fail 2 'give the identity file: -i IDENTITY'; }
[ -r "$identity_file" ] || fail 12 "cannot read the identity file $identity_file"
[ -n "$machine" ] || machine=$(only machine -m "$(machines)")
[ -n "$set" ] || set=$(only set -s "$(sets "$machine")")
[ -n "$stamp" ] || stamp=$(exports "$machine" "$set" | tail -n 1)
machine_path=$repository/machines/$machine
export_path=$machine_path/$set/$stamp
[ -n "$stamp" ] && [ -f "$export_path/manifest.tar.zst.age" ] ||
  fail 2 "there is no export $machine $set $stamp: -l lists them"

# ---- programs ----

need age age
need zstd zstd
need jq jq
need awk mawk
need dd coreutils
if command -v sha256sum >/dev/null 2>&1; then
  sha256_check() { sha256sum -c "$1"; }
else
  need shasum 'coreutils (or perl: shasum)'
  sha256_check() { shasum -a 256 -c "$1"; }
fi
tar=''
for program in tar gtar bsdtar; do
  command -v "$program" >/dev/null 2>&1 || continue
  if "$program" --version 2>/dev/null | grep -q 'GNU tar'; then tar=$program tar_kind=gnu; break; fi
  if [ -z "$tar" ] && "$program" --version 2>/dev/null | grep -q bsdtar; then
    tar=$program tar_kind=bsd
  fi
done
[ -n "$tar" ] || fail 2 'GNU tar (or bsdtar) is not installed: apt-get install tar'

# ---- places ----

terminal='' work='' made=''
cleanup() {
  [ -z "$terminal" ] || stty "$terminal" || :
  [ -z "$work" ] || rm -rf "$work"
  # Only what is still empty goes.
  [ -z "$made" ] || rmdir "$made" 2>/dev/null || :
}
trap cleanup EXIT
trap 'exit 130' HUP INT TERM
if [ ! -d "$directory" ]; then
  mkdir -p -- "$directory" || fail 2 "cannot make $directory"
  made=$(cd -- "$directory" && pwd)
fi
directory=$(cd -- "$directory" && pwd)
[ -z "$(ls -A "$directory")" ] || [ -n "$force" ] || fail 2 "$directory is not empty: choose another"
scratch=$(cd -- "${scratch:-${directory%/*}/}" && pwd) || fail 2 "there is no scratch directory $scratch"
work=$(mktemp -d "$scratch/recover.XXXXXX") || fail 2 "cannot write in $scratch: give another place with -w"
: >"$work/damaged"

# ---- the identity, opened once, and never written anywhere ----

# Answers age's question, which it asks only on a terminal: `script` makes one. The path goes by the
# environment, the answer by standard input.
answer_age() {
  SHELL=/bin/sh IDENTITY_FILE=$identity_file \
    script -qec 'exec age -d "$IDENTITY_FILE" >&3' /dev/null 3>&1 >/dev/null
}

# The recipe of the .salt file: age's passphrase is argon2id of the user's, in hex.
open_salted() {
  salt=$(sed -n 's/^.*argon2 \([^ ]*\) -id -t 3 -m 18 -p 1 -l 32 -r.*$/\1/p' "$identity_file.salt" | head -n 1)
  [ -n "$salt" ] || fail 12 "$identity_file.salt holds no argon2 command; take it from another copy"
  command -v argon2 >/dev/null 2>&1 || fail 2 "argon2 is not installed: apt-get install argon2
  (or run elsewhere what $identity_file.salt says; its 64 hex digits are the passphrase of the file)"
  if [ -t 0 ]; then
    terminal=$(stty -g)
    printf 'Passphrase of the identity: ' >&2
    stty -echo
  fi
  IFS= read -r passphrase || [ -n "$passphrase" ] || fail 12 'no passphrase was given'
  if [ -n "$terminal" ]; then stty "$terminal"; terminal=''; echo >&2; fi
  stretched=$(printf %s "$passphrase" | argon2 "$salt" -id -t 3 -m 18 -p 1 -l 32 -r)
  passphrase=''
  if script --version 2>/dev/null | grep -q util-linux; then
    identity=$(printf '%s\n' "$stretched" | answer_age) || identity=''
  else
    say 'age asks for the passphrase of the identity file, which these 64 digits are. Paste them:'
    printf '%s\n' "$stretched" >&2
    identity=$(age -d "$identity_file") || identity=''
  fi
  [ -n "$identity" ] || fail 12 "the passphrase does not open $identity_file"
}

if head -n 1 "$identity_file" | grep -aq '^age-encryption\.org/\|^-----BEGIN AGE ENCRYPTED'; then
  if [ -f "$identity_file.salt" ]; then
    open_salted
  else
    say "age asks for the passphrase of the identity (if that fails: is $identity_file.salt missing?)"
    identity=$(age -d "$identity_file") || fail 12 "the passphrase does not open $identity_file"
  fi
else
  identity=$(cat "$identity_file")
fi
case $identity in
  *AGE-SECRET-KEY-1?*) ;;
  *) fail 12 "$identity_file holds no line AGE-SECRET-KEY-1..." ;;
esac

# ---- bundles ----

bundle_file() { printf '%s/%s.tar.zst.age\n' "$machine_path" "$1"; }

decrypt() { printf '%s\n' "$identity" | age -d -i - "$(bundle_file "$1")" 2>/dev/null; }

opens() { [ "$(decrypt "$1" | head -c 1 | wc -c)" -eq 1 ]; }

# A bundle's tar, as far as it can be had. Whether that is far enough, only its length says.
unpack() { decrypt "$1" | zstd -dcq 2>/dev/null || :; }

is_damaged() { grep -qx "$1" "$work/damaged"; }

damaged() {
  warn "damaged: $(bundle_file "$1") $2"
  printf '%s\n' "$1" >>"$work/damaged"
}

# check_sums: reads names of bundles, and says which are damaged. The sums are lines "<sha256> <name>".
check_sums() {
  sort -u >"$work/check"
  awk 'NR == FNR { wanted[$1]; next } $2 in wanted { print $1 "  " $2 ".tar.zst.age" }' \
    "$work/check" "$work/sums" >"$work/check.sha256"
  (cd "$machine_path" && sha256_check "$work/check.sha256" 2>/dev/null || :) |
    sed -n 's/\.tar\.zst\.age: OK$//p' >"$work/check.good"
  sort "$work/check.good" | comm -13 - "$work/check" >"$work/check.bad"
  while read -r bundle; do
    if [ -f "$(bundle_file "$bundle")" ]; then damaged "$bundle" 'does not have its checksum'
    else damaged "$bundle" 'is missing'; fi
  done <"$work/check.bad"
}

# ---- signatures ----

repository_id='*'
if [ -f "$repository/repository.json" ]; then
  format=$(jq -r .format "$repository/repository.json" 2>/dev/null) || format=1
  [ "$format" = 1 ] || fail 1 "this repository has format $format, and this script knows only 1"
  repository_id=$(jq -r .id "$repository/repository.json" 2>/dev/null) || repository_id='*'
fi

# One key a line; none: nothing is checked.
case $key in
  none) keys='' ;;
  '') keys=$(printf '%s\n' "$identity" | sed -n "s/^# signing key of $machine: \\(RW[^ ]*\\)\$/\\1/p") ;;
  RW*) keys=$key ;;
  *) keys=$(grep '^RW' "$key") || fail 2 "$key holds no key RW..." ;;
esac
if [ -n "$keys" ] && ! command -v minisign >/dev/null 2>&1; then
  [ -z "$key" ] || need minisign minisign
  warn 'minisign is not installed: apt-get install minisign'
  keys=''
fi
[ -n "$keys" ] || [ "$key" = none ] || warn "without a signing key of $machine (-k), nothing shows who wrote this"

# is_signed FILE NAME: NAME is what the signature has to say that FILE is.
is_signed() {
  [ -n "$keys" ] || return 0
  for one_key in $keys; do
    comment=$(minisign -VQ -P "$one_key" -m "$1" -x "$1.minisig" 2>/dev/null) || continue
    # shellcheck disable=SC2254 # a pattern when the id is not known
    case $comment in "file:$2	repository:"$repository_id) return 0 ;; esac
  done
  warn "damaged, or not from your machine: the signature of $1"
  printf '%s\n' "$1" >>"$work/damaged"
  return 1
}

# ---- what the export needs ----

say "restoring $machine $set $stamp"
name=$machine/$set/$stamp
: >"$work/sums"
if [ ! -f "$export_path/verification.sha256" ]; then
  warn "damaged: $export_path/verification.sha256 is missing"
  echo verification >>"$work/damaged"
elif is_signed "$export_path/verification.sha256" "$name/verification.sha256"; then
  awk -v here="$set/$stamp/" -v set="$set/" '{
    name = $2
    sub(/\.tar\.zst\.age$/, "", name)
    if (!sub(/^\.\.\/\.\.\//, "", name) && !sub(/^\.\.\//, set, name)) name = here name
    if (name ~ /^[a-z0-9][a-z0-9_-]*\/[0-9TZ-]+\/(data-[0-9]+|catalog-[0-9]+|manifest)$/) print $1, name
  }' "$export_path/verification.sha256" >"$work/sums"
  echo "$set/$stamp/manifest" | check_sums
fi

if ! opens "$set/$stamp/manifest"; then
  opened=''
  while [ -z "$opened" ] && read -r _ bundle; do
    ! opens "$bundle" || opened=yes
  done <"$work/sums"
  [ -n "$opened" ] || fail 12 "the identity does not open $export_path/manifest.tar.zst.age"
fi

index=''
mkdir "$work/manifest" "$work/catalog" "$work/catalog/shards" "$work/bundles"
unpack "$set/$stamp/manifest" | "$tar" -xf - -C "$work/manifest" 2>/dev/null || :
manifest=$work/manifest/manifest.json
if jq -e . "$manifest" >/dev/null 2>&1 && is_signed "$manifest" "$name/manifest.json"; then
  [ "$(jq -r '"\(.machine)/\(.set)/\(.stamp) \(.format)"' "$manifest")" = "$name 1" ] ||
    fail 13 'the manifest is that of another export, or of a newer format'
  index=$(jq -r '.index.digest | select(test("^[0-9a-f]{64}$"))' "$manifest")
  index_bundle=$(jq -r .index.bundle "$manifest")
  [ -s "$work/sums" ] || jq -r '.bundles[] | "\(.sha256) \(.name)"' "$manifest" >"$work/sums"
  if [ "$(jq .complete "$manifest")" = false ]; then
    incomplete=yes
    warn 'when this was collected, something could not be read, and is not in it:'
    jq -r '.missing[] | "  \(.path // .path64 | tojson): \(.why)"' "$manifest" >&2
  fi
else
  is_damaged "$set/$stamp/manifest" || damaged "$set/$stamp/manifest" 'cannot be used'
fi
[ -s "$work/sums" ] || fail 13 "nothing that can be trusted says what this export needs: try another stamp (-l),
  or, if you are sure that nobody but you had this repository in hand, -k none"

# ---- the catalog ----

# What a damaged bundle still gives is used when its digest is known to be right.
digest_is() { [ "$(b2sum "$1" 2>/dev/null | cut -c 1-64)" = "$2" ]; }

# Shards and indexes become files; in the order of the bundle, their names a list.
unpack_catalog() {
  ! grep -qx "$1" "$work/unpacked" || return 0
  printf '%s\n' "$1" >>"$work/unpacked"
  unpack "$1" >"$work/catalog.tar"
  { "$tar" -tf "$work/catalog.tar" 2>/dev/null || :; } | sed -n 's/^shards\///p' >"$work/members"
  "$tar" -xf "$work/catalog.tar" -C "$work/catalog" 2>/dev/null || :
  rm "$work/catalog.tar"
}

# lost_index: takes the shards of all catalog bundles, oldest first, and lists them.
lost_index() {
  warn "the list of this export's parts is lost. All parts that it may have had are taken, oldest first:
  what was removed since then may be back. An earlier stamp (-l) may be whole."
  sort -t / -k 2 "$work/catalogs" | while read -r bundle; do
    if is_damaged "$bundle" && [ -n "$keys" ]; then continue; fi
    unpack_catalog "$bundle"
    while read -r shard; do
      ! is_damaged "$bundle" || digest_is "$work/catalog/shards/$shard" "${shard%.jsonl}" || continue
      printf '%s\n' "$shard" >>"$work/shards"
    done <"$work/members"
  done
}

: >"$work/unpacked"
: >"$work/shards"
: >"$work/lost_shards"
awk '$2 ~ /\/catalog-[0-9]+$/ { print $2 }' "$work/sums" >"$work/catalogs"
check_sums <"$work/catalogs"
index_file=$work/catalog/index/$index.jsonl
[ -z "$index" ] || unpack_catalog "$index_bundle"
if [ -f "$index_file" ] && { ! is_damaged "$index_bundle" || digest_is "$index_file" "$index"; }; then
  jq -r 'select(.shard | test("^[0-9a-f]{64}$"))
    | "\(.shard) \(.bundle) \(.first // "base64:" + .first64 | tojson)"' "$index_file" >"$work/index"
  cut -d ' ' -f 2 "$work/index" | sort -u >"$work/index_bundles"
  while read -r bundle; do unpack_catalog "$bundle"; done <"$work/index_bundles"
  while read -r shard bundle first; do
    file=$work/catalog/shards/$shard.jsonl
    if [ -f "$file" ] && { ! is_damaged "$bundle" || digest_is "$file" "$shard"; }; then
      printf '%s.jsonl\n' "$shard" >>"$work/shards"
      from=''
    else
      [ -n "${from:-}" ] || printf '  from %s on\n' "$first" >>"$work/lost_shards"
      from=$first
    fi
  done <"$work/index"
  if [ -s "$work/lost_shards" ]; then
    warn 'with the catalog, runs of hundreds of paths in its order are lost:'
    cat "$work/lost_shards" >&2
    echo shards >>"$work/damaged"
  fi
else
  echo index >>"$work/damaged"
  lost_index
fi
[ -s "$work/shards" ] || fail 13 "nothing of the catalog can be had: try another stamp (-l), or take the bundles
  apart by hand as RECOVER.txt shows; -k none takes what still decrypts of damaged bundles"

# ---- which entries ----

# Paths are only compared and shown here; the bytes of names come from the headers in the bundles.
# (jq cannot hold what is not UTF-8: such a PATH is compared with U+FFFD in place of what it cannot.)
: >"$work/wanted.json"
for path in "$@"; do
  while :; do
    case $path in
      ./*) path=${path#./} ;;
      /*) path=${path#/} ;;
      */) path=${path%/} ;;
      *) break ;;
    esac
  done
  printf %s "$path" | jq -Rs . >>"$work/wanted.json"
done
: >"$work/targets.json"

catalog() { (cd "$work/catalog/shards" && xargs cat <"$work/shards"); }

# entries FILTER: one line of tab-separated fields for each header (H) and each piece (P).
cat >"$work/entries.jq" <<'END'
def name: .path // "base64:" + .path64;
def target: .target // "base64:" + .target64;
def text: .path // (.path64 | @base64d);
def inside: . as $path | any($wanted[]; . as $one | $path == $one or ($path | startswith($one + "/")));
def above: (. + "/") as $path | any($wanted[]; startswith($path));
($targets | map({ (.): true }) | add // {}) as $first_links
| foreach inputs as $line ({};
    if $line | has("bundles") then { names: [$line.bundles[].name] } else .entry = $line end;
    .names as $names | .entry | select(. != null)
    | select($wanted == [] or (text | inside) or $first_links[name]
        or (.type == "directory" and (text | above)))
    | if $links then select(.type == "link") | target
      else select(.header)
        | "H\t\($names[.header[0]])\t\(.header[1])\t\(.header[2])\t\(name | tojson)\t\(
            if .type == "link" then target | tojson else "" end)",
          (.pieces[]? | "P\t\($names[.[1]])\t\(.[2])\t\(.[3])")
      end)
END
select_entries() {
  catalog | jq -n "$@" --slurpfile wanted "$work/wanted.json" --slurpfile targets "$work/targets.json" \
    -f "$work/entries.jq"
}
if [ $# -gt 0 ]; then
  # A hard link needs the first path of its group, wherever that lies.
  select_entries --argjson links true >"$work/links.json"
  mv "$work/links.json" "$work/targets.json"
fi
select_entries -r --argjson links false >"$work/entries"
if [ $# -gt 0 ]; then
  cut -f 5 "$work/entries" | sed '/^$/d' | jq -rn --slurpfile wanted "$work/wanted.json" '
    reduce inputs as $name ($wanted;
      (if $name | startswith("base64:") then try ($name[7:] | @base64d) catch $name else $name end) as $path
      | map(select(. as $one | ($path == $one or ($path | startswith($one + "/"))) | not)))
    | .[]' >"$work/nowhere"
  [ ! -s "$work/nowhere" ] || fail 2 "not in this export: $(cat "$work/nowhere")"
fi

# ---- which bundles, and which of their ranges ----

cut -f 2 "$work/entries" | sort -u >"$work/needed"
say "checking $(wc -l <"$work/needed") bundles"
check_sums <"$work/needed"
while read -r bundle; do
  is_damaged "$bundle" || opens "$bundle" || damaged "$bundle" 'is not opened by this identity'
done <"$work/needed"

# How much of the tar of each damaged bundle is used. Unchecked, it is what comes before the first
# unsound 64 KiB. Otherwise nothing: anybody can write a bundle that this identity opens.
while read -r bundle; do
  is_damaged "$bundle" || continue
  if [ -n "$keys" ] || ! grep -q " $bundle\$" "$work/sums"; then
    echo "$bundle 0"
  else
    echo "$bundle $(unpack "$bundle" | wc -c)"
  fi
done <"$work/needed" >"$work/available"

# An entry whose data follows its header is in the bundle as it has to be in the stream, zeros
# included, and so may the next one be: ranges that touch become one.
awk -F '\t' -v available_file="$work/available" -v missing_file="$work/missing" '
  function flush() {
    if (length_ > 0) printf "take %s %.0f %.0f\n", bundle_, offset_, length_
    length_ = 0
  }
  function take(bundle, offset, size) {
    if (length_ > 0 && bundle == bundle_ && offset == offset_ + length_) { length_ += size; return }
    flush()
    bundle_ = bundle; offset_ = offset; length_ = size
  }
  function entry(  i, data, padding, in_place, lost) {
    if (n == 0) return
    data = 0; in_place = 1
    lost = target != "" && (target in gone)
    for (i = 1; i <= n; i++) {
      if (bundles[i] in available && offsets[i] + sizes[i] > available[bundles[i]]) lost = 1
      if (i == 1) continue
      data += sizes[i]
      if (bundles[i] != bundles[i - 1] || offsets[i] != offsets[i - 1] + sizes[i - 1]) in_place = 0
    }
    padding = (512 - data % 512) % 512
    if (in_place && bundles[1] in available && offsets[n] + sizes[n] + padding > available[bundles[1]]) lost = 1
    if (lost) { gone[name]; print name >missing_file; return }
    if (in_place) { take(bundles[1], offsets[1], sizes[1] + data + padding); return }
    for (i = 1; i <= n; i++) take(bundles[i], offsets[i], sizes[i])
    if (padding > 0) { flush(); print "zeros - 0 " padding, substr(nulls, 1, 2 * padding) }
  }
  BEGIN {
    while ((getline line <available_file) > 0) { split(line, part, " "); available[part[1]] = part[2] + 0 }
    printf "" >missing_file
    for (i = 1; i <= 512; i++) nulls = nulls "\\0"
  }
  $1 == "H" { entry(); n = 0; name = $5; target = $6; entries++ }
  { n++; bundles[n] = $2; offsets[n] = $3 + 0; sizes[n] = $4 + 0 }
  END { entry(); flush() }
' "$work/entries" >"$work/ranges"

# A bundle is unpacked before its first range and removed after its last.
awk -v totals_file="$work/totals" '
  NR == FNR {
    total += $4; count++
    if ($1 == "zeros") next
    last[$2] = FNR
    if ($3 + $4 > need[$2]) need[$2] = $3 + $4
    next
  }
  $1 == "take" && !($2 in open) {
    open[$2]
    printf "open %s 0 %.0f\n", $2, need[$2]
    used += need[$2]
    if (used > most) most = used
  }
  { print }
  $1 == "take" && last[$2] == FNR { print "close " $2 " 0 0"; used -= need[$2] }
  END { printf "%.0f %.0f %.0f\n", most, total, count >totals_file }
' "$work/ranges" "$work/ranges" >"$work/plan"
read -r scratch_bytes total_bytes range_count <"$work/totals"

# ---- is there room ----

mib() { printf '%s MiB\n' "$((($1 + 1048575) / 1048576))"; }
# free DIRECTORY: KiB. The name of a filesystem may have spaces; what precedes the percentage is free.
free() {
  df -Pk "$1" | awk 'NR == 2 { for (i = NF; i > 1; i--) if ($i ~ /^[0-9]+%$/) { print $(i - 1); exit } }'
}
filesystem() { df -Pk "$1" | tail -n 1; }
say "$(grep -c '^H' "$work/entries") entries in $range_count ranges: $(mib "$total_bytes") to restore in" \
  "$directory, and up to $(mib "$scratch_bytes") at a time of unpacked bundles in $scratch"
scratch_needs=$scratch_bytes
[ "$(filesystem "$scratch")" != "$(filesystem "$directory")" ] || scratch_needs=$((scratch_bytes + total_bytes))
scratch_free=$(free "$scratch")
directory_free=$(free "$directory")
[ "$((${scratch_free:-0} * 1024))" -ge "$scratch_bytes" ] ||
  fail 1 "$scratch has only $(mib $((${scratch_free:-0} * 1024))) left: give another place with -w"
[ "$((${scratch_free:-0} * 1024))" -ge "$scratch_needs" ] &&
  [ "$((${directory_free:-0} * 1024))" -ge "$total_bytes" ] ||
  warn 'that is more than there is room for, unless much of it is sparse or the filesystem compresses'

# ---- the stream, and tar ----

if dd if=/dev/zero of=/dev/null bs=1 count=1 iflag=skip_bytes,count_bytes 2>/dev/null; then
  take() { dd if="$1" bs=262144 iflag=skip_bytes,count_bytes skip="$2" count="$3" 2>/dev/null; }
else
  take() { tail -c "+$(($2 + 1))" "$1" | head -c "$3"; }
fi

stream() {
  while read -r what bundle offset length nulls; do
    file=$work/bundles/$bundle
    case $what in
      open)
        say "unpacking $bundle"
        mkdir -p "${file%/*}"
        unpack "$bundle" | head -c "$length" >"$file"
        if [ "$(wc -c <"$file")" -ne "$length" ]; then
          say "error: $(bundle_file "$bundle") could not be unpacked: no room, or a failing medium"
          return 1
        fi
        ;;
      take) take "$file" "$offset" "$length" || return 1 ;;
      # As printf writes them, for that starts no program; there may be thousands.
      zeros) printf "$nulls" ;;
      close) rm "$file" ;;
    esac
  done <"$work/plan"
  head -c 1024 /dev/zero
  : >"$work/stream_done"
}

extract() {
  case $tar_kind in
    gnu)
      set -- --xattrs --acls --delay-directory-restore --warning=no-unknown-keyword -xpf - -C "$directory"
      [ "$(id -u)" -ne 0 ] || set -- --numeric-owner --same-owner --xattrs-include='*' "$@"
      "$tar" "$@"
      ;;
    bsd)
      # It turns names into those of the locale, and has to have one that can hold them.
      case $user_locale in *[Uu][Tt][Ff]*) ;; *) user_locale=C.UTF-8 ;; esac
      set -- -xpf - -C "$directory"
      [ "$(id -u)" -ne 0 ] || set -- --numeric-owner "$@"
      LC_ALL=$user_locale "$tar" "$@"
      ;;
  esac
}

status=0
[ -z "${incomplete-}" ] || status=3
stream | extract || status=13
[ "$status" -eq 0 ] || warn "$tar could not restore everything: its messages are above"
[ -f "$work/stream_done" ] || { status=13; warn 'the restore broke off'; }

# ---- the outcome ----

if [ -s "$work/missing" ]; then
  missing_list=$(mktemp "$directory.missing.XXXXXX")
  cp "$work/missing" "$missing_list"
  warn "$(wc -l <"$work/missing" | tr -d ' ') entries are lost with damaged bundles (all are listed in $missing_list):"
  head -n 20 "$work/missing" | sed 's/^/  /' >&2
  [ -z "$keys" ] || say 'what still decrypts of damaged bundles could be had with -k none, in another directory:
  only if nobody but you had this repository in hand'
  status=13
fi
[ ! -s "$work/damaged" ] || status=13
if [ "$status" -eq 0 ]; then say "done: $directory"
elif [ "$status" -eq 3 ]; then say "done: $directory, of an export that was incomplete when it was made"; else
  say "done as far as possible: $directory. An earlier stamp, or another copy of the drive, may have the rest"
fi
exit "$status"
