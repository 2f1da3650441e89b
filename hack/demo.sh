#!/usr/bin/env bash
# Plays Berth's main job in the terminal: from an empty machine to nginx pods, each on a node of its own.
# Every step does what it says with real kubectl and checks what it shows; the first that fails ends the story with its name.
# ISOLATION (auto, microvm or gvisor) is what the pods run in; empty is the cluster's default.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/bin:$PATH"
exec 3>&1
began=$(date +%s.%N)
state=$(mktemp -d)
forward=""

elapsed() { awk -v a="$began" -v b="$(date +%s.%N)" 'BEGIN { printf "%6.1f s", b - a }'; }
step() { current="$*"; printf '\n\033[1m[%s] %s\033[0m\n' "$(elapsed)" "$*" >&3; }
# What a command leaves running must not hold the demo's output open.
show() { printf '\033[36m$ %s\033[0m\n' "$*" >&3; "$@" 3>&-; }
fail() { printf '\033[31mfailed: %s\033[0m\n' "$*" >&2; exit 1; }
finish() {
  local code=$?
  [ -z "$forward" ] || kill "$forward" 2>/dev/null || true
  rm -rf "$state"
  if [ $code -ne 0 ]; then
    printf '\n\033[31mThe demo stopped at: %s\033[0m\nThe cluster still runs. Look with: bin/berth status, bin/berth kubectl get events -A, and the logs in /var/log/berth. Stop it with: make down\n' "${current:-start}" >&2
  fi
}
trap finish EXIT

app=fargate-sample-nginx
isolation=${ISOLATION:-}
with_isolation=(${isolation:+--isolation "$isolation"})
pods() { kubectl get pods -l app=$app -o jsonpath="{range .items[?(@.status.phase==\"Running\")]}{.metadata.name} {.status.podIP} {.spec.nodeName}{\"\n\"}{end}"; }
# nodes counts those that are not for the cluster's own pods (its DNS).
nodes() { kubectl get nodes -o name | grep -vcF "$(kubectl -n kube-system get pods -o jsonpath='{range .items[*]}node/{.spec.nodeName}{"\n"}{end}')" || true; }
# until_true SECONDS COMMAND...: looks again each fifth of a second.
until_true() {
  local end=$((SECONDS + $1)); shift
  until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done
}
nodes_are() { [ "$(nodes)" -eq "$1" ]; }

if [ -z "$(bin/berth status -o json 2>/dev/null | grep -o '"ready": *true' || true)" ]; then
  step "Start a Kubernetes cluster on this machine (berth up)"
  show berth up "${with_isolation[@]}"
fi
export KUBECONFIG="$state/kubeconfig"
berth kubeconfig > "$KUBECONFIG"

step "Clear away what an earlier demo left"
kubectl delete ingress,deployment,job,cronjob,pod,service -l demo=berth --ignore-not-found --wait=true >/dev/null
berth delete fargateprofile --cluster berth --name web --wait >/dev/null 2>&1 || true
until_true 60 nodes_are 0 || fail "nodes of an earlier demo did not go away"

step "A profile says which pods run on Berth (the flags are those of eksctl)"
show berth create fargateprofile --cluster berth --name web --namespace default --labels app=$app "${with_isolation[@]}"
show berth get fargateprofile --cluster berth

step "An ordinary Deployment, two replicas of nginx. Nobody makes a node."
cat > "$state/nginx.yaml" <<YAML
apiVersion: apps/v1
kind: Deployment
metadata:
  name: $app
  labels: {app: $app, demo: berth}
