#!/usr/bin/env bash
# Private dirty memory of each process that a pod costs, in kB: one idle busybox pod on a running cluster (make up).
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/bin:$PATH"
finish() { kubectl delete pod bench-memory --now --ignore-not-found >/dev/null; berth delete fargateprofile --name bench-memory --wait >/dev/null; }
berth create fargateprofile --name bench-memory --namespace default --labels bench=memory >/dev/null
trap finish EXIT
kubectl run bench-memory --image=busybox --image-pull-policy=IfNotPresent --labels=bench=memory --restart=Never -- sleep 3600 >/dev/null
kubectl wait --for=condition=Ready pod/bench-memory --timeout=60s >/dev/null
sleep 20 # a node process gives the memory of its start back after 15 s
uid=$(kubectl get pod bench-memory -o jsonpath='{.metadata.uid}')
private() { awk '/^Private_Dirty/ { s += $2 } END { print s + 0 }' "/proc/$1/smaps_rollup"; }
node=$(cut -d' ' -f1 "/run/berth/nodes/$uid/pid")
total=0
show() { local kb; kb=$(private "$2"); total=$((total + kb)); printf '%-28s %8d kB\n' "$1" "$kb"; }
show "kubelet (berth-node)" "$node"
for pid in $(cat /sys/fs/cgroup/memory/berth/"$uid"/cgroup.procs /sys/fs/cgroup/memory/berth/"$uid"/*/cgroup.procs 2>/dev/null || find "/sys/fs/cgroup/berth/$uid" -name cgroup.procs -exec cat {} +); do
  show "$(cat "/proc/$pid/comm")" "$pid"
done
for pid in $(pgrep -f "containerd-shim-runsc-v1 .*-id"); do
  tr '\0' ' ' < "/proc/$pid/cmdline" | grep -q "$(ctr --address /run/berth/containerd.sock -n k8s.io containers ls -q "labels.io.kubernetes.pod.uid==$uid" 2>/dev/null | head -n1 | cut -c1-12)" && show "shim" "$pid" || true
done
printf '%-28s %8d kB   (not counted: one `runsc wait` a container, about 3300 kB each)\n' "together" "$total"
