# shellcheck shell=bash
# Sourced by scripts that try something against a Postgres and a pooler of their own: start_postgres, start_pooler, and an end that
# leaves nothing behind. It sets $work, a directory that is removed, and expects `set -euo pipefail` and the checkout as directory.

work=$(mktemp -d)
chmod 755 "$work"
pooler=
scripts/deps.sh python3
bin=${PITR_PG_BIN:-$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)}

finish() {
  local rc=$?
  stop_pooler || rc=1
  if [ -d "$work/pg" ]; then
    as_postgres "$bin/pg_ctl" -D "$work/pg" -m immediate stop >/dev/null || rc=1
  fi
  if [ "$rc" != 0 ] && [ -f "$work/pooler.log" ]; then
    tail -n 20 "$work/pooler.log" >&2
  fi
  chmod -R u+w "$work"
  rm -rf "$work"
  exit "$rc"
}
trap finish EXIT

# as_postgres runs a command as a user that Postgres accepts.
as_postgres() {
  if [ "$(id -u)" = 0 ]; then
    (cd / && runuser -u postgres -- "$@")
  else
    "$@"
  fi
}

# free_port prints a port that nobody listens on.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# start_postgres USER INITDB-OPTIONS… sets $port. Its log is in $work/pg/server.log.
start_postgres() {
  local user=$1
  shift
  port=$(free_port)
  mkdir "$work/pg"
  [ "$(id -u)" != 0 ] || chown postgres "$work/pg"
  as_postgres "$bin/initdb" -D "$work/pg" -U "$user" -N "$@" >/dev/null
  as_postgres "$bin/pg_ctl" -D "$work/pg" -w -l "$work/pg/server.log" \
    -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c max_connections=200" start >/dev/null
}

# start_pooler PORT takes its configuration from stdin and returns once it listens on that port.
start_pooler() {
  cat >"$work/pitr.yaml"
  bin/pitr pooler -c "$work/pitr.yaml" 2>"$work/pooler.log" &
  pooler=$!
  for _ in $(seq 100); do
    (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
    sleep 0.1
  done
  echo 'the pooler does not listen' >&2
  return 1
}

stop_pooler() {
  [ -n "$pooler" ] || return 0
  kill "$pooler" && wait "$pooler"
  pooler=
}
