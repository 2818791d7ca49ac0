#!/bin/bash
# The app: writes a row five times a second through the pooler and goes on whatever happens to the server. It prints
# the key of each row whose commit was acknowledged, and nothing else on stdout: that is the truth a restore is held against.
set -uo pipefail

while :; do
  key=$(cat /proc/sys/kernel/random/uuid)
  psql -qX -v ON_ERROR_STOP=1 -v key="$key" <<'SQL' && echo "$key"
select to_regclass('public.heartbeat') is null as missing \gset
\if :missing
create table public.heartbeat (key uuid primary key, at timestamptz not null default clock_timestamp());
\endif
insert into public.heartbeat (key) values (:'key');
SQL
  sleep 0.2
done
