#!/usr/bin/env bash
# Provides a program that `make bench` compares pitr with and prints the path of its program, the last line on stdout.
#
#   scripts/peers.sh pgbouncer    -> …/.tools/pgbouncer/tree/usr/sbin/pgbouncer
#   scripts/peers.sh odyssey      -> …/.tools/odyssey/tree/usr/sbin/odyssey
#   scripts/peers.sh pgbackrest   -> …/.tools/pgbackrest/tree/usr/bin/pgbackrest
#
# It is that of Debian's newest suite, whatever the system has of its own; debian.sh says how it comes here.
set -euo pipefail

name=${1:?usage: peers.sh pgbouncer|odyssey|pgbackrest}
case $name in
  pgbouncer | odyssey | pgbackrest) ;;
  *) echo "peers: no peer $name is known" >&2; exit 2 ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck disable=SC2034 # debian.sh reads them
{
  checkout=$(dirname "$here")
  suite=forky
  packages=("$name")
  programs=("usr/*bin/$name")
  libraries=
}
# shellcheck source=scripts/debian.sh
. "$here/debian.sh"
provide
elf_programs "$dest" | head -1
