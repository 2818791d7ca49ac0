#!/usr/bin/env bash
# Provides the SQL of PostgreSQL's own regression tests, from the source package of the Debian suite that carries a major, and prints the
# folder src/test/regress, the last line on stdout.
#
#   scripts/regress.sh 18        -> …/.tools/regress18/src/test/regress
set -euo pipefail

major=${1:?usage: regress.sh MAJOR}
case $major in
  15) suite=bookworm ;;
  17) suite=trixie ;;
  18) suite=forky ;;
  *) echo "regress: no Debian suite is known to carry PostgreSQL $major" >&2; exit 2 ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck disable=SC2034 # debian.sh reads them
{
  checkout=$(dirname "$here")
  name=regress$major
  kind=deb-src
}
# shellcheck source=scripts/debian.sh
. "$here/debian.sh"

dest=$(tools_dir)/$name
if [ ! -e "$dest/complete" ]; then
  "$here/deps.sh" bzip2 xz-utils >&2
  echo "$name: fetching the source of postgresql-$major from Debian $suite" >&2
  rm -rf "$dest"
  state=$dest/apt
  mkdir -p "$state"/{state/lists/partial,cache/archives/partial}
  : >"$state/status"
  uri=$("$here/mirror.sh")
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  verified_lists "$state" "$uri" "$keyring" 2>/dev/null || verified_lists "$state" "$uri" "$(newer_keyring "$state")"
  (cd "$dest" && private_apt "$state" source --download-only "postgresql-$major")
  tar -C "$dest" --strip-components=1 --wildcards -xf "$dest"/*.orig.tar.* '*/src/test/regress/sql' '*/src/test/regress/data' '*/src/test/regress/parallel_schedule'
  rm -rf "$state" "$dest"/*.tar.* "$dest"/*.dsc
  chmod -R a+rX "$dest"
  touch "$dest/complete"
fi
echo "$dest/src/test/regress"
