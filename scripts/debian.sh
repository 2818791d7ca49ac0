#!/usr/bin/env bash
# Sourced by the scripts that take programs from another Debian suite than the system's own. The packages, down to
# that suite's libc, are unpacked into a private folder, and each program is pointed at the loader and the libraries
# beside it. Nothing of the system is touched but for `patchelf`, and the programs run as ordinary programs: no
# container, no chroot. The mirror is the one in this machine's apt configuration; signatures are checked by its keyring.
#
# The caller sets: here (the folder of the scripts), checkout, name (of the folder in .tools, and in messages), suite,
# kind (deb-src for sources; empty: deb), packages, programs (what it wants to run: patterns, from the root of the unpacked tree) and libraries (a folder of
# libraries beside the system's, from that root, or empty).

# provide unpacks the packages unless that was done before; afterwards $dest/tree holds them.
provide() {
  local tools
  tools=$(tools_dir)
  dest=$tools/$name
  mkdir -p "$tools"
  exec 9>"$tools/.$name.lock"
  flock 9

  # The stamp names the place for which the programs were patched: a checkout that moved unpacks again.
  if [ "$(cat "$dest/complete" 2>/dev/null)" != "$dest" ]; then
    "$here/deps.sh" patchelf >&2
    echo "$name: unpacking ${packages[*]} from Debian $suite into $dest" >&2
    rm -rf "$dest" "$dest.tmp"
    mkdir -m 755 "$dest.tmp"
    download "$dest.tmp"
    unpack "$dest.tmp"
    relocate "$dest.tmp" "$dest"
    rm -rf "$dest.tmp/apt"
    mv "$dest.tmp" "$dest"
    check "$dest"
    echo "$dest" >"$dest/complete"
  fi
}

# elf_programs lists the programs below $1 that are no scripts.
elf_programs() {
  local pattern program
  for pattern in "${programs[@]}"; do
    for program in "$1"/tree/$pattern; do
      if patchelf --print-interpreter "$program" >/dev/null 2>&1; then echo "$program"; fi
    done
  done
}

# tools_dir is .tools of this checkout, unless root has it in a place (such as /root) that the postgres user,
# as whom root must run Postgres, cannot enter. Then it is a folder of this checkout's own under /var/tmp.
tools_dir() {
  local dir=$checkout
  if [ "$(id -u)" = 0 ]; then
    while [ "$dir" != / ]; do
      if [ $(($(stat -c 0%a "$dir") & 1)) = 0 ]; then
        dir=/var/tmp/pitr-tools-$(printf %s "$checkout" | sha256sum | cut -c1-12)
        [ -d "$dir" ] || mkdir -m 755 "$dir"
        [ -O "$dir" ] || { echo "$name: $dir belongs to somebody else" >&2; exit 1; }
        echo "$dir"
        return
      fi
      dir=$(dirname "$dir")
    done
  fi
  echo "$checkout/.tools"
}

# private_apt runs apt-get on a state of its own, so that another suite never enters the system's package
# lists. The machine's apt.conf (proxies, for instance) still applies.
private_apt() {
  local state=$1
  shift
  apt-get -qq -o Acquire::Retries=5 -o APT::Sandbox::User="$(id -un)" \
    -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
    -o Dir::State="$state/state" -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" \
    -o Acquire::Languages=none -o APT::Install-Recommends=false -o Debug::NoLocking=1 \
    -o APT::Update::Post-Invoke::= -o APT::Update::Post-Invoke-Success::= "$@" >&2
}

# download fetches the packages and everything they depend on, down to libc6: the status file that says what is
# installed is empty.
download() {
  local state=$1/apt uri trouble
  uri=$("$here/mirror.sh")
  mkdir -p "$state"/{state/lists/partial,cache/archives/partial}
  : >"$state/status"
  if ! trouble=$(verified_lists "$state" "$uri" /usr/share/keyrings/debian-archive-keyring.gpg 2>&1); then
    case $trouble in
      *NO_PUBKEY*) verified_lists "$state" "$uri" "$(newer_keyring "$state")" ;;
      *) echo "$name: $trouble" >&2; exit 1 ;;
    esac
  fi
  private_apt "$state" install -y --download-only "${packages[@]}"
}

# verified_lists fetches the suite's package lists and fails unless keyring $3 vouches for them.
verified_lists() {
  echo "${kind:-deb} [signed-by=$3] $2 $suite main" >"$1/sources.list"
  private_apt "$1" -o APT::Update::Error-Mode=any update
}

# newer_keyring fetches the newest keyring of the machine's own suite, which the installed one vouches for: an
# older point release does not know the keys of newer suites.
newer_keyring() {
  echo "$name: the installed Debian keyring does not know $suite: fetching a newer one" >&2
  mkdir -p "$1/keyring"
  (cd "$1/keyring" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download debian-archive-keyring >&2 && dpkg -x ./*.deb .)
  echo "$1/keyring/usr/share/keyrings/debian-archive-keyring.gpg"
}

# unpack extracts all packages but those that no program of ours needs: the JIT compiler and Perl, which only
# Debian's own wrapper scripts use, are most of the closure's size.
unpack() {
  local deb
  mkdir -m 755 "$1/tree"
  for deb in "$1"/apt/cache/archives/*.deb; do
    case ${deb##*/} in
      libllvm* | perl* | libperl* | libz3-* | python3* | debconf_* | dpkg_* | coreutils_* | bash_*) continue ;;
    esac
    dpkg -x "$deb" "$1/tree"
  done
  rm -rf "$1/tree/usr/share/doc" "$1/tree/usr/share/man" "$1/tree/usr/share/locale"
  find "$1/tree" \( -name 'llvmjit*.so' -o -path '*/lib/bitcode' \) -prune -exec rm -rf {} +
}

# relocate makes the programs in $1 run from $2. A DT_RPATH (not RUNPATH) of the program also serves the libraries
# that it loads, and those that these load, so the libraries stay as they are.
relocate() {
  local lib loader program
  lib=usr/lib/$(triplet)
  loader=$(cd "$1/tree" && find . -name 'ld-linux*.so.*' | head -1)
  [ -n "$loader" ] || { echo "$name: no loader among the packages of $suite" >&2; exit 1; }
  while read -r program; do
    patchelf --set-interpreter "$2/tree/${loader#./}" --force-rpath \
      --set-rpath "$2/tree/$lib:$2/tree/${lib#usr/}${libraries:+:$2/tree/$libraries}" "$program"
  done < <(elf_programs "$1")
}

# triplet is `dpkg-architecture -qDEB_HOST_MULTIARCH` without needing dpkg-dev.
triplet() {
  case $(dpkg --print-architecture) in
    amd64) echo x86_64-linux-gnu ;;
    arm64) echo aarch64-linux-gnu ;;
    *) echo "$name: unsupported architecture" >&2; exit 1 ;;
  esac
}

# check starts every program, and asks the loader whether each finds all its libraries inside the folder.
check() {
  local program stray
  while read -r program; do
    stray=$("$(patchelf --print-interpreter "$program")" --list "$program" |
      awk -v root="$1/" '/not found/ || ($2 == "=>" && index($3, root) != 1)')
    [ -z "$stray" ] || { echo "$name: $program: libraries outside $1: $stray" >&2; exit 1; }
    "$program" --version >/dev/null
  done < <(elf_programs "$1")
}
