#!/usr/bin/env bash
# Runs the tests of pgx, at the version of go.mod, through a pooler in session and in transaction mode. Tests that cannot pass through a
# pooler are listed in clients/pgx-exceptions.txt, each with its reason; any other failure makes this one fail, and so does a test that
# is listed and passes. It takes about four minutes for each mode, since some of those wait for what cannot happen.
#
#   scripts/pgx-suite.sh [session transaction]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/throwaway.sh
. scripts/throwaway.sh

modes=("$@")
[ $# -gt 0 ] || modes=(session transaction)

start_postgres postgres -A trust
psql() { "$bin/psql" -X -q -h 127.0.0.1 -p "$port" -U postgres "$@"; }
psql -c 'create database pgx_test' postgres
psql -c 'create extension hstore; create extension ltree; create domain uint64 as numeric(20,0)' pgx_test

cp -r "$(go list -m -f '{{.Dir}}' github.com/jackc/pgx/v5)" "$work/pgx"
chmod -R u+w "$work/pgx"

failed=0
for mode in "${modes[@]}"; do
  listen=$(free_port)
  start_pooler "$listen" <<YAML
postgres: {dsn: "host=127.0.0.1 port=$port sslmode=disable"}
pooler: {listen: ["127.0.0.1:$listen"], pool_mode: $mode, default_pool_size: 100, auth: {type: trust}}
http: {pooler: ""}
YAML
  through="host=127.0.0.1 port=$listen user=postgres dbname=pgx_test"
  # Its status says only that some test has failed, which is for the report to judge.
  (cd "$work/pgx" && PGX_TEST_DATABASE=$through PGX_TEST_TCP_CONN_STRING=$through \
    go test -count=1 -p 1 -timeout 10m -json . ./pgconn/... ./pgxpool/... ./stdlib/... ./pgtype/... >"$work/$mode.json") || true
  stop_pooler
  python3 clients/pgx-report.py "$mode" "$work/$mode.json" clients/pgx-exceptions.txt || failed=1
done
exit "$failed"
