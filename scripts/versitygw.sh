#!/usr/bin/env bash
# Installs versitygw, the S3 server of our tests and of `make demo STORE=s3`, into .tools/bin and prints its path.
# It starts in milliseconds, keeps its objects in a plain directory and honours conditional puts.
set -euo pipefail

version=v1.8.0
cd "$(dirname "$0")/.."
bin=$PWD/.tools/bin

if ! go version -m "$bin/versitygw" 2>/dev/null | grep -q "versitygw[[:space:]]$version\b"; then
  echo "versitygw: installing $version into .tools/bin" >&2
  mkdir -p "$bin"
  exec 9>"$bin/.lock"
  flock 9
  CGO_ENABLED=0 GOBIN=$bin GOFLAGS='' go install -trimpath "github.com/versity/versitygw/cmd/versitygw@$version" >&2
fi
echo "$bin/versitygw"
