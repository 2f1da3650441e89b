#!/usr/bin/env bash
# Runs Kubernetes' own conformance tests against a local cluster of its own, as far as a cluster can pass in which each node
# is made for one pod: skipped are tests that choose a node first, that want a DaemonSet or a host's network or disk, and
# those that change the cluster for all ([Serial], [Disruptive]). FOCUS and SKIP narrow it; PROCS run side by side.
# Output is in bin/conformance/results. Ends the cluster if it started it.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
cd "$top"
results="$top/bin/conformance/results"
skip=$(grep -v '^#' test/conformance/skip.txt | paste -sd'|')
mkdir -p "$results"
bin/berth status >/dev/null 2>&1 || { trap 'bin/berth down --purge' EXIT; bin/berth up ${ISOLATION:+--isolation "$ISOLATION"}; }
for image in bin/conformance/*.tar; do bin/berth image load "$image" >/dev/null; done
bin/berth get fargateprofile conformance >/dev/null 2>&1 || bin/berth create fargateprofile --cluster berth --name conformance --namespace '*'
bin/conformance/ginkgo run --procs="${PROCS:-3}" --no-color --focus="${FOCUS:-\\[Conformance\\]}" --skip="$skip${SKIP:+|$SKIP}" --timeout=2h \
  --output-dir="$results" --junit-report=junit.xml bin/conformance/e2e.test -- \
  --kubeconfig=/var/lib/berth/kubeconfig/admin --provider=skeleton --kubectl-path="$top/bin/kubectl" \
  --num-nodes=1 --allowed-not-ready-nodes=-1 --disable-log-dump >"$results/log.txt" 2>&1 || failed=$?
sed -n '/^Summarizing/,$p; /^Ran [0-9]/,/^$/p' "$results/log.txt" | awk '!seen[$0]++'
exit "${failed:-0}"
