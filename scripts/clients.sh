#!/usr/bin/env bash
# Runs a smoke script of each client library that Debian has through a pooler in transaction mode, with prepared statements and with
# fewer servers than there are connections (clients/README.md). It ends with status 0 only if all of them pass.
#
#   scripts/clients.sh [psycopg psycopg2 pgjdbc node-pg ruby-pg dbd-pg php-pgsql]
set -euo pipefail
cd "$(dirname "$0")/.."

all=(psycopg psycopg2 pgjdbc node-pg ruby-pg dbd-pg php-pgsql)
chosen=("${@:-${all[@]}}")
work=$(mktemp -d)

finish() {
  local rc=$?
  if [ -n "${pooler:-}" ]; then
    kill "$pooler" && wait "$pooler" || rc=1
  fi
  if [ -d "$work/pg" ]; then
    pg "$bin/pg_ctl" -D "$work/pg" -m immediate stop >/dev/null
  fi
  [ "$rc" = 0 ] || tail -n 20 "$work"/*.log >&2
  rm -rf "$work"
  exit "$rc"
}
trap finish EXIT

# pg runs a command as a user that Postgres accepts.
pg() {
  if [ "$(id -u)" = 0 ]; then
    (cd / && runuser -u postgres -- "$@")
  else
    "$@"
  fi
}

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
      scripts/deps.sh libpostgresql-jdbc-java default-jdk-headless
      java -cp /usr/share/java/postgresql.jar clients/Jdbc.java ;;
    node-pg) node_pg && node clients/node-pg.js ;;
    ruby-pg) scripts/deps.sh ruby-pg && ruby clients/ruby-pg.rb ;;
    dbd-pg) scripts/deps.sh libdbd-pg-perl && perl clients/dbd-pg.pl ;;
    php-pgsql) scripts/deps.sh php-cli php-pgsql && php clients/php-pgsql.php ;;
    *) echo "clients: no client $1 is known" >&2; return 2 ;;
  esac
}

# free_port prints a port that nobody listens on.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

scripts/deps.sh python3
bin=${PITR_PG_BIN:-$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)}
port=$(free_port)
chmod 755 "$work"
pg mkdir "$work/pg" 2>/dev/null || { mkdir "$work/pg"; chown postgres "$work/pg"; }
echo secret >"$work/password" && chmod 644 "$work/password"
pg "$bin/initdb" -D "$work/pg" -U app -A scram-sha-256 --pwfile="$work/password" -N >"$work/initdb.log"
pg "$bin/pg_ctl" -D "$work/pg" -w -l "$work/pg/server.log" \
  -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off" start >"$work/start.log"

export PGHOST=127.0.0.1 PGPORT PGUSER=app PGPASSWORD=secret PGDATABASE=postgres
PGPORT=$(free_port)
cat >"$work/pitr.yaml" <<YAML
postgres: {dsn: "host=127.0.0.1 port=$port user=app password=secret sslmode=disable"}
pooler:
  listen: ["127.0.0.1:$PGPORT"]
  pool_mode: transaction
  default_pool_size: 2
  users: {app: {password: secret}}
http: {pooler: ""}
YAML
bin/pitr pooler -c "$work/pitr.yaml" 2>"$work/pooler.log" &
pooler=$!
for _ in $(seq 100); do
  (: <"/dev/tcp/127.0.0.1/$PGPORT") 2>/dev/null && break
  sleep 0.1
done

failed=()
for client in "${chosen[@]}"; do
  run "$client" || failed+=("$client")
done
[ ${#failed[@]} -eq 0 ] || { echo "clients: FAILED: ${failed[*]}" >&2; exit 1; }
echo "clients: ${#chosen[@]} libraries pass"
