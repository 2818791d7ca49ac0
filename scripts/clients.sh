#!/usr/bin/env bash
# Runs a smoke script of each client library that Debian has through a pooler in transaction mode, with prepared statements and with
# fewer servers than there are connections (clients/README.md). It ends with status 0 only if all of them pass.
#
#   scripts/clients.sh [psycopg psycopg2 pgjdbc node-pg ruby-pg dbd-pg php-pgsql]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/throwaway.sh
. scripts/throwaway.sh

all=(psycopg psycopg2 pgjdbc node-pg ruby-pg dbd-pg php-pgsql)
chosen=("$@")
[ $# -gt 0 ] || chosen=("${all[@]}")

# node_pg provides node-pg: installed if Debian's own Node.js is there, else unpacked beside another one.
node_pg() {
  command -v node >/dev/null || scripts/deps.sh nodejs
  node -e 'require("pg")' 2>/dev/null && return
  export NODE_PATH=$PWD/.tools/node-pg/tree/usr/share/nodejs
  [ -d "$NODE_PATH/pg" ] && return
  mkdir -p .tools/node-pg
  (cd .tools/node-pg &&
    apt-get -qq download node-pg node-xtend node-split2 node-readable-stream node-inherits node-safe-buffer 2>/dev/null &&
    for package in ./*.deb; do dpkg -x "$package" tree; done && rm -f ./*.deb)
}

run() {
  case $1 in
    psycopg) scripts/deps.sh python3-psycopg && /usr/bin/python3 clients/psycopg3-smoke.py ;;
    psycopg2) scripts/deps.sh python3-psycopg2 && /usr/bin/python3 clients/psycopg2-smoke.py ;;
    pgjdbc)
      scripts/deps.sh libpostgresql-jdbc-java default-jdk-headless &&
        java -cp /usr/share/java/postgresql.jar clients/Jdbc.java ;;
    node-pg) node_pg && node clients/node-pg.js ;;
    ruby-pg) scripts/deps.sh ruby-pg && ruby clients/ruby-pg.rb ;;
    dbd-pg) scripts/deps.sh libdbd-pg-perl && perl clients/dbd-pg.pl ;;
    php-pgsql) scripts/deps.sh php-cli php-pgsql && php clients/php-pgsql.php ;;
    *) echo "clients: no client $1 is known" >&2; return 2 ;;
  esac
}

echo secret >"$work/password"
chmod 644 "$work/password"
start_postgres app -A scram-sha-256 --pwfile="$work/password"

export PGHOST=127.0.0.1 PGPORT PGUSER=app PGPASSWORD=secret PGDATABASE=postgres
PGPORT=$(free_port)
start_pooler "$PGPORT" <<YAML
postgres: {dsn: "host=127.0.0.1 port=$port user=app password=secret sslmode=disable"}
pooler:
  listen: ["127.0.0.1:$PGPORT"]
  pool_mode: transaction
  default_pool_size: 2
  users: {app: {password: secret}}
http: {pooler: ""}
YAML

failed=()
for client in "${chosen[@]}"; do
  run "$client" || failed+=("$client")
done
[ ${#failed[@]} -eq 0 ] || { echo "clients: FAILED: ${failed[*]}" >&2; exit 1; }
echo "clients: ${#chosen[@]} libraries pass"
