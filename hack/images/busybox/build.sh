#!/bin/sh
# Builds busybox (a static program, $2) for the root file system $1 from Debian's source package: Debian configures its own for installers, without
# much that people expect of the image (nc -z, httpd, telnet). Here it has upstream's defaults, and a shell that passes on environment variables
# with any name, as later versions do. The command tc is left out: the headers of Linux 6.8 and later lack what it needs.
set -eu
root=$1 out=$2
export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG KCONFIG_NOTIMESTAMP=1 LC_ALL=C
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sources=$root/etc/apt/sources.list.d/source.list
sed 's/^deb /deb-src /' "$root/etc/apt/sources.list" > "$sources"
apt-get update
(cd "$work" && apt-get source --download-only busybox && dpkg-source --no-check --extract busybox_*.dsc source) # apt has checked it
rm "$sources"
cd "$work/source"
make defconfig >/dev/null
sed -i 's/^# \(CONFIG_STATIC\|CONFIG_FEATURE_DI_ENV_HACK\) is not set/\1=y/; s/^\(CONFIG_TC\)=y/# \1 is not set/' .config
make oldconfig </dev/null >/dev/null
grep -qx CONFIG_STATIC=y .config && grep -qx CONFIG_FEATURE_DI_ENV_HACK=y .config && grep -qx CONFIG_NC_110_COMPAT=y .config ||
  { echo "busybox's source package knows other options than it did; see $0" >&2; exit 1; }
make -j "$(nproc)" >/dev/null
cp busybox "$out"
