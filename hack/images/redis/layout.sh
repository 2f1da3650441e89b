#!/bin/sh
# Lays out Redis and what it needs beyond the base, unpacked from packages that are fetched for the root file system $1, as a
# layer over that in $2, and the version in $2.version. Nothing is installed into $1. Like the official image it listens on all addresses without a password.
set -eu
root=$1 layer=$2
archives=$root/var/cache/apt/archives
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get install --yes --quiet --no-install-recommends --download-only redis-server redis-tools
mkdir -p "$layer/etc" "$layer/data"
for deb in "$archives"/*.deb; do
  dpkg-deb --extract "$deb" "$layer"
done
dpkg-deb --field "$archives"/redis-server_*.deb Version | sed 's/^[0-9]*://; s/-.*$//' > "$layer.version"
rm -f "$archives"/*.deb
# The base's directories are links into /usr.
for dir in bin sbin lib; do
  [ ! -d "$layer/$dir" ] || { mkdir -p "$layer/usr/$dir"; cp -a "$layer/$dir/." "$layer/usr/$dir/"; rm -rf "${layer:?}/$dir"; }
done
rm -rf "$layer/usr/share/man" "$layer/usr/share/lintian" "$layer/etc/init.d" "$layer/etc/default" "$layer/etc/logrotate.d" "$layer/usr/lib/systemd"
cp "$root/etc/passwd" "$root/etc/group" "$layer/etc/"
echo 'redis:x:999:999:redis:/data:/bin/false' >> "$layer/etc/passwd"
echo 'redis:x:999:' >> "$layer/etc/group"
chown 999:999 "$layer/data"
