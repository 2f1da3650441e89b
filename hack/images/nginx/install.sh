#!/bin/sh
# Installs nginx into the root file system $1 (a hook of mmdebstrap) and lays it out as the official image is, so that
# manifests which mount their pages or configuration into that image work with this one.
set -eu
root=$1
here=$(dirname "$0")
groupadd --root "$root" --system --gid 101 nginx
useradd --root "$root" --system --gid 101 --uid 101 --home-dir /nonexistent --no-create-home --shell /bin/false nginx
# Without the chroot directory dpkg would install into the machine that runs this.
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get install -o "DPkg::Chroot-Directory=$root" \
  --yes --quiet --no-install-recommends nginx curl
rm -rf "$root"/etc/nginx/sites-* "$root"/etc/nginx/snippets "$root"/etc/nginx/modules-* "$root/var/www"
cp "$here/nginx.conf" "$root/etc/nginx/nginx.conf"
cp "$here/default.conf" "$root/etc/nginx/conf.d/default.conf"
ln -sf /dev/stdout "$root/var/log/nginx/access.log"
ln -sf /dev/stderr "$root/var/log/nginx/error.log"
[ -f "$root/usr/share/nginx/html/index.html" ] || { echo "nginx's package has no welcome page any more" >&2; exit 1; }
