#!/usr/bin/env bash
# Makes the images that a machine without internet needs (bin/images/*.tar, OCI archives) out of Debian's packages, of
# Kubernetes' own pause.c and of CoreDNS's module. No image is tagged with a version that it does not hold. Skips what is newer than its recipe.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
out="$top/bin/images"
suite=bookworm
[ "$(id -u)" = 0 ] || { echo "making images needs root" >&2; exit 1; }
# The pause image of the Kubernetes that go.mod names.
kubernetes=$(cd "$top" && go list -m -f '{{.Dir}}' k8s.io/kubernetes)
pause_version=$(sed -n 's/^TAG ?= *//p' "$kubernetes/build/pause/Makefile")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# fresh ARCHIVE RECIPE...: whether the archive is newer than every file of its recipe.
fresh() {
  local archive=$1; shift
  [ -f "$archive" ] && [ -z "$(find "$@" -type f ! -name '*_test.go' -newer "$archive" -print -quit)" ]
}

# need PROGRAM PACKAGE...: installs packages of Debian or Ubuntu if the program is missing.
need() {
  local program=$1; shift
  command -v "$program" >/dev/null && return
  if command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ]; then
    echo "installing $* (for $program)"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"; } >"$work/apt.log" 2>&1 ||
      { tail -n 20 "$work/apt.log" >&2; echo "hack/images/build.sh: cannot install $*; install them yourself and run this again" >&2; exit 1; }
  else
    echo "hack/images/build.sh: $program is missing; install it (on Debian: apt-get install $*) and run this again, as root" >&2
    exit 1
  fi
}

mkdir -p "$out"
export MKIMAGE="$work/mkimage" LAYERS="$work" IMAGES="$here"
built_mkimage=""
mkimage() {
  [ -n "$built_mkimage" ] || (cd "$top" && CGO_ENABLED=0 go build -p 2 -trimpath -o "$MKIMAGE" ./hack/images/mkimage)
  built_mkimage=yes
}

recipes=("$here/build.sh" "$here/mkimage")
if ! fresh "$out/pause.tar" "${recipes[@]}" "$here/pause" "$kubernetes/build/pause/linux/pause.c"; then
  need gcc gcc libc6-dev
  mkimage
  mkdir "$work/pause"
  gcc -Os -Wall -Werror -static -s -DVERSION="v$pause_version" -o "$work/pause/pause" "$kubernetes/build/pause/linux/pause.c"
  "$MKIMAGE" layer -o "$work/pause.tar.gz" "$work/pause"
  "$MKIMAGE" image -o "$out/pause.tar" -config "$here/pause/config.json" -layer "$work/pause.tar.gz" "registry.k8s.io/pause:$pause_version"
  echo "made bin/images/pause.tar ($pause_version)"
fi

if ! fresh "$out/coredns.tar" "${recipes[@]}" "$here/coredns" "$top/bin/coredns"; then
  mkimage
  version=$(sed -n 's|^.*github.com/coredns/coredns \(v[0-9.]*\)$|\1|p' "$top/build/coredns/go.mod")
  mkdir -p "$work/coredns/etc/ssl/certs"
  cp "$top/bin/coredns" "$work/coredns/coredns"
  # For forwarding over TLS.
  [ ! -f /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$work/coredns/etc/ssl/certs/"
  "$MKIMAGE" layer -o "$work/coredns.tar.gz" "$work/coredns"
  "$MKIMAGE" image -o "$out/coredns.tar" -config "$here/coredns/config.json" -layer "$work/coredns.tar.gz" "registry.k8s.io/coredns/coredns:$version"
  echo "made bin/images/coredns.tar ($version)"
fi

if ! fresh "$out/nginx.tar" "${recipes[@]}" "$here/nginx" "$here/redis" "$here/busybox" "$here/debian" || [ ! -f "$out/redis.tar" ]; then
  [ "$(id -u)" -eq 0 ] || { echo "hack/images/build.sh: making the Debian images needs root" >&2; exit 1; }
  need mmdebstrap mmdebstrap debian-archive-keyring
  need gcc gcc libc6-dev
  need dpkg-source dpkg-dev patch bzip2 xz-utils
  mkimage
  echo "making images of Debian $suite (about a minute)"
  exclude=()
  for path in '/usr/share/man/*' '/usr/share/doc/*' '/usr/share/info/*' '/usr/share/locale/*' '/usr/share/lintian/*' '/usr/share/groff/*'; do
    exclude+=("--dpkgopt=path-exclude=$path")
  done
  TMPDIR="$work" mmdebstrap --mode=root --variant=minbase --format=null "${exclude[@]}" \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
    --customize-hook="sh $here/debian/snapshot.sh \"\$1\"" "$suite" /dev/null >"$work/mmdebstrap.log" 2>&1 ||
    { tail -n 30 "$work/mmdebstrap.log" >&2; echo "hack/images/build.sh: mmdebstrap failed; is a Debian mirror reachable?" >&2; exit 1; }
  nginx=$(cat "$work/nginx.version"); redis=$(cat "$work/redis.version"); busybox=$(cat "$work/busybox.version")
  library=docker.io/library
  "$MKIMAGE" image -o "$out/busybox.tar" -config "$here/busybox/config.json" -layer "$work/busybox.tar.gz" \
    "$library/busybox:latest" "$library/busybox:$busybox" "$library/busybox:${busybox%.*}"
  "$MKIMAGE" image -o "$out/debian.tar" -config "$here/debian/config.json" -layer "$work/base.tar.gz" \
    "$library/debian:$suite-slim" "$library/debian:12-slim"
  "$MKIMAGE" image -o "$out/nginx.tar" -config "$here/nginx/config.json" -layer "$work/base.tar.gz" -layer "$work/nginx.tar.gz" \
    "$library/nginx:latest" "$library/nginx:$nginx" "$library/nginx:${nginx%.*}"
  "$MKIMAGE" image -o "$out/redis.tar" -config "$here/redis/config.json" -layer "$work/base.tar.gz" -layer "$work/redis.tar.gz" \
    "$library/redis:latest" "$library/redis:$redis" "$library/redis:${redis%.*}"
  echo "made bin/images/{busybox,debian,nginx,redis}.tar (busybox $busybox, nginx $nginx, redis $redis)"
fi
