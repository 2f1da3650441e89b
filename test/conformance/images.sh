#!/usr/bin/env bash
# Makes the images that Kubernetes' conformance tests name (bin/conformance/*.tar), without a registry: agnhost from its
# module over Debian's tools, and the rest from it and from the images in bin/images. Their tags are the tests', not what is inside.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
out="$top/bin/conformance"
kubernetes=$(cd "$top" && go list -m -f '{{.Dir}}' k8s.io/kubernetes)
registry=registry.k8s.io/e2e-test-images

# tag ID: the tag that the tests give an image.
tag() {
  sed -n "s|^\tconfigs\[$1\] = Config{.*, \"\([^\"]*\)\"}\$|\1|p" "$kubernetes/test/utils/image/manifest.go"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$top"
go build -o "$work/mkimage" ./hack/images/mkimage
mkimage() { "$work/mkimage" "$@"; }

root="$work/root"
TMPDIR="$work" mmdebstrap --mode=root --variant=minbase --format=directory --include=bind9-dnsutils,curl,netcat-openbsd,iproute2,iperf,socat,procps \
  --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt=force-unsafe-io bookworm "$root" >"$work/mmdebstrap.log" 2>&1 || { tail -n 30 "$work/mmdebstrap.log" >&2; exit 1; }
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/* "$root/etc/resolv.conf" "$root/etc/hostname"
# As in the image's Dockerfile.
cp "$out/agnhost" "$root/agnhost"
ln -s agnhost "$root/agnhost-2"
mkdir "$root/uploads"
cp "$kubernetes"/test/images/agnhost/porter/localhost.{crt,key} "$root/"
chmod 0644 "$root"/localhost.{crt,key}
cp "$top/bin/coredns" "$root/coredns"
echo 'user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh' >>"$root/etc/passwd"
printf '%s\n' 'user-defined-in-image:x:1000:' 'group-defined-in-image:x:50000:user-defined-in-image' >>"$root/etc/group"
mkimage layer -hollow dev -hollow proc -hollow sys -hollow run -hollow tmp -o "$work/agnhost.tar.gz" "$root"

path='"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]'
echo '{"Entrypoint": ["/agnhost"], "Cmd": ["pause"], '"$path}" >"$work/agnhost.json"
mkimage image -o "$out/agnhost.tar" -config "$work/agnhost.json" -layer "$work/agnhost.tar.gz" \
  "$registry/agnhost:$(tag Agnhost)" "$registry/agnhost:$(tag AgnhostPrev)"

echo '{"Entrypoint": ["/agnhost"], "Cmd": ["pause"], "User": "1234:1234", '"$path}" >"$work/nonroot.json"
mkimage image -o "$out/nonroot.tar" -config "$work/nonroot.json" -layer "$work/agnhost.tar.gz" "$registry/nonroot:$(tag NonRoot)"
for animal in Nautilus Kitten; do
  name=${animal,,}
  mkdir "$work/$name"
  cp "$kubernetes/test/images/$name"/html/* "$work/$name/"
  chmod 0644 "$work/$name"/*
  mkimage layer -o "$work/$name.tar.gz" "$work/$name"
  echo '{"Entrypoint": ["/agnhost"], "Cmd": ["test-webserver"], '"$path}" >"$work/$name.json"
  mkimage image -o "$out/$name.tar" -config "$work/$name.json" -layer "$work/agnhost.tar.gz" -layer "$work/$name.tar.gz" "$registry/$name:$(tag $animal)"
done

# renamed ARCHIVE NAME:TAG...: an image of bin/images under the names of the tests.
renamed() {
  local archive=$1 dir; shift
  dir=$(mktemp -d -p "$work")
  tar -C "$dir" -xf "$archive"
  mkimage image -o "$out/${archive##*/}" -from "$dir" "$@"
}
renamed "$top/bin/images/busybox.tar" "$registry/busybox:$(tag BusyBox)"
renamed "$top/bin/images/nginx.tar" "$registry/nginx:$(tag Nginx)" "$registry/nginx:$(tag NginxNew)"