spec:
  replicas: 2
  selector: {matchLabels: {app: $app}}
  template:
    metadata: {labels: {app: $app}}
    spec:
      containers:
      - name: nginx
        image: nginx
        ports: [{name: http, containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
YAML
show kubectl apply -f "$state/nginx.yaml"
show kubectl rollout status deployment/$app --timeout=120s

step "Two pods, each on a node of its own, in different zones; the node's address is the pod's (the other nodes are CoreDNS's)"
show kubectl get pod -o wide
show kubectl get nodes -o wide
nodes_are 2 || fail "expected two nodes"
[ "$(pods | while read -r name ip node; do kubectl get node "$node" -o jsonpath='{.metadata.labels.topology\.kubernetes\.io/zone}{"\n"}'; done | sort -u | wc -l)" -eq 2 ] || fail "expected two zones"
while read -r name ip node; do
  [ "$(kubectl get node "$node" -o jsonpath='{.status.addresses[?(@.type=="InternalIP")].address}')" = "$ip" ] || fail "the node of $name has another address than the pod"
done < <(pods)

step "What each pod runs in: a machine of its own, and why this kind"
show kubectl get berths -o custom-columns='POD:.spec.pod.name,ISOLATION:.spec.isolation,WHY:.spec.isolationReason'
isolations=$(kubectl get berths -o jsonpath='{range .items[*]}{.spec.isolation}{"\n"}{end}' | sort -u)
case $isolation in microvm|gvisor) [ "$isolations" = "$isolation" ] || fail "expected isolation $isolation, got $isolations" ;; esac

step "nginx answers on each pod's address"
while read -r name ip node; do
  show curl -sS --max-time 5 "http://$ip/" -o "$state/page"
  grep -m1 -o '<title>.*</title>' "$state/page"
done < <(pods)

step "A Service: other pods find nginx by its name, wherever its pods are"
kubectl expose deployment $app --port=80 --labels=demo=berth >/dev/null
show kubectl get service $app
read -r first _ < <(pods)
printf '\033[36m$ kubectl exec %s -- curl -sS http://%s/\033[0m\n' "$first" "$app"
reached() { kubectl exec "$first" -- curl -sS --max-time 5 "http://$app/" 2>/dev/null | grep -o '<title>.*</title>'; }
until_true 60 reached || fail "the Service did not answer by its name"

step "One more replica: a third node comes by itself"
show kubectl scale deployment $app --replicas=3
show kubectl rollout status deployment/$app --timeout=120s
nodes_are 3 || fail "expected three nodes"
show kubectl get nodes

step "Down to one: two nodes go"
show kubectl scale deployment $app --replicas=1
until_true 60 nodes_are 1 || fail "expected one node"
show kubectl get nodes

read -r pod _ < <(pods)
step "logs, exec, port-forward, cp, attach, debug work as on any node"
show kubectl logs "$pod" --tail=2
show script -qec "kubectl exec -it $pod -- sh -c '[ -t 0 ] && echo a terminal of \$(stty size), kernel \$(uname -r)'" /dev/null
kubectl port-forward "pod/$pod" 18080:80 >"$state/forward.log" 2>&1 & forward=$!
until_true 10 grep -qs Forwarding "$state/forward.log" || fail "port-forward did not start"
show curl -sS --max-time 5 -o /dev/null -w 'port-forward answers %{http_code}\n' http://127.0.0.1:18080/
kill "$forward"; wait "$forward" 2>/dev/null || true; forward=""
echo "hello from $(hostname)" > "$state/hello.txt"
show kubectl cp "$state/hello.txt" "$pod:/tmp/hello.txt"
show kubectl exec "$pod" -- cat /tmp/hello.txt
kubectl run attach-me --labels=app=$app,demo=berth --image=busybox --restart=Never -- sh -c 'while true; do echo still here; sleep 1; done' >/dev/null
kubectl wait --for=condition=Ready pod/attach-me --timeout=60s >/dev/null
printf '\033[36m$ kubectl attach attach-me\033[0m\n'
(timeout 4 kubectl attach attach-me 2>/dev/null || true) > "$state/attach"
grep -m1 'still here' "$state/attach" || fail "attach showed nothing"
kubectl delete pod attach-me --now >/dev/null
show kubectl debug "$pod" --image=busybox --container=look -q -- sh -c 'echo an ephemeral container sees $(wget -qO- http://127.0.0.1/ | wc -c) bytes of nginx'
until_true 30 sh -c "kubectl logs $pod -c look 2>/dev/null | grep 'ephemeral container sees'" || fail "the debug container said nothing"

step "A Job runs to completion, a CronJob keeps time"
cat > "$state/jobs.yaml" <<YAML
apiVersion: batch/v1
kind: Job
metadata: {name: pi, labels: {demo: berth}}
spec:
  template:
    metadata: {labels: {app: $app}}
    spec:
      restartPolicy: Never
      containers: [{name: pi, image: busybox, command: [sh, -c, "echo 3.14159; exit 0"]}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick, labels: {demo: berth}}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        metadata: {labels: {app: $app}}
        spec:
          restartPolicy: Never
          containers: [{name: tick, image: busybox, command: [date]}]
YAML
show kubectl apply -f "$state/jobs.yaml"
show kubectl wait --for=condition=Complete job/pi --timeout=60s
show kubectl logs job/pi
echo "(the CronJob starts at the next full minute)"
ticked() { kubectl get jobs -o jsonpath='{range .items[?(@.status.succeeded==1)]}{.metadata.name}{"\n"}{end}' | grep -q '^tick-'; }
until_true 90 ticked || fail "the CronJob did not run"
show kubectl get cronjob,job

step "A pod outside every profile waits, as everywhere, for a node that suits it"
kubectl run outside --labels=demo=berth --image=nginx >/dev/null
unschedulable() { kubectl get pod outside -o jsonpath='{.status.conditions[?(@.type=="PodScheduled")].message}' | grep -q 'nodes are available'; }
until_true 30 unschedulable || fail "the default scheduler said nothing"
show kubectl get pod outside
kubectl get pod outside -o jsonpath='{.status.conditions[?(@.type=="PodScheduled")].message}{"\n"}'

step "Published: an Ingress on a load balancer's address, straight to the pods"
show kubectl create ingress $app --class=berth --rule="nginx.example/*=$app:80"
kubectl label ingress $app demo=berth >/dev/null
published() { lb=$(kubectl get ingress $app -o jsonpath='{.status.loadBalancer.ingress[0].ip}') && [ -n "$lb" ]; }
until_true 30 published || fail "the Ingress got no address"
show kubectl get ingress $app
printf '\033[36m$ curl -H "Host: nginx.example" http://%s/\033[0m\n' "$lb"
answered() { curl -sS --max-time 5 -H 'Host: nginx.example' "http://$lb/" 2>/dev/null | grep -o '<title>.*</title>'; }
until_true 30 answered || fail "the Ingress did not answer"

step "Done"
kubectl delete ingress,deployment,job,cronjob,pod,service -l demo=berth --wait=true >/dev/null
berth delete fargateprofile --cluster berth --name web --wait >/dev/null
cat <<TEXT
What it made is removed again. The cluster goes on running. Use it:    export KUBECONFIG=/var/lib/berth/kubeconfig/admin   (or: bin/berth kubectl ...)
Stop it and leave nothing behind:       make down
TEXT
