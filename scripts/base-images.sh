#!/usr/bin/env bash
# Makes local stand-ins for the base images of deploy/Dockerfile, under the same tags, where no registry can be reached:
# debian:bookworm-slim from Debian's packages, golang:1.26-bookworm from that and this machine's own Go.
# Images that are there already, pulled or made, are left alone.
set -euo pipefail

debian=debian:bookworm-slim
golang=golang:1.26-bookworm
here=$(cd "$(dirname "$0")" && pwd)

have() { docker image inspect "$1" >/dev/null 2>&1; }

if have "$debian" && have "$golang"; then
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  echo 'base-images: debootstrap needs root' >&2
  exit 1
fi

work=$(mktemp -d /var/tmp/pitr-base-images.XXXXXX)
trap 'rm -rf "$work"' EXIT

if ! have "$debian"; then
  echo "base-images: making $debian from packages" >&2
  "$here/deps.sh" debootstrap
  debootstrap --variant=minbase --include=ca-certificates bookworm "$work/debian" "$("$here/mirror.sh")" >"$work/log" 2>&1 ||
    { tail -20 "$work/log" >&2; exit 1; }
  # What this machine's apt was told about its mirror (proxies, how old an index may be) holds in the image too.
  apt-config dump | grep -E '^Acquire::(http|https|Check-)' >"$work/debian/etc/apt/apt.conf.d/90machine" || true
  rm -rf "$work/debian"/var/{lib/apt/lists,cache/apt}/* "$work/debian"/usr/share/{doc,man,locale}/*
  tar -C "$work/debian" -c . | docker import -c 'CMD ["bash"]' - "$debian" >/dev/null
fi

if ! have "$golang"; then
  echo "base-images: making $golang from $(go version)" >&2
  # The container may not reach the module proxy, or may not trust the way to it: it gets what this machine has
  # downloaded and verified, and this machine's certificates for what is missing.
  (cd "$here/.." && go mod download)
  mkdir -p "$work/context/proxy"
  cp -a "$(go env GOROOT)" "$work/context/go"
  cp -a "$(go env GOMODCACHE)/cache/download/." "$work/context/proxy"
  cp -L /etc/ssl/certs/ca-certificates.crt "$work/context/"
  cat >"$work/context/Dockerfile" <<DOCKERFILE
FROM $debian
COPY go /usr/local/go
COPY proxy /go/proxy
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENV GOPATH=/go GOTOOLCHAIN=local GOPROXY=file:///go/proxy,$(go env GOPROXY) GOFLAGS=-modcacherw GOSUMDB=off
WORKDIR /go
DOCKERFILE
  DOCKER_BUILDKIT=0 docker build -q -t "$golang" "$work/context" >/dev/null
fi
docker images --format '{{.Repository}}:{{.Tag}} {{.Size}}' | grep -E "^($debian|$golang) " >&2
