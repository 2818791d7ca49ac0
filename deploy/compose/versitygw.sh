#!/bin/bash
# Makes the bucket, which to versitygw is a directory, and serves it.
set -euo pipefail
mkdir -p /data/pitr
exec versitygw --port :7070 --quiet posix /data
