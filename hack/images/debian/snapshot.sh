#!/bin/sh
# A hook of mmdebstrap: makes the root file system $1 forget when and where it was made, then packs it into layers:
# base.tar.gz, nginx.tar.gz and redis.tar.gz over it, and busybox.tar.gz of its own. Wants MKIMAGE, LAYERS and IMAGES in the environment.
set -eu
root=$1
export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG

forget() {
  rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/* "$root"/var/log/apt "$root"/var/log/*.log \
    "$root"/var/lib/dpkg/*-old "$root"/etc/*-
  : > "$root/etc/machine-id"
  rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
}

# layer OUT [-base FILE]: mmdebstrap has the host's devices mounted in the root file system.
layer() {
  "$MKIMAGE" layer -hollow dev -hollow proc -hollow sys -hollow run -hollow tmp -o "$@" "$root"
}

busybox=$(mktemp -d)
trap 'rm -rf "$busybox"' EXIT
sh "$IMAGES/busybox/build.sh" "$root" "$busybox/program"
sh "$IMAGES/busybox/layout.sh" "$busybox/program" "$busybox/root"
"$MKIMAGE" layer -o "$LAYERS/busybox.tar.gz" "$busybox/root"
"$busybox/root/bin/busybox" | sed -n '1s/^BusyBox v\([0-9.]*\).*/\1/p' > "$LAYERS/busybox.version"

# What apt needs to install nginx must survive the base's snapshot.
kept=$(mktemp -d)
cp -a "$root/var/lib/apt/lists" "$kept/lists"
forget
layer "$LAYERS/base.tar.gz"
cp -a "$kept/lists/." "$root/var/lib/apt/lists/"
rm -rf "$kept"
mkdir -p "$root/var/cache/apt/archives/partial" "$root/var/log/apt"
redis=$(mktemp -d)
trap 'rm -rf "$busybox" "$redis"' EXIT
sh "$IMAGES/redis/layout.sh" "$root" "$redis"
"$MKIMAGE" layer -o "$LAYERS/redis.tar.gz" "$redis"
mv "$redis.version" "$LAYERS/redis.version"
sh "$IMAGES/nginx/install.sh" "$root"
chroot "$root" dpkg-query --showformat='${source:Upstream-Version}' --show nginx > "$LAYERS/nginx.version"
forget
layer "$LAYERS/nginx.tar.gz" -base "$LAYERS/base.tar.gz"
