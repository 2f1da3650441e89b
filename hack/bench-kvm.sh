#!/usr/bin/env bash
# Part of make bench-kvm, run by kvm-host.sh on a machine that counts instructions: microVMs under KVM, gVisor and a plain kubelet beside each other.
# PODS are started one after another in each.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(hostname)" = kvm-host ] || { echo "bench-kvm.sh: run make bench-kvm" >&2; exit 1; }
export KUBECONFIG=/var/lib/berth/kubeconfig/admin
kubectl() { bin/berth kubectl "$@"; }
rm -rf /var/log/berth # this machine's, which is not that of the logs
bin/kvm-host/bench-restore -acceleration kvm -boots 1 -restores 5
bin/berth up --isolation microvm
# The plain kubelet wants the cluster without pods. To ask for that again and again would keep the one processor busy.
kubectl -n kube-system scale deployment coredns --replicas=0
sleep 60
bin/kvm-host/bench-start -n "${PODS:-4}" -burst 0 -rounds 1
bin/berth down
