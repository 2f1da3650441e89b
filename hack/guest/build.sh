#!/usr/bin/env bash
# Makes the guest of the microVM in bin/guest: kernel (vmlinux), initramfs (initrd: the agent and the modules it loads),
# tools image (tools.erofs: crun, kmod, mount.nfs, all further modules) and a manifest with their digests. Everything but the
# agent comes from Debian's packages, which are unpacked and never installed; bin/guest/cache keeps them, so nothing is
# downloaded twice. The same packages and the same agent give the same bytes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
out="$top/bin/guest"
cache="$out/cache"
agent="$top/bin/berth-guest"
kernel_package=linux-image-cloud-amd64
tools_packages=(crun kmod nfs-common netbase)
export SOURCE_DATE_EPOCH=1764000000 LC_ALL=C TZ=UTC
umask 022

fail() { echo "hack/guest/build.sh: $*" >&2; exit 1; }
[ "$(uname -m)" = x86_64 ] || fail "the microVM guest is made for x86_64 only, this machine is $(uname -m)"
command -v apt-get >/dev/null || fail "apt-get is missing: the guest is made from Debian's packages, on Debian or Ubuntu"
mkdir -p "$cache"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

. "$here/packages.sh"
. "$here/kernel.sh"
. "$here/tools.sh"

# digest FILE...: one digest of the files' contents and names.
digest() { sha256sum "$@" | sed "s|$top/||" | sha256sum | cut -c1-32; }

# made NAME KEY: whether the stage called NAME was made from inputs with that KEY.
made() { [ "$(cat "$cache/$1.key" 2>/dev/null)" = "$2" ]; }

{ resolve "$kernel_package" linux-headers-cloud-amd64 | grep '^linux-'; resolve "${tools_packages[@]}"; } >"$work/packages.list"
# Without apt's lists, what the last time gave.
[ ! -s "$work/packages.list" ] || cp "$work/packages.list" "$cache/packages.list"
[ -s "$cache/packages.list" ] || fail "cannot find the packages $kernel_package ${tools_packages[*]}; run apt-get update, or add a Debian mirror to apt's sources"
version=$(kernel_version)
key=$(digest "$here"/*.sh "$here"/*.txt "$here"/module/* "$cache/packages.list")
if ! made system "$key"; then
  echo "making the microVM's kernel $version, modules and tools (about a minute)"
  rm -f "$cache/system.key"
  make_kernel "$version"
  make_tools "$version"
  echo "$key" >"$cache/system.key"
fi
key=$(digest "$agent" "$cache/system.key")
if ! made initrd "$key"; then
  make_initrd
  write_manifest "$version"
  echo "$key" >"$cache/initrd.key"
  echo "made bin/guest (kernel $version)"
fi
