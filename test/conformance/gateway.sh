#!/usr/bin/env bash
# Runs the Gateway API's own conformance tests against a local cluster of its own: all that belong to the features that
# GatewayClass berth says it has (status.supportedFeatures). TEST narrows it to one, by name. Output and the report that the
# project asks of implementations are in bin/conformance/gateway. Ends the cluster if it started it.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
cd "$top"
results="$top/bin/conformance/gateway"
work=$(mktemp -d)
started=
finish() {
  rm -rf "$work"
  if [ -n "$started" ]; then bin/berth down --purge; fi
}
trap finish EXIT
mkdir -p "$results"
bin/berth status >/dev/null 2>&1 || { started=yes; bin/berth up ${ISOLATION:+--isolation "$ISOLATION"}; }

# The images that the tests name, without a registry: the first from the tests' module, the other is ours by another name.
manifests=$(cd build/gateway-conformance && go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api/conformance)/base/manifests.yaml
named() { sed -n "s|^ *image: \(.*/$1:.*\)|\1|p" "$manifests" | head -n 1; }
go build -o "$work/mkimage" ./hack/images/mkimage
mkdir "$work/root" "$work/coredns"
install -m 755 bin/conformance/echo-basic "$work/root/"
"$work/mkimage" layer -o "$work/layer.tar.gz" "$work/root"
echo '{"Entrypoint": ["/echo-basic"], "User": "65532:65532"}' >"$work/config.json"
"$work/mkimage" image -o "$work/echo-basic.tar" -config "$work/config.json" -layer "$work/layer.tar.gz" "$(named echo-basic)"
tar -C "$work/coredns" -xf bin/images/coredns.tar
"$work/mkimage" image -o "$work/coredns.tar" -from "$work/coredns" "$(named coredns)"
for image in "$work"/*.tar; do bin/berth image load "$image" >/dev/null; done

name=gateway-conformance
bin/berth get fargateprofile "$name" >/dev/null 2>&1 || bin/berth create fargateprofile --cluster berth --name "$name" --namespace "$name-*"
KUBECONFIG=/var/lib/berth/kubeconfig/admin bin/conformance/gateway.test -test.v -test.timeout 60m -gateway-class berth \
  ${TEST:+-run-test "$TEST"} -conformance-profiles GATEWAY-HTTP -report-output "$results/report.yaml" \
  -organization berth-run -project berth -url https://github.com/berth-run/berth -version "$(git describe --always)" \
  -contact https://github.com/berth-run/berth/issues >"$results/log.txt" 2>&1 || failed=$?
grep -E '^ *--- FAIL' "$results/log.txt" || true
sed -n '/^profiles:/,$p' "$results/report.yaml" 2>/dev/null || true
grep -cE '^    --- PASS' "$results/log.txt" | sed 's/$/ tests passed/'
exit "${failed:-0}"
