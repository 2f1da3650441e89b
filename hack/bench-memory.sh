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
declare -A counted
show() { local kb; kb=$(private "$2"); total=$((total + kb)); printf '%-28s %8d kB\n' "$1" "$kb"; }
show "kubelet (berth-node)" "$node"
# Each container has a cgroup of its id below the pod's; the sandbox's processes are in them. The shim is not, but names the id
# on its command line.
cgroup=/sys/fs/cgroup/memory/berth/$uid
[ -d "$cgroup" ] || cgroup=/sys/fs/cgroup/berth/$uid
ids=$(find "$cgroup" -mindepth 1 -maxdepth 1 -type d -printf '%f|')
for pid in $(find "$cgroup" -name cgroup.procs -exec cat {} + | sort -un) $(pgrep -f "/bin/(containerd-shim-runsc-v1|runsc) .*(${ids%|})"); do
  [ -z "${counted[$pid]:-}" ] || continue
  counted[$pid]=yes
  what=$(tr '\0' '\n' < "/proc/$pid/cmdline" | grep -m1 -oE 'containerd-shim-runsc-v1|runsc-(gofer|sandbox)' || echo "process of the workload")
  show "$what" "$pid"
done
printf '%-28s %8d kB\n' together "$total"
