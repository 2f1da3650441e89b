#!/usr/bin/env bash
# Part of kvm-host.sh: process 1 of the emulated machine, once it has its files. The argument is where its kernel's modules are.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind "$1" /lib/modules
hostname kvm-host
ip link set lo up
for module in kvm_amd vhost_vsock tun; do modprobe "$module"; done
stty -opost </dev/ttyS0 2>/dev/null
stty raw -echo </dev/ttyS2 || echo "kvm-host.sh: no pulse: this run may hang"
cat /dev/ttyS2 >/dev/null & # its interrupts are all that matters
setsid --wait bash /run/command
echo $? >/dev/ttyS1
sync
echo o >/proc/sysrq-trigger
sleep infinity
