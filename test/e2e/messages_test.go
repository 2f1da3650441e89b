package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMessages checks, on real pods, what users are told that no other test here shows, and that nothing is a dead end: each pod goes on when
// what it waits for is there.
func TestMessages(t *testing.T) {
	// Its addresses rest for a minute before it can go.
	t.Cleanup(func() {
		eventually(t, func() string {
			out, err := berth("kubectl", "delete", "subnet", "small", "--ignore-not-found")
			return failure(out, err)
		})
	})
	t.Run("no address", testNoAddress)
	t.Run("no profile and then one that is not ACTIVE", testMisconfigured)
	t.Run("no host", testNoHost)
	t.Run("a claim that is not bound", testClaim)
	t.Run("facts 5.1: aws-logging", testLogging)
	t.Run("a pod that may not be deleted", testDeleteFailed)
	t.Run("the pod's berth vanishes", testBerthMissing)
	t.Run("the host's agent is silent", testSilentAgent)
}

// given applies a manifest; what is in it goes when the test ends.
func given(t *testing.T, manifest string) {
	t.Helper()
	file := write(t, manifest)
	t.Cleanup(func() { kubectl(t, "delete", "-f", file, "--ignore-not-found", "--timeout=90s") })
	kubectl(t, "apply", "-f", file)
}

