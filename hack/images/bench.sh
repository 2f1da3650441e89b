#!/usr/bin/env bash
# Makes the image of bench-io (bin/bench/io.tar) out of Debian's packages: the field's own programs that load a machine, with what they
# need and nothing else. It is the benchmark's alone, so that nobody else waits for it. Skips what is newer than its recipe.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
out="$top/bin/bench/io.tar"
[ ! "$out" -nt "$0" ] || exit 0
[ "$(id -u)" -eq 0 ] || { echo "hack/images/bench.sh: making the image needs root" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$(dirname "$out")"
TMPDIR="$work" mmdebstrap --mode=root --variant=extract --format=directory --include=coreutils,fio,iperf3,sockperf,stress-ng \
  --aptopt='Acquire::Languages "none"' bookworm "$work/root" >"$work/mmdebstrap.log" 2>&1 ||
  { tail -n 30 "$work/mmdebstrap.log" >&2; echo "hack/images/bench.sh: mmdebstrap failed; is a Debian mirror reachable?" >&2; exit 1; }
rm -rf "$work"/root/usr/share/{man,info,locale,fio} "$work"/root/var/{cache,lib/apt}
mkdir -p "$work"/root/{tmp,proc,sys,dev,run,etc}
# The loader finds the programs' libraries by their directories alone: no package was configured.
printf '/lib/x86_64-linux-gnu\n/usr/lib/x86_64-linux-gnu\n' >"$work/root/etc/ld.so.conf"
ldconfig -r "$work/root"
(cd "$top" && CGO_ENABLED=0 go build -p 2 -trimpath -o "$work/mkimage" ./hack/images/mkimage)
"$work/mkimage" layer -hollow dev -hollow proc -hollow sys -hollow run -hollow tmp -o "$work/layer.tar.gz" "$work/root"
"$work/mkimage" image -o "$out" -config "$here/debian/config.json" -layer "$work/layer.tar.gz" docker.io/library/bench-io:latest
mv "$work/layer.tar.gz" "${out%.tar}.layer.tar.gz"
touch "$out"
echo "made bin/bench/io.tar"
