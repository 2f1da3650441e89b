// Package bench is what the benchmarks share: a connection to the running local cluster and profiles for their pods. Only
// the programs below test/bench import it.
package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/localcluster"
)

// pollInterval of what cannot be watched in one place.
const pollInterval = 20 * time.Millisecond

// Cluster is the running local cluster, as its administrator sees it.
type Cluster struct {
	client.Client
	Kube kubernetes.Interface
}

// Connect connects to the cluster that `berth up` started.
func Connect() (*Cluster, error) {
	c, config, err := localcluster.Client(layout.Default.AdminKubeconfig())
	if err != nil {
		return nil, err
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return &Cluster{c, kube}, nil
}

// Profile makes an ACTIVE profile of the name that takes the pods of namespace default with label bench=NAME. An empty isolation is
// the cluster's default.
func (c *Cluster) Profile(ctx context.Context, name string, sizing v1alpha1.Sizing, isolation v1alpha1.Isolation) (*v1alpha1.FargateProfile, error) {
	p := &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.FargateProfileSpec{Sizing: sizing, Isolation: isolation,
		Selectors: []v1alpha1.Selector{{Namespace: metav1.NamespaceDefault, Labels: map[string]string{"bench": name}}}}}
	if err := c.Create(ctx, p); err != nil {
		return nil, fmt.Errorf("create profile %s (is another bench running? berth delete fargateprofile --name %s): %w", name, name, err)
	}
	return p, Until(ctx, func() (bool, error) {
		err := c.Get(ctx, client.ObjectKeyFromObject(p), p)
		return p.Status.Status == v1alpha1.ProfileActive, err
	})
}

// Isolations are those that the cluster's hosts can run.
func (c *Cluster) Isolations(ctx context.Context) ([]v1alpha1.Isolation, error) {
	var hosts v1alpha1.HostList
	if err := c.List(ctx, &hosts); err != nil {
		return nil, fmt.Errorf("list hosts: %w", err)
	}
	var out []v1alpha1.Isolation
	for _, h := range hosts.Items {
		for _, i := range h.Status.Isolations {
			if !slices.Contains(out, i) {
				out = append(out, i)
			}
		}
	}
	return out, nil
}

// Until asks again and again until the answer is yes, an error, or ctx ends.
func Until(ctx context.Context, done func() (bool, error)) error {
	for {
		if yes, err := done(); err != nil || yes {
			return err
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
