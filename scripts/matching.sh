#!/usr/bin/env bash
# Runs the tests whose names match a pattern, in the packages that have such tests, and fails when there are none:
# `go test -run` alone calls a run of no tests a success.
#
#   scripts/matching.sh '^TestTorture' -v -race
set -euo pipefail

pattern=${1:?usage: matching.sh PATTERN [go test flags]}
shift
mapfile -t packages < <(go test -list "$pattern" -json ./... |
  sed -n 's/.*"Action":"output","Package":"\([^"]*\)","Output":"Test.*/\1/p' | sort -u)
if [ ${#packages[@]} -eq 0 ]; then
  echo "matching: no test matches $pattern" >&2
  exit 1
fi
exec go test -run "$pattern" "$@" "${packages[@]}"
