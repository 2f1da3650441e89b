#!/usr/bin/env bash
# Private dirty memory of each process that a pod costs, in kB: one idle busybox pod after another on a running cluster (make up), one
# for each isolation that is named or, with no arguments, that the host can run.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/bin:$PATH"
finish() { kubectl delete pod bench-memory --now --ignore-not-found >/dev/null; berth delete fargateprofile --name bench-memory --wait >/dev/null 2>&1 || true; }
trap finish EXIT
isolations=("$@")
[ $# -gt 0 ] || mapfile -t isolations < <(kubectl get hosts -o jsonpath='{range .items[*].status.isolations[*]}{@}{"\n"}{end}' | sort -u)

# A template's pages that only one machine has mapped look private to it; of a private mapping only what is anonymous is.
private() { awk '/^[0-9a-f]+-/ { own = $2 ~ /p$/ } /^Private_Dirty/ { dirty = $2 } /^Anonymous/ { s += own && $2 < dirty ? $2 : dirty } END { print s + 0 }' "/proc/$1/smaps"; }
show() { local kb; kb=$(private "$2"); total=$((total + kb)); printf '%-28s %8d kB\n' "$1" "$kb"; }
name() { tr '\0' '\n' < "/proc/$1/cmdline" | grep -m1 -oE 'containerd-shim-(runsc|berth)-v1|runsc-(gofer|sandbox)|qemu-system-[a-z0-9_]+' || echo "process of the workload"; }
# processes of a pod, by its UID: what is in its cgroup, and the shim. A container of gVisor has a cgroup of its id there, and its shim
# names the id on its command line; a virtual machine was started by its shim.
processes() {
  local cgroup=/sys/fs/cgroup/memory/berth/$1 ids members
  [ -d "$cgroup" ] || cgroup=/sys/fs/cgroup/berth/$1
  members=$(find "$cgroup" -name cgroup.procs -exec cat {} + | sort -un)
  ids=$(find "$cgroup" -mindepth 1 -maxdepth 1 -type d -printf '%f|')
  {
    echo "$members"
    [ -z "$ids" ] || pgrep -f "/bin/(containerd-shim-runsc-v1|runsc) .*(${ids%|})" || true
    for pid in $members; do
      parent=$(awk '/^PPid:/ { print $2 }' "/proc/$pid/status")
      case $(readlink "/proc/$parent/exe" || true) in */containerd-shim-*) echo "$parent" ;; esac
    done
  } | sort -un
}

for isolation in "${isolations[@]}"; do
  berth create fargateprofile --name bench-memory --namespace default --labels bench=memory --isolation "$isolation" >/dev/null
  kubectl run bench-memory --image=busybox --image-pull-policy=IfNotPresent --labels=bench=memory --restart=Never -- sleep 3600 >/dev/null
  kubectl wait --for=condition=Ready pod/bench-memory --timeout=60s >/dev/null
  sleep 20 # a node process gives the memory of its start back after 15 s
  uid=$(kubectl get pod bench-memory -o jsonpath='{.metadata.uid}')
  total=0
  echo "$isolation:"
  show "kubelet (berth-node)" "$(cut -d' ' -f1 "/run/berth/nodes/$uid/pid")"
  for pid in $(processes "$uid"); do show "$(name "$pid")" "$pid"; done
  printf '%-28s %8d kB\n\n' together "$total"
  finish
done