// write puts a manifest into a file. Its directory does not have the test's name: kubectl takes a comma for the end of a path.
func write(t *testing.T, manifest string) (file string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file = filepath.Join(dir, "manifest.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// failure is what a command said that failed.
func failure(out string, err error) string {
	if err == nil {
		return ""
	}
	return out
}

// sleeper is a pod that does nothing, with more in its spec.
func sleeper(name, labels, more string) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {%s}}, spec: {terminationGracePeriodSeconds: 0, %s containers: [{name: c, image: busybox, command: [sleep, \"3600\"]}]}}\n",
		name, labels, more)
}

func profileOf(name, more string) string {
	return fmt.Sprintf("---\n{apiVersion: berth.run/v1alpha1, kind: FargateProfile, metadata: {name: %s}, spec: {%s selectors: [{namespace: default, labels: {messages: %[1]s}}]}}\n", name, more)
}

// said waits until an event of the pod says the words, and until the condition does, in which it waits since some time.
func said(t *testing.T, pod, words string) {
	t.Helper()
	shows(t, words, "get", "events", "--field-selector", "reason=FailedScheduling,involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
	shows(t, words, "get", "pod", pod, "-o", `jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}`)
	shows(t, "waits since ", "get", "pod", pod, "-o", `jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}`)
}

func testMisconfigured(t *testing.T) {
	given(t, sleeper("early", "messages: later", "schedulerName: fargate-scheduler,"))
	said(t, "early", "Pod is not authorized to run on Fargate: it asks for scheduler fargate-scheduler, but ")
	given(t, sleeper("forced", "messages: later, eks.amazonaws.com/fargate-profile: later", "schedulerName: fargate-scheduler,"))
	said(t, "forced", "Misconfigured Fargate Profile: fargate profile later does not exist or is not ACTIVE")
	given(t, profileOf("later", "subnets: [public-local-1a],"))
	const issue = "CREATE_FAILED InvalidParameter Subnet public-local-1a provided in Fargate Profile is not a private subnet"
	shows(t, issue, "get", "fargateprofile", "later", "-o", "jsonpath={.status.status} {.status.health.issues[0].code} {.status.health.issues[0].message}")
	if out, err := berth("get", "fargateprofile", "--name", "later", "-o", "yaml"); err != nil || !strings.Contains(out, "health:\n    issues:\n    - code: InvalidParameter\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if out := kubectl(t, "describe", "fargateprofile", "later"); !strings.Contains(out, "InvalidParameter") {
		t.Errorf("kubectl describe does not tell of the issue:\n%s", out)
	}
	kubectl(t, "patch", "fargateprofile", "later", "--type=merge", "-p", `{"spec": {"subnets": ["private-local-1a"]}}`)
	kubectl(t, "wait", "--for=condition=Ready", "pod/early", "pod/forced", "--timeout=60s")
	shows(t, "ACTIVE", "get", "fargateprofile", "later", "-o", "jsonpath={.status.status}{.status.health}")
	if out := kubectl(t, "get", "fargateprofile", "later", "-o", "jsonpath={.status.health.issues}"); out != "" {
		t.Errorf("an ACTIVE profile has issues %s", out)
	}
	shows(t, "NetworkReady=True NodeRegistered=True SandboxReady=True Ready=True", "get", "berths", "-o",
		`go-template={{range .items}}{{if eq .spec.pod.name "early"}}{{range .status.conditions}}{{.type}}={{.status}} {{end}}{{end}}{{end}}`)
}

func testNoHost(t *testing.T) {
	host := kubectl(t, "get", "hosts", "-o", "jsonpath={.items[0].metadata.name}")
	open := func() { kubectl(t, "patch", "host", host, "--type=merge", "-p", `{"spec": {"unschedulable": false}}`) }
	t.Cleanup(open)
	kubectl(t, "patch", "host", host, "--type=merge", "-p", `{"spec": {"unschedulable": true}}`)
	given(t, profileOf("nohost", "")+sleeper("waiting", "messages: nohost", ""))
	said(t, "waiting", "Fargate capacity is unavailable at this time. Please try again later or in a different availability zone.")
	if out, err := berth("explain", "pod", "default/waiting"); err != nil || !strings.Contains(out, "Fargate capacity is unavailable") {
		t.Errorf("berth explain: %v\n%s", err, out)
	}
	open()
	kubectl(t, "wait", "--for=condition=Ready", "pod/waiting", "--timeout=60s")
}

// testNoAddress takes all eleven addresses of the smallest subnet there is. Pods that have ended hold theirs.
func testNoAddress(t *testing.T) {
	kubectl(t, "apply", "-f", write(t, "{apiVersion: berth.run/v1alpha1, kind: Subnet, metadata: {name: small}, spec: {cidr: 10.90.200.0/28, zone: local-1b}}\n"))
	given(t, profileOf("noaddress", "subnets: [small],"))
	given(t, `{apiVersion: batch/v1, kind: Job, metadata: {name: takers}, spec: {completions: 12, parallelism: 12, template: {
  metadata: {labels: {messages: noaddress}}, spec: {restartPolicy: Never, terminationGracePeriodSeconds: 0, containers: [{name: c, image: busybox, command: ["true"]}]}}}}`)
	shows(t, "11", "get", "job", "takers", "-o", "jsonpath={.status.succeeded}")
	last := ""
	eventually(t, func() string {
		last = kubectl(t, "get", "pods", "-l", "job-name=takers", "--field-selector", "status.phase=Pending", "-o", "jsonpath={.items[0].metadata.name}")
		return missing(last, "takers-")
	})
	said(t, last, "subnet small has no free address")
	shows(t, "False Exhausted 0 of 11 addresses are free", "get", "subnet", "small", "-o", "jsonpath={.status.conditions[0].status} {.status.conditions[0].reason} {.status.conditions[0].message}")
	shows(t, "False Exhausted subnet small has 0 of 11 addresses free", "get", "fargateprofile", "noaddress", "-o",
		`jsonpath={range .status.conditions[?(@.type=="AddressesAvailable")]}{.status} {.reason} {.message}{end}`)
	kubectl(t, "patch", "fargateprofile", "noaddress", "--type=merge", "-p", `{"spec": {"subnets": ["small", "private-local-1b"]}}`)
	shows(t, "12", "get", "job", "takers", "-o", "jsonpath={.status.succeeded}")
	shows(t, "True SomeExhausted subnet small has 0 of 11 addresses free", "get", "fargateprofile", "noaddress", "-o",
		`jsonpath={range .status.conditions[?(@.type=="AddressesAvailable")]}{.status} {.reason} {.message}{end}`)
}

func testClaim(t *testing.T) {
	given(t, profileOf("claim", "")+sleeper("claims", "messages: claim", "volumes: [{name: v, persistentVolumeClaim: {claimName: data}}],")+
		"---\n{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}, spec: {storageClassName: \"\", accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}}\n")
	said(t, "claims", "Pod not supported on Fargate: volumes not supported: v not supported because: PVC data not bound")
	given(t, "{apiVersion: v1, kind: PersistentVolume, metadata: {name: messages-data}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteMany], "+
		"claimRef: {namespace: default, name: data}, nfs: {server: 192.0.2.1, path: /}}}\n")
	t.Cleanup(func() { kubectl(t, "delete", "pod/claims", "pvc/data", "--timeout=60s") }) // or the volume cannot go
	shows(t, "Successfully assigned default/claims to fargate-ip-", "get", "events", "--field-selector", "reason=Scheduled,involvedObject.name=claims", "-o", "jsonpath={.items[*].message}")
}

func testLogging(t *testing.T) {
	const config = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {namespace: aws-observability, name: aws-logging}, data: {output.conf: %q}}\n"
	given(t, "{apiVersion: v1, kind: Namespace, metadata: {name: aws-observability, labels: {aws-observability: enabled}}}\n"+profileOf("logging", "")+
		fmt.Sprintf(config, "[OUTPUT]\n    Name kafka\n"))
	for pod, want := range map[string][2]string{
		"logs-badly": {"Disabled logging for pod due to invalid configmap. ", "LoggingDisabled: LOGGING_CONFIGMAP_INVALID"},
		"logs-well":  {"The aws-logging configmap is valid, but nothing routes by it", "LoggingDisabled: LOGGING_ROUTER_NOT_AVAILABLE"},
	} {
		if pod == "logs-well" {
			given(t, fmt.Sprintf(config, "[OUTPUT]\n    Name cloudwatch_logs\n    Match *\n    region local-1\n    log_group_name g\n    log_stream_prefix p\n"))
		} else {
			given(t, fmt.Sprintf(config, "[OUTPUT]\n    Name kafka\n"))
		}
		given(t, sleeper(pod, "messages: logging", ""))
		kubectl(t, "wait", "--for=condition=Ready", "pod/"+pod, "--timeout=60s")
		shows(t, want[0], "get", "events", "--field-selector", "reason=LoggingDisabled,involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
		if got := kubectl(t, "get", "pod", pod, "-o", "jsonpath={.metadata.annotations.Logging}"); got != want[1] {
			t.Errorf("annotation Logging of %s is %q, want %q", pod, got, want[1])
		}
	}
}

func testDeleteFailed(t *testing.T) {
	given(t, profileOf("kept", "")+sleeper("kept", "messages: kept", ""))
	kubectl(t, "wait", "--for=condition=Ready", "pod/kept", "--timeout=60s")
	const policy = `{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicy, metadata: {name: messages-keep}, spec: {
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [DELETE], resources: [pods]}]},
  validations: [{expression: "oldObject.metadata.name != 'kept'", message: "it is kept", reason: Forbidden}]}}
---
{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicyBinding, metadata: {name: messages-keep}, spec: {policyName: messages-keep, validationActions: [Deny]}}
`
	given(t, policy)
	eventually(t, func() string { // until the API server knows it
		out, _ := berth("kubectl", "delete", "pod", "kept", "--dry-run=server")
		return missing(out, "it is kept")
	})
	kubectl(t, "delete", "fargateprofile", "kept", "--wait=false")
	shows(t, "DELETE_FAILED AccessDenied default/kept", "get", "fargateprofile", "kept", "-o",
		"jsonpath={.status.status} {.status.health.issues[0].code} {.status.health.issues[0].resourceIds[0]}")
	shows(t, "it is kept; it is tried again", "get", "fargateprofile", "kept", "-o", "jsonpath={.status.conditions[0].message}")
	kubectl(t, "delete", "validatingadmissionpolicybinding", "messages-keep")
	kubectl(t, "wait", "--for=delete", "fargateprofile/kept", "pod/kept", "--timeout=90s")
}

func testBerthMissing(t *testing.T) {
	given(t, profileOf("missing", "")+sleeper("stray", "messages: missing", ""))
	kubectl(t, "wait", "--for=condition=Ready", "pod/stray", "--timeout=60s")
	uid, node := kubectl(t, "get", "pod", "stray", "-o", "jsonpath={.metadata.uid}"), kubectl(t, "get", "pod", "stray", "-o", "jsonpath={.spec.nodeName}")
	name := kubectl(t, "get", "berths", "-o", `jsonpath={.items[?(@.spec.pod.name=="stray")].metadata.name}`)
	kubectl(t, "patch", "berth", name, "--type=merge", "-p", `{"metadata": {"finalizers": null}}`)
	kubectl(t, "delete", "berth", name, "--ignore-not-found")
	shows(t, "Berth "+name+" is gone, and with it the pod's machine", "get", "events", "--field-selector", "reason=BerthMissing,involvedObject.name=stray", "-o", "jsonpath={.items[*].message}")
	eventually(t, func() string { return remains(uid, "pod/stray", node) })
}

// testSilentAgent stops the agent without ending it; after 40 s it is not counted on any more.
func testSilentAgent(t *testing.T) {
	pid := partPID("berth-host")
	signal := func(name string) {
		t.Helper()
		if out, err := exec.Command("kill", "-"+name, pid).CombinedOutput(); err != nil {
			t.Fatalf("kill -%s %s: %v, %s", name, pid, err, out)
		}
	}
	given(t, profileOf("silent", ""))
	t.Cleanup(func() { signal("CONT") })
	signal("STOP")
	host := kubectl(t, "get", "hosts", "-o", "jsonpath={.items[0].metadata.name}")
	ready := func(want string) {
		t.Helper()
		shows(t, want, "get", "host", host, "-o", `jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.reason} {.message}{end}`)
	}
	ready("False AgentSilent the host agent has not reported since ")
	shows(t, "ACTIVE ClusterUnreachable "+host, "get", "fargateprofile", "silent", "-o", "jsonpath={.status.status} {.status.health.issues[0].code} {.status.health.issues[0].resourceIds[0]}")
	given(t, sleeper("unheard", "messages: silent", ""))
	said(t, "unheard", "Fargate capacity is unavailable at this time.")
	signal("CONT")
	ready("True AgentReports")
	kubectl(t, "wait", "--for=condition=Ready", "pod/unheard", "--timeout=60s")
	if out := kubectl(t, "get", "fargateprofile", "silent", "-o", "jsonpath={.status.health.issues}"); out != "" {
		t.Errorf("its profile still has issues %s", out)
	}
}
