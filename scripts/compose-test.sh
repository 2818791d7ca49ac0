#!/usr/bin/env bash
# Shows that docker-compose.yml keeps its promise: it starts everything, lets the app write, destroys the postgres container
# together with its volume, and counts which of the rows that the app knows to be committed come back from the bucket.
# It ends with status 0 only if every row that was in the archive is back, the app writes again, and is archived again.
set -euo pipefail
cd "$(dirname "$0")/.."

project=pitr-compose-test
export DOCKER_BUILDKIT=${DOCKER_BUILDKIT:-1}
# The builder of Docker 23 and later is a plugin that Debian's engine may lack; the Dockerfile needs only the old one.
docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0
export COMPOSE_DOCKER_CLI_BUILD=$DOCKER_BUILDKIT
PITR_VERSION=$(git describe --tags --always --dirty 2>/dev/null || echo compose)
export PITR_VERSION

if docker compose version >/dev/null 2>&1; then
  compose() { docker compose -p "$project" "$@"; }
else
  compose() { docker-compose -p "$project" "$@"; }
fi

work=$(mktemp -d)
step() { printf '%4ds  %s\n' "$SECONDS" "$*"; }

finish() {
  local rc=$?
  if [ "$rc" != 0 ]; then
    echo 'compose-test: FAILED; the last words of the services:' >&2
    compose logs --tail=40 --no-color >&2 || true
  fi
  compose down -v --remove-orphans >/dev/null 2>&1 || echo "compose-test: containers of project $project may be left" >&2
  rm -rf "$work"
  exit "$rc"
}
trap finish EXIT

# within SECONDS WHAT COMMAND… repeats the command until it succeeds.
within() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || { echo "compose-test: gave up waiting until $what" >&2; return 1; }
    sleep 0.5
  done
}

container() { compose ps -q "$1"; }
sql() { docker exec "$(container postgres)" psql -XAtq -h /run/postgresql -U postgres -c "$1"; }
is_true() { [ "$(sql "$1")" = t ]; }

# acknowledged writes to a file the keys whose commit the app was told of, sorted. The app prints them on stdout.
acknowledged() {
  docker logs "$(container app)" 2>/dev/null | grep -E '^[0-9a-f-]{36}$' | sort >"$1" || true
}
acknowledged_more_than() { acknowledged "$work/now"; [ "$(count "$work/now")" -gt "$1" ]; }
count() { wc -l <"$1"; }
has_backup() { compose exec -T archiver pitr backups --json | grep -q '{'; }

# archived_up_to LSN: what the archiver reports as flushed is what the store durably holds.
archived_up_to() { is_true "select coalesce(bool_or(flush_lsn >= '$1'), false) from pg_stat_replication"; }

for image in debian:bookworm-slim golang:1.26-bookworm; do
  docker image inspect "$image" >/dev/null 2>&1 || timeout 300 docker pull -q "$image" >/dev/null 2>&1 || scripts/base-images.sh
done
step 'base images are there'

compose build >"$work/build.log" 2>&1 || { tail -40 "$work/build.log" >&2; exit 1; }
step 'images are built'

compose up -d >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; exit 1; }
within 180 'the app writes through the pooler' acknowledged_more_than 0
step 'the app writes through the pooler'

within 180 'the archiver has taken a first base backup by itself' has_backup
step 'a base backup is in the bucket'

acknowledged "$work/backup"
within 60 'fifty more rows are written' acknowledged_more_than $(($(count "$work/backup") + 50))
acknowledged "$work/safe"
lsn=$(sql 'select pg_current_wal_flush_lsn()')
within 60 "the archive has reached $lsn" archived_up_to "$lsn"
step "$(count "$work/safe") rows are acknowledged and in the archive, up to $lsn; the app goes on writing"

docker rm -f -v "$(container postgres)" >/dev/null
acknowledged "$work/before"
docker volume rm "${project}_data" >/dev/null
step "the postgres container and its volume are destroyed; $(count "$work/before") rows were acknowledged by then"

lost_at=$SECONDS
compose up -d postgres >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; exit 1; }
within 300 'the new postgres container is open' is_true 'select not pg_is_in_recovery()'
step "a new container with an empty volume is open after $((SECONDS - lost_at)) s"

sql 'select key from heartbeat' | sort >"$work/back"
missing=$(comm -23 "$work/safe" "$work/back" | wc -l)
in_flight=$(comm -23 "$work/before" "$work/back" | wc -l)
step "$(comm -12 "$work/safe" "$work/back" | wc -l) of $(count "$work/safe") archived rows are back, $missing are missing; $((in_flight - missing)) acknowledged rows were still in flight and are lost"
[ "$missing" = 0 ] || exit 1

within 120 'the app writes again' acknowledged_more_than $(($(count "$work/before") + 5))
acknowledged "$work/again"
step "the app writes again: $(($(count "$work/again") - $(count "$work/before"))) new rows"

lsn=$(sql 'select pg_current_wal_flush_lsn()')
within 120 "the archive has reached $lsn of the new server" archived_up_to "$lsn"
step "the archive follows the new server, up to $lsn"
echo "compose-test: ok in $SECONDS s"
