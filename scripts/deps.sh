#!/usr/bin/env bash
# Installs those of the named Debian packages that this machine lacks, and nothing when all are there.
#
#   scripts/deps.sh gcc libc6-dev postgresql
#   scripts/deps.sh --update                     only refresh the package lists
#
# A package counts as present when what we need of it is present, so a machine that has Postgres or a
# compiler from elsewhere is left alone. Works as root, or through sudo.
set -euo pipefail

# have tells whether the machine already provides what we want the package for.
have() {
  case $1 in
    postgresql) have_postgres ;;
    libc6-dev) [ -e /usr/include/stdio.h ] ;;
    ca-certificates) [ -e /etc/ssl/certs/ca-certificates.crt ] ;;
    docker.io) command -v docker >/dev/null ;;
    *) command -v "$1" >/dev/null || dpkg -s "$1" >/dev/null 2>&1 ;;
  esac
}

# have_postgres wants a server, and under root also the user that it will run as.
have_postgres() {
  if [ "$(id -u)" = 0 ] && ! id postgres >/dev/null 2>&1; then
    return 1
  fi
  [ -n "${PITR_PG_BIN:-}" ] && [ -x "$PITR_PG_BIN/initdb" ] && return 0
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && return 0
  command -v pg_config >/dev/null && [ -x "$(pg_config --bindir)/initdb" ]
}

# apt runs apt-get without questions, and without its hundred lines unless it fails.
apt() {
  local as=() log rc=0
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "deps: not root and no sudo: install $* yourself" >&2; exit 1; }
    as=(sudo)
  fi
  log=$(mktemp)
  "${as[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 || rc=$?
  [ "$rc" = 0 ] || cat "$log" >&2
  rm -f "$log"
  return "$rc"
}

# install_postgres installs Debian's Postgres without letting it create and start a cluster that nobody
# asked for. Where postgresql-common was installed before, its owner has decided about that: hands off.
install_postgres() {
  local conf=/etc/postgresql-common/createcluster.conf as=()
  if dpkg -s postgresql-common >/dev/null 2>&1; then
    apt install -y --no-install-recommends postgresql
    return
  fi
  [ "$(id -u)" = 0 ] || as=(sudo)
  apt install -y --no-install-recommends postgresql-common
  "${as[@]}" cp -p "$conf" "$conf.pitr"
  echo 'create_main_cluster = false' | "${as[@]}" tee "$conf" >/dev/null
  # Afterwards the file is Debian's own again, whether the installation worked or not.
  local rc=0
  apt install -y --no-install-recommends postgresql || rc=$?
  "${as[@]}" mv "$conf.pitr" "$conf"
  return "$rc"
}

if [ "${1:-}" = --update ]; then
  apt update
  exit
fi

missing=()
for package in "$@"; do
  have "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null || { echo "deps: this is not Debian: install ${missing[*]} yourself" >&2; exit 1; }
echo "deps: installing ${missing[*]}" >&2
apt update

plain=()
for package in "${missing[@]}"; do
  if [ "$package" = postgresql ]; then
    install_postgres
  else
    plain+=("$package")
  fi
done
[ ${#plain[@]} -eq 0 ] || apt install -y --no-install-recommends "${plain[@]}"
