package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/patching"
)

const (
	patchPoll         = 500 * time.Millisecond
	defaultPatchDelay = 72 * time.Hour
)

func patch(dirs layout.Dirs) *cobra.Command {
	var cluster, name, window string
	var all, dryRun, await bool
	var delay time.Duration
	c := &cobra.Command{Use: "patch", Short: "Recycle pods whose nodes are older than what their hosts make now", Args: cobra.NoArgs,
		Long: "Recycle pods whose nodes are older than what their hosts make now: each is told by an event and evicted, zone by zone, as far as " +
			"PodDisruptionBudgets allow; a pod that cannot be evicted is terminated after the delay, which another event announces. " +
			"With a window it does so again and again, while that is open; `kubectl get patches` shows how far it is, `kubectl delete patch` ends it.",
		Example: "  berth patch --dry-run\n  berth patch --wait\n  berth patch --name weekly --window 'Sun 03:00/4h'",
		RunE: func(c *cobra.Command, _ []string) error {
			kube, err := connect(dirs, cluster)
			if err != nil {
				return err
			}
			p, err := newPatch(name, window, delay, all)
			if err != nil {
				return err
			}
			if dryRun {
				return listSubjects(c.Context(), kube, p.Spec.Pods, c.OutOrStdout())
			}
			return startPatch(c.Context(), kube, p, await, c.OutOrStdout())
		}}
	f := c.Flags()
	f.StringVar(&cluster, "cluster", layout.DefaultCluster, "name of the cluster")
	f.StringVar(&name, "name", "", "name of the patch (default: a generated one)")
	f.StringVar(&window, "window", "", "when to do it, such as 'Sun,Wed 03:00/4h' or '03:00/4h' (UTC); default: now, once")
	f.DurationVar(&delay, "termination-delay", defaultPatchDelay, "how long a pod stays that could not be evicted")
	f.BoolVar(&all, "all", false, "recycle all pods, whatever their nodes' versions are")
	f.BoolVar(&dryRun, "dry-run", false, "list the pods and do nothing")
	f.BoolVar(&await, "wait", false, "wait until no pod is left to recycle")
	return c
}

func newPatch(name, window string, delay time.Duration, all bool) (*v1alpha1.Patch, error) {
	p := &v1alpha1.Patch{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.PatchSpec{Pods: v1alpha1.PatchOutdated, TerminationDelay: &metav1.Duration{Duration: delay}}}
	if name == "" {
		p.GenerateName = "patch-"
	}
	if all {
		p.Spec.Pods = v1alpha1.PatchAll
	}
	if delay < 0 {
		return nil, fmt.Errorf("--termination-delay %s is negative", delay)
	}
	if window == "" {
		return p, nil
	}
	var err error
	if p.Spec.Window, err = patching.ParseWindow(window); err != nil {
		return nil, fmt.Errorf("--window: %w", err)
	}
	return p, nil
}

// listSubjects prints which pods a patch would recycle.
func listSubjects(ctx context.Context, kube client.Client, which v1alpha1.PatchPods, out io.Writer) error {
	var pods corev1.PodList
	var berths v1alpha1.BerthList
	var hosts v1alpha1.HostList
	for _, list := range []client.ObjectList{&pods, &berths, &hosts} {
		if err := kube.List(ctx, list); err != nil {
			return fmt.Errorf("read the cluster's pods, berths and hosts: %w", err)
		}
	}
	subjects := patching.Subjects(which, pods.Items, berths.Items, hosts.Items, time.Now().Add(time.Second))
	if len(subjects) == 0 {
		fmt.Fprintln(out, "No pod would be recycled: every node is what its host makes now.")
		return nil
	}
	w := printers.GetNewTabWriter(out)
	fmt.Fprintln(w, "ZONE\tNAMESPACE\tNAME\tNODE_VERSION\tCURRENT")
	for _, s := range subjects {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Berth.Spec.Zone, s.Pod.Namespace, s.Pod.Name, none(s.Berth.Status.NodeVersion), none(s.Current))
	}
	return w.Flush()
}

func startPatch(ctx context.Context, kube client.Client, p *v1alpha1.Patch, await bool, out io.Writer) error {
	err := kube.Create(ctx, p)
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("a patch %s exists already: delete it (kubectl delete patch %s), or give another --name", p.Name, p.Name)
	}
	if err != nil {
		return fmt.Errorf("create patch %s: %w", p.Name, err)
	}
	fmt.Fprintf(out, "patch %s: pods created until now are subject to eviction (kubectl get patch %s)\n", p.Name, p.Name)
	if !await {
		return nil
	}
	said := ""
	err = wait.PollUntilContextCancel(ctx, patchPoll, true, func(ctx context.Context) (bool, error) {
		if err := kube.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return false, err
		}
		if now := progress(p); now != said {
			fmt.Fprintln(out, now)
			said = now
		}
		return p.Status.Phase == v1alpha1.PatchComplete, nil
	})
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("patch %s goes on without this command: %w", p.Name, err)
	}
	if err != nil {
		return fmt.Errorf("wait for patch %s: %w", p.Name, err)
	}
	return nil
}

// progress of a patch, in a line.
func progress(p *v1alpha1.Patch) string {
	s := p.Status
	switch {
	case s.Phase == "":
		return "waiting for berth-controller"
	case s.Zone != "":
		return fmt.Sprintf("%s zone %s: %d pods remain, %d blocked", s.Phase, s.Zone, s.Remaining, s.Blocked)
	case s.Blocked > 0:
		return fmt.Sprintf("%s: %d pods remain; %d could not be evicted, their events (%s) say until when they stay", s.Phase, s.Remaining, s.Blocked, eks.DetailTypeTermination)
	}
	return string(s.Phase)
}
