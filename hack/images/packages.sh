#!/usr/bin/env bash
# Makes an image (an OCI archive, OUT.tar) of what packages of Debian and those that they need contain, unpacked and not configured. Benchmarks and tests
# make theirs by it when they begin, so that nobody else waits. The image's only layer lies beside it. Does nothing if the same recipe made OUT.
#
#   hack/images/packages.sh OUT.tar NAME:TAG PACKAGE...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
out=$1 name=$2; shift 2
recipe="$name $* $(sha256sum <"$0")"
[ ! -f "$out" ] || [ "$(cat "$out.recipe" 2>/dev/null)" != "$recipe" ] || exit 0
[ "$(id -u)" -eq 0 ] || { echo "hack/images/packages.sh: making the image needs root" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$(dirname "$out")"
packages=$*
TMPDIR="$work" mmdebstrap --mode=root --variant=extract --format=directory --include="${packages// /,}" \
  --aptopt='Acquire::Languages "none"' bookworm "$work/root" >"$work/mmdebstrap.log" 2>&1 ||
  { tail -n 30 "$work/mmdebstrap.log" >&2; echo "hack/images/packages.sh: mmdebstrap failed; is a Debian mirror reachable?" >&2; exit 1; }
rm -rf "$work"/root/usr/share/{man,info,locale} "$work"/root/var/{cache,lib/apt}
mkdir -p "$work"/root/{tmp,proc,sys,dev,run,etc}
# The loader finds the programs' libraries by their directories alone: no package was configured.
printf '/lib/x86_64-linux-gnu\n/usr/lib/x86_64-linux-gnu\n' >"$work/root/etc/ld.so.conf"
ldconfig -r "$work/root"
(cd "$top" && CGO_ENABLED=0 go build -p 2 -trimpath -o "$work/mkimage" ./hack/images/mkimage)
"$work/mkimage" layer -hollow dev -hollow proc -hollow sys -hollow run -hollow tmp -o "$work/layer.tar.gz" "$work/root"
"$work/mkimage" image -o "$out" -config "$here/debian/config.json" -layer "$work/layer.tar.gz" "$name"
mv "$work/layer.tar.gz" "${out%.tar}.layer.tar.gz"
echo "$recipe" >"$out.recipe"
echo "made ${out#"$top/"}"
