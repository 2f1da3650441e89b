#!/usr/bin/env bash
# kvm-host.sh COMMAND...: runs a command as root on a machine that has what this one may lack: KVM, vhost_vsock and cgroup v2. It is an emulated machine
# whose processor has AMD-V, with Debian's kernel (that of the microVM's guest, make guest) and this machine's files, which it reads and does not write:
# what it writes goes to its memory, and is gone with it; /tmp, /run and /var/lib/berth are empty. There is no network but its own. The command runs in this
# directory with this environment; the script ends as it does. MEMORY is the machine's, in MiB, TIMEOUT how long it may take (30m).
#
# Everything in it is some ten times slower than here, so nothing is to be timed there; unless it is run with COUNT=1: then its clock counts instructions, one a
# nanosecond, whatever they cost to emulate. It compares programs with each other, not with this machine.
#
# QEMU can lose an interrupt of a processor that starts a virtual machine (docs/decisions, kvm-is-tested-emulated). So there is one processor, and a byte
# arrives at its third serial port ten times a second: it is interrupted again soon, and then sees to all that has come. Not with COUNT, whose clock would
# count that, too.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
out=$top/bin/kvm-host
memory=${MEMORY:-6144}
modules="virtio_pci virtiofs overlay virtio_console"

fail() { echo "kvm-host.sh: $*" >&2; exit 1; }

[ $# -gt 0 ] || fail "which command?"
[ "$(id -u)" -eq 0 ] || fail "needs root"
for virtiofsd in /usr/lib/qemu/virtiofsd /usr/libexec/virtiofsd /usr/lib/virtiofsd ""; do
  [ ! -x "$virtiofsd" ] || break
done
[ -n "$virtiofsd" ] || fail "virtiofsd is missing: install Debian package qemu-system-common (Debian 12) or virtiofsd (later)"
processor=(-accel "tcg,tb-size=512" -cpu "max,+svm,+npt")
# Instructions that repeat themselves would count once for each byte: without erms and fsrm programs copy as other processors do.
[ -z "${COUNT:-}" ] || processor=(-accel "tcg,tb-size=1024" -icount "shift=0,align=off,sleep=on" -cpu "max,+svm,+npt,-erms,-fsrm")
package=$(find "$top/bin/guest/cache" -name 'linux-image-*-cloud-amd64_*.deb' 2>/dev/null | sort -V | tail -n 1)
[ -n "$package" ] || fail "there is no kernel: run make guest"

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

# The kernel's package, unpacked once.
if [ ! -e "$out/$(basename "$package")" ]; then
  rm -rf "$out/kernel"
  mkdir -p "$out"
  dpkg-deb -x "$package" "$out/kernel"
  version=$(basename "$out"/kernel/lib/modules/*)
  depmod -b "$out/kernel" "$version"
  touch "$out/$(basename "$package")"
fi
version=$(basename "$out"/kernel/lib/modules/*)

# Process 1 finds this machine's files, and goes on in them with kvm-host-init.sh.
root=$work/root
mkdir -p "$root"/{bin,proc,sys,dev,modules,files,written,host}
cp "$(command -v busybox)" "$root/bin/busybox"
for module in $modules; do
  modprobe -d "$out/kernel" -S "$version" --show-depends "$module" | while read -r insmod path _; do
    name=$(basename "$path")
    if [ "$insmod" = insmod ] && [ ! -e "$root/modules/$name" ]; then
      cp "$path" "$root/modules/"
      echo "$name" >>"$root/modules/order"
    fi
  done
done
{ declare -x; printf 'cd %q\n' "$PWD"; printf '%q ' "$@"; echo; } >"$root/command"
cat >"$root/init" <<END
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r m; do insmod /modules/\$m; done </modules/order
mount -t virtiofs files /files -o ro
mount -t tmpfs -o size=90% written /written
mkdir /written/upper /written/work
mount -t overlay overlay -o lowerdir=/files,upperdir=/written/upper,workdir=/written/work /host
for m in dev proc sys; do mount --move /\$m /host/\$m; done
mount -t tmpfs run /host/run
mount -t tmpfs tmp /host/tmp
mkdir -p /host/var/lib/berth /host/lib/modules
mount -t tmpfs -o size=90% state /host/var/lib/berth
cp /command /host/run/command
exec switch_root /host /bin/bash $top/hack/kvm-host-init.sh $out/kernel/lib/modules
END
chmod 755 "$root/init"
(cd "$root" && find . | cpio --quiet --create --format=newc --owner=0:0) >"$work/initrd"

case $("$virtiofsd" --help 2>&1) in
*--shared-dir*) share=(--shared-dir / --cache always --sandbox chroot) ;;
*) share=(-o source=/ -o cache=always -o sandbox=chroot) ;;
esac
"$virtiofsd" --socket-path="$work/files" "${share[@]}" >"$work/virtiofsd.log" 2>&1 &
for _ in $(seq 100); do [ ! -S "$work/files" ] || break; sleep 0.1; done
[ -S "$work/files" ] || { cat "$work/virtiofsd.log" >&2; fail "virtiofsd does not start"; }

: >"$work/status"
mkfifo "$work/pulse"
[ -n "${COUNT:-}" ] || while kill -0 $$ && sleep 0.1; do echo; done 1<>"$work/pulse" &
timeout "${TIMEOUT:-30m}" qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none -machine q35 -smp 1 "${processor[@]}" \
  -m "$memory" -object "memory-backend-memfd,id=memory,size=${memory}M,share=on" -numa node,memdev=memory \
  -chardev "socket,id=files,path=$work/files" -device vhost-user-fs-pci,chardev=files,tag=files,queue-size=1024 -device virtio-rng-pci \
  -kernel "$out/kernel/boot/vmlinuz-$version" -initrd "$work/initrd" -append "console=ttyS0 quiet panic=-1 softlockup_panic=1 mitigations=off" \
  -serial stdio -serial "file:$work/status" -serial "pipe:$work/pulse" </dev/null || true
[ -s "$work/status" ] || cat "$work/virtiofsd.log" >&2
status=$(tr -dc 0-9 <"$work/status")
[ -n "$status" ] || fail "the machine ended before the command"
exit "$status"
