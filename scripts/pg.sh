#!/usr/bin/env bash
# Provides a PostgreSQL major beside the system's own and prints its bin directory, the last line on stdout.
#
#   scripts/pg.sh 18        -> …/.tools/pg18/tree/usr/lib/postgresql/18/bin
#
# Each Debian suite has one major; debian.sh says how it comes here.
set -euo pipefail

major=${1:?usage: pg.sh MAJOR}
case $major in
  13) suite=bullseye ;;
  15) suite=bookworm ;;
  17) suite=trixie ;;
  18) suite=forky ;;
  *) echo "pg: no Debian suite is known to carry PostgreSQL $major" >&2; exit 2 ;;
esac

if [ -x "/usr/lib/postgresql/$major/bin/initdb" ]; then
  echo "/usr/lib/postgresql/$major/bin"
  exit
fi

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck disable=SC2034 # debian.sh reads them
{
  checkout=$(dirname "$here")
  name=pg$major
  packages=("postgresql-$major" "postgresql-client-$major")
  programs=("usr/lib/postgresql/$major/bin/*")
  libraries=usr/lib/postgresql/$major/lib
}
# shellcheck source=scripts/debian.sh
. "$here/debian.sh"
provide
echo "$dest/tree/usr/lib/postgresql/$major/bin"
