#!/usr/bin/env bash
# Measures the network (make bench-net): on the local cluster that runs, or on one of its own, which it ends again.
set -euo pipefail
cd "$(dirname "$0")/.."
bin/berth status >/dev/null 2>&1 || { trap 'bin/berth down --purge' EXIT; bin/berth up ${ISOLATION:+--isolation "$ISOLATION"}; }
go build -o bin/bench-net ./test/bench/net
echo "Traffic of Berth's pods and of plain runc containers, in turns:"
bin/bench-net "$@"
echo
echo "A byte to another pod and back, without rules and with those of 1,000 pods and 100 policies: what rules cost that nobody needs now"
go test ./internal/hostagent/network -run '^$' -bench Forward -benchtime 20000x | grep ^Benchmark
echo
echo "Until a change is in the kernel, at 1,000 pods and 100 policies:"
go test ./internal/hostagent/network -run '^$' -bench Policies -benchtime 20x | grep ^Benchmark
