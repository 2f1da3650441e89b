#!/bin/sh
# Lays out the program busybox, $1, as a root file system in $2: one program, a link for each applet.
set -eu
program=$1 root=$2
mkdir -p "$root/bin" "$root/etc" "$root/home" "$root/root" "$root/tmp" "$root/usr" "$root/var/spool" "$root/var/www" "$root/dev"
chmod 1777 "$root/tmp"
chmod 0700 "$root/root"
ln -s ../bin "$root/usr/bin"
ln -s ../bin "$root/usr/sbin"
ln -s bin "$root/sbin"
cp "$program" "$root/bin/busybox"
for applet in $("$root/bin/busybox" --list); do
  # dpkg and rpm would only mislead: there are no packages in this image.
  case $applet in busybox|linuxrc|init|dpkg|dpkg-deb|rpm|rpm2cpio) continue ;; esac
  ln "$root/bin/busybox" "$root/bin/$applet"
done
cat > "$root/etc/passwd" <<PASSWD
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
PASSWD
cat > "$root/etc/group" <<GROUP
root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
nogroup:x:65534:
GROUP
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
