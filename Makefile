# Berth. `make help` lists what can be made.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

export CGO_ENABLED := 0
# One set of flags for build, test and vet: packages are compiled once.
export GOFLAGS := -trimpath -buildvcs=false -p=2
BUILD := go build

# Kubernetes reports the version that go.mod names.
KUBE_VERSION := $(shell sed -n 's|^\tk8s.io/kubernetes \(v[0-9.]*\)$$|\1|p' go.mod)
KUBE_NUMBERS := $(subst ., ,$(patsubst v%,%,$(KUBE_VERSION)))
KUBE_PACKAGE := k8s.io/component-base/version
LDFLAGS := -s -w -X $(KUBE_PACKAGE).gitVersion=$(KUBE_VERSION) -X $(KUBE_PACKAGE).gitMajor=$(word 1,$(KUBE_NUMBERS)) -X $(KUBE_PACKAGE).gitMinor=$(word 2,$(KUBE_NUMBERS))

OURS       := berth berth-controller berth-host berth-node berth-cni berth-proxy berth-lb containerd-shim-start containerd-shim-berth-v1 berth-jail berth-guest
STARTS     := containerd-shim-runsc-start containerd-shim-berth-start
KUBERNETES := kube-apiserver kube-controller-manager kube-scheduler
CONTAINERD := containerd ctr
SHIM       := containerd-shim-runsc-v1
# A plugin of QEMU, one for each range of versions of its plugin interface, and a small library in the place of a large one.
TRIM       := qemu-trim-v1.so qemu-trim-v2.so qemu-capstone.so
UPSTREAM   := etcd registry runsc coredns $(CONTAINERD) $(KUBERNETES)

# What the end-to-end tests' pods run in: the suite runs once for each, less what the other's run shows as well: tests of virtual machines, whatever
# the cluster's isolation is, and tests in which sandboxes have no part. The story runs in virtual machines in any case.
E2E_ISOLATIONS ?= gvisor
E2E_STORY := ^(TestDemo|TestNode|TestKubeletFeatures|TestThreeTiers)$$
E2E_SKIP_gvisor = $(if $(filter microvm,$(E2E_ISOLATIONS)),^(TestMachines|TestMachineTrouble|TestMachineCauses|TestIsolation|TestRights|TestShares)$$)
E2E_SKIP_microvm = $(if $(filter gvisor,$(E2E_ISOLATIONS)),^(TestUp|TestSecondCluster|TestRefusals|TestMessages|TestMaintenanceWindow|TestProfileCommands|TestProfilesTakeTurns|TestPrivateRegistry)$$)

# Whatever is compiled or embedded into our programs.
SOURCES := $(shell find api cmd internal charts -type f ! -name '*_test.go' ! -path '*/testdata/*' ! -name '*.md')

##@ Use

