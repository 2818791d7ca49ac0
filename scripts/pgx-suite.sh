#!/usr/bin/env bash
# Runs the tests of pgx, at the version of go.mod, through a pooler in session and in transaction mode. Tests that cannot pass through a
# pooler are listed in clients/pgx-exceptions.txt, each with its reason; any other failure makes this one fail, and so does a test that
# is listed and passes.
#
#   scripts/pgx-suite.sh [session transaction]
set -euo pipefail
cd "$(dirname "$0")/.."

modes=("${@:-session transaction}")
[ $# -gt 0 ] || modes=(session transaction)
root=$PWD
work=$(mktemp -d)

finish() {
  local rc=$?
  [ -z "${pooler:-}" ] || kill "$pooler" 2>/dev/null || rc=1
  if [ -d "$work/pg" ]; then
    pg "$bin/pg_ctl" -D "$work/pg" -m immediate stop >/dev/null
  fi
  chmod -R u+w "$work"
  rm -rf "$work"
  exit "$rc"
}
trap finish EXIT

pg() {
  if [ "$(id -u)" = 0 ]; then
    (cd / && runuser -u postgres -- "$@")
  else
    "$@"
  fi
}

scripts/deps.sh python3
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

bin=${PITR_PG_BIN:-$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)}
port=$(free_port)
chmod 755 "$work"
pg mkdir "$work/pg" 2>/dev/null || { mkdir "$work/pg"; chown postgres "$work/pg"; }
pg "$bin/initdb" -D "$work/pg" -U postgres -A trust -N >/dev/null
pg "$bin/pg_ctl" -D "$work/pg" -w -l "$work/pg/server.log" \
  -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c max_connections=200" start >/dev/null
"$bin/psql" -X -q -h 127.0.0.1 -p "$port" -U postgres -c "create database pgx_test" postgres
"$bin/psql" -X -q -h 127.0.0.1 -p "$port" -U postgres -c "create extension hstore; create extension ltree; create domain uint64 as numeric(20,0)" pgx_test

source=$(go list -m -f '{{.Dir}}' github.com/jackc/pgx/v5)
cp -r "$source" "$work/pgx"
chmod -R u+w "$work/pgx"

failed=0
for mode in "${modes[@]}"; do
  listen=$(free_port)
  cat >"$work/pitr.yaml" <<YAML
postgres: {dsn: "host=127.0.0.1 port=$port sslmode=disable"}
pooler: {listen: ["127.0.0.1:$listen"], pool_mode: $mode, default_pool_size: 100, auth: {type: trust}}
http: {pooler: ""}
YAML
  bin/pitr pooler -c "$work/pitr.yaml" 2>"$work/pooler.log" &
  pooler=$!
  until (: <"/dev/tcp/127.0.0.1/$listen") 2>/dev/null; do sleep 0.1; done
  (cd "$work/pgx" && PGX_TEST_DATABASE="host=127.0.0.1 port=$listen user=postgres dbname=pgx_test" PGX_TEST_TCP_CONN_STRING="host=127.0.0.1 port=$listen user=postgres dbname=pgx_test" \
    go test -count=1 -p 1 -timeout 10m -json . ./pgconn/... ./pgxpool/... ./stdlib/... ./pgtype/... >"$work/$mode.json") || true
  kill "$pooler"
  wait "$pooler"
  pooler=
  python3 "$root/clients/pgx-report.py" "$mode" "$work/$mode.json" clients/pgx-exceptions.txt || failed=1
done
exit "$failed"
