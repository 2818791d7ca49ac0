#!/usr/bin/env bash
# Runs each fuzz target of the module for a while (default 20s each): `go test -fuzz` takes only one at a time.
# Inputs that are new are made smaller in few steps: by default that takes most of such a short time.
# A crasher stays in the package's testdata/fuzz, where the next plain `go test` finds it.
set -euo pipefail

fuzztime=${1:-20s}
count=0
while read -r package target; do
  echo "fuzz: $package $target for $fuzztime"
  go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" -fuzzminimizetime 100x "$package"
  count=$((count + 1))
done < <(go test -list '^Fuzz' -json ./... |
  sed -n 's/.*"Action":"output","Package":"\([^"]*\)","Output":"\(Fuzz[A-Za-z0-9_]*\)\\n".*/\1 \2/p')
[ "$count" -gt 0 ] || { echo 'fuzz: no fuzz targets' >&2; exit 1; }
echo "fuzz: $count targets, no crash"