.PHONY: help
help: ## Show this list.
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n\033[1m%s\033[0m\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: deps build images ## The main job, from an empty machine to nginx pods on nodes of their own, told in the terminal (ISOLATION=microvm: in virtual machines).
	@ISOLATION='$(ISOLATION)' hack/demo.sh

.PHONY: up
up: deps build images ## Start the local cluster (root); ISOLATION=auto, microvm or gvisor as for berth up.
	@bin/berth up $(if $(ISOLATION),--isolation $(ISOLATION))

.PHONY: down
down: ## Stop the local cluster; nothing of it stays but its state in /var/lib/berth.
	@if [ -x bin/berth ]; then bin/berth down; else echo "bin/berth is not built: nothing of this checkout can be running"; fi

##@ Build

.PHONY: build
build: $(addprefix bin/,$(OURS) kubectl $(STARTS) $(UPSTREAM) $(SHIM) $(TRIM)) bin/guest/manifest.json ## Build every program and the microVM's guest into bin/, if it changed.

.PHONY: guest
guest: bin/guest/manifest.json ## Make the microVM's guest (bin/guest): kernel, initramfs, tools image, digests.

.PHONY: images
images: bin/coredns ## Make the images that work without internet (bin/images), from Debian's packages.
	@hack/images/build.sh

.PHONY: deps
deps: ## Install the packages that building and running need (Debian, Ubuntu), or say which are missing.
	@hack/deps.sh

# Those types of the Gateway API that berth-lb serves; copied, as a chart must hold them.
GATEWAY_TYPES := gatewayclasses gateways httproutes referencegrants

.PHONY: generate
generate: ## Generate deep copies and CRDs from api/, and copy the Gateway API's.
	cd api && controller_gen="go tool -modfile=$(CURDIR)/build/tools/go.mod controller-gen" && \
	$$controller_gen object paths=./... && $$controller_gen crd paths=./... output:crd:dir=../charts/berth/crds
	@from=$$(go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api)/config/crd/standard && for type in $(GATEWAY_TYPES); do \
		install -m 644 $$from/gateway.networking.k8s.io_$$type.yaml charts/berth/crds/; \
	done

.PHONY: clean
clean: ## Remove what was built; Go's own cache stays.
	rm -rf bin

##@ Check

.PHONY: test
test: deps build images ## Run all tests: unit, controllers on a real API server, end to end on a real cluster (root).
	cd api && go test ./...
	go test ./cmd/... ./internal/... ./hack/...
	@$(MAKE) --no-print-directory test-kvm
	@$(foreach isolation,$(E2E_ISOLATIONS),echo "go test ./test/... (pods in isolation $(isolation))"; \
		BERTH_ISOLATION=$(isolation) go test -count=1 -timeout 40m -skip '$(E2E_SKIP_$(isolation))' ./test/...;)
	@$(if $(filter microvm,$(E2E_ISOLATIONS)),,echo "go test ./test/e2e (the story in isolation microvm)"; \
		BERTH_ISOLATION=microvm go test -count=1 -timeout 30m -run '$(E2E_STORY)' ./test/e2e)

.PHONY: test-kvm
test-kvm: deps build ## Run the tests of virtual machines under KVM and with vsock, on an emulated machine that has them (root).
	@mkdir -p bin/kvm-host/programs
	go test -c -o bin/kvm-host/qemu.test ./internal/microvm/qemu
	go build -o bin/kvm-host/programs ./cmd/berth-jail ./internal/microvm/vmm/vmmtest/vsockport
	@cp $(addprefix bin/,$(TRIM)) bin/kvm-host/programs
	cd internal/microvm/qemu && BERTH_ACCELERATION=kvm BERTH_TEST_PROGRAMS=$(CURDIR)/bin/kvm-host/programs \
		$(CURDIR)/hack/kvm-host.sh $(CURDIR)/bin/kvm-host/qemu.test -test.timeout=20m

.PHONY: test-cycles
test-cycles: deps build images ## Make and delete 500 pods and look for what they leave (root).
	BERTH_CYCLES=500 go test -count=1 -timeout 90m -run TestCycles ./test/e2e

# Not part of test: building it takes minutes, running it half an hour.
.PHONY: conformance
conformance: deps build images bin/conformance/images ## Run Kubernetes' own conformance tests, as far as nodes made for one pod can pass them (root; FOCUS, SKIP, PROCS, ISOLATION).
	@test/conformance/run.sh

.PHONY: conformance-gateway
conformance-gateway: deps build images bin/conformance/gateway.test ## Run the Gateway API's own conformance tests for what GatewayClass berth says it has (root; TEST, ISOLATION).
	@test/conformance/gateway.sh

.PHONY: bench-start
bench-start: bin/kubelet ## Time from a pod's creation to its running container, by stage, in each isolation, beside a plain kubelet (needs make up).
	@go run ./test/bench/start

.PHONY: bench-restore
bench-restore: build ## A microVM's cold boot beside its restore from a template, and QEMU's memory (root; no cluster needed).
	@go run ./test/bench/restore

.PHONY: bench-kvm
bench-kvm: deps build images bin/kubelet ## The restore and start of microVMs under KVM beside gVisor and a plain kubelet, in instructions, on an emulated machine that has KVM (root; a quarter of an hour).
	@mkdir -p bin/kvm-host
	go build -o bin/kvm-host/bench-restore ./test/bench/restore
	go build -o bin/kvm-host/bench-start ./test/bench/start
	@COUNT=1 MEMORY=9000 TIMEOUT=45m hack/kvm-host.sh $(CURDIR)/hack/bench-kvm.sh

.PHONY: bench-memory
bench-memory: ## Private memory of each process that an idle pod costs, in each isolation (needs make up).
	@hack/bench-memory.sh

.PHONY: bench-density bench-idle bench-delete
N ?= 50
bench-density: ## Hold N pods (default 50) at once: start, memory and CPU of an idle pod, end (needs make up).
	@go run ./test/bench/hold -n $(N)
bench-idle: ## CPU and private memory of an idle pod, and of what all pods share (needs make up).
	@go run ./test/bench/hold -n 10 -settle 3m -idle 2m
bench-delete: ## Time from a pod's deletion until nothing of it is left (needs make up).
	@go run ./test/bench/hold -n 20 -idle 0

.PHONY: bench-place
bench-place: bin/etcd bin/kube-apiserver ## Time to place one pod among 0, 1,000 and 10,000 others, on a real API server.
	go test ./internal/controller -run '^$$' -bench Placement -benchtime 50x

.PHONY: bench-policy
bench-policy: ## Time until a change is in the kernel, at 1,000 pods and 100 network policies (root; no cluster needed).
	go test ./internal/hostagent/network -run '^$$' -bench Policies -benchtime 20x

.PHONY: bench-guest
bench-guest: bin/guest/manifest.json ## Time of each step from a restored microVM to its first containers, and its private memory (root; no cluster needed).
	go test ./internal/microvm/guest -run '^$$' -bench Start -benchtime 10x

.PHONY: bench-net
bench-net: deps build images ## Measure the network beside plain runc containers, and what 1,000 pods' rules cost (root, runc; ISOLATION).
	@hack/bench-net.sh

.PHONY: bench-io
bench-io: deps ## Measure network, disk and system calls inside microvm, gvisor and plain runc, which take turns (root; needs make up and runc).
	@hack/images/packages.sh bin/bench/io.tar docker.io/library/bench-io:latest coreutils fio iperf3 sockperf stress-ng
	@go run ./test/bench/io

.PHONY: lint
lint: bin/golangci-lint ## Check every module of ours with golangci-lint (which formats and vets, too), and the shell scripts.
	@set -e; for module in . api build/coredns build/gvisor; do (cd $$module && $(CURDIR)/bin/golangci-lint run --config $(CURDIR)/.golangci.yml ./...); done
	@for script in $$(find hack .ci -type f \( -name '*.sh' -o -name run \)); do bash -n "$$script"; done

# Programs. Upstream's change with their pins only, so that nothing is asked of the go command when nothing changed. The go
# command leaves a program alone that is up to date; touch tells make.

$(addprefix bin/,$(OURS)) &: $(SOURCES) go.mod go.sum
	$(BUILD) -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(OURS))
	@touch $(addprefix bin/,$(OURS))

bin/guest/manifest.json: bin/berth-guest $(shell find hack/guest -type f)
	@hack/guest/build.sh
	@touch $@

# berth acts as kubectl when it is called so.
bin/kubectl: | bin/berth
	ln -sfn berth $@

# It takes its name for the shim that it starts.
$(addprefix bin/,$(STARTS)): bin/containerd-shim-start
	ln -sfn containerd-shim-start $@

bin/qemu-trim-v%.so: internal/microvm/qemu/trim/trim.c
	gcc -O2 -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror -DVERSION=$* -s -o $@ $<

# QEMU's name for the library has a version; it is the same five functions in all.
bin/qemu-capstone.so: internal/microvm/qemu/standin/capstone.c
	gcc -O2 -fPIC -shared -Wall -Wextra -Werror -s -o $@ $<

# kubelet: only bench-start compares with it.
$(addprefix bin/,$(KUBERNETES) kubelet): go.mod go.sum
	$(BUILD) -ldflags '$(LDFLAGS)' -o $@ k8s.io/kubernetes/cmd/$(@F)
	@touch $@

# A module of its own: it has some 200 dependencies that nothing else needs.
bin/golangci-lint: build/lint/go.mod build/lint/go.sum
	cd build/lint && $(BUILD) -ldflags '-s -w' -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

# A module of its own, too: what the tests need is not ours.
bin/conformance/e2e.test: build/conformance/go.mod build/conformance/go.sum
	cd build/conformance && go test -c -vet=off -ldflags '$(LDFLAGS)' -o ../../$@ k8s.io/kubernetes/test/e2e
	cd build/conformance && $(BUILD) -ldflags '-s -w' -o ../../$(@D)/ k8s.io/kubernetes/test/images/agnhost github.com/onsi/ginkgo/v2/ginkgo
	@touch $@

bin/conformance/gateway.test: build/gateway-conformance/go.mod build/gateway-conformance/go.sum
	cd build/gateway-conformance && go test -c -vet=off -o ../../$@ sigs.k8s.io/gateway-api/conformance
	cd build/gateway-conformance && $(BUILD) -ldflags '-s -w' -o ../../$(@D)/ sigs.k8s.io/gateway-api/conformance/echo-basic
	@touch $@

bin/conformance/images: bin/conformance/e2e.test test/conformance/images.sh | images
	@test/conformance/images.sh
	@touch $@

bin/etcd: build/etcd/go.mod build/etcd/go.sum
	cd build/etcd && $(BUILD) -ldflags '-s -w' -o ../../$@ go.etcd.io/etcd/server/v3
	@touch $@

bin/registry: build/registry/go.mod build/registry/go.sum
	cd build/registry && $(BUILD) -ldflags '-s -w' -o ../../$@ github.com/distribution/distribution/v3/cmd/registry
	@touch $@

$(addprefix bin/,$(CONTAINERD)): build/containerd/go.mod build/containerd/go.sum
	cd build/containerd && $(BUILD) -ldflags '-s -w' -o ../../$@ github.com/containerd/containerd/v2/cmd/$(@F)
	@touch $@

bin/coredns: build/coredns/go.mod build/coredns/go.sum build/coredns/main.go
	cd build/coredns && $(BUILD) -ldflags '-s -w' -o ../../$@ .
	@touch $@

bin/runsc: build/gvisor/go.mod build/gvisor/go.sum
	cd build/gvisor && $(BUILD) -ldflags '-s -w' -o ../../$@ gvisor.dev/gvisor/runsc
	@touch $@

$(addprefix bin/,$(SHIM)): build/gvisor/go.mod build/gvisor/go.sum $(wildcard build/gvisor/cmd/*/*.go)
	cd build/gvisor && $(BUILD) -ldflags '-s -w' -o ../../$@ ./cmd/$(@F)
	@touch $@
