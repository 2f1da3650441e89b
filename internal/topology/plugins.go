package topology

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/core"
	informersv1 "k8s.io/client-go/informers/core/v1"
	listersv1 "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/interpodaffinity"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/nodeaffinity"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/podtopologyspread"
)

type filter interface {
	fwk.PreFilterPlugin
	fwk.FilterPlugin
}

type scorer interface {
	fwk.PreScorePlugin
	fwk.ScorePlugin
}

// plugins of kube-scheduler, with its defaults, but for spreading pods that do not ask for it: that is placement's.
type plugins struct {
	filters []filter
	scores  []scorer
}

func newPlugins(ctx context.Context, nodes []fwk.NodeInfo, namespaces []corev1.Namespace) (plugins, error) {
	var out plugins
	h := handle{nodes: nodes, namespaces: cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil)}
	for i := range namespaces {
		if err := h.namespaces.Add(&namespaces[i]); err != nil {
			return out, fmt.Errorf("know namespace %s: %w", namespaces[i].Name, err)
		}
	}
	gates := feature.NewSchedulerFeaturesFromGates(utilfeature.DefaultFeatureGate)
	spread, err := podtopologyspread.New(ctx, &config.PodTopologySpreadArgs{DefaultingType: config.ListDefaulting}, h, gates)
	if err != nil {
		return out, fmt.Errorf("make plugin %s: %w", podtopologyspread.Name, err)
	}
	affinity, err := interpodaffinity.New(ctx, &config.InterPodAffinityArgs{HardPodAffinityWeight: 1}, h, gates)
	if err != nil {
		return out, fmt.Errorf("make plugin %s: %w", interpodaffinity.Name, err)
	}
	node, err := nodeaffinity.New(ctx, &config.NodeAffinityArgs{}, h, gates)
	if err != nil {
		return out, fmt.Errorf("make plugin %s: %w", nodeaffinity.Name, err)
	}
	for _, p := range []fwk.Plugin{spread, affinity} {
		f, ok := p.(filter)
		if !ok {
			return out, fmt.Errorf("plugin %s of this Kubernetes version does not filter", p.Name())
		}
		out.filters = append(out.filters, f)
	}
	for _, p := range []fwk.Plugin{spread, affinity, node} {
		s, ok := p.(scorer)
		if !ok {
			return out, fmt.Errorf("plugin %s of this Kubernetes version does not score", p.Name())
		}
		out.scores = append(out.scores, s)
	}
	return out, nil
}

// handle is the part of kube-scheduler that these plugins use; what it does not have they never ask for.
type handle struct {
	fwk.Handle
	nodes      []fwk.NodeInfo
	namespaces cache.Indexer
}

func (h handle) Parallelizer() fwk.Parallelizer         { return inline{} }
func (h handle) SnapshotSharedLister() fwk.SharedLister { return lister{nodes: h.nodes} }
func (h handle) SharedInformerFactory() informers.SharedInformerFactory {
	return factory{indexer: h.namespaces}
}

// inline does what is to be done piece by piece: there are a few nodes.
type inline struct{}

func (inline) Until(ctx context.Context, pieces int, do workqueue.DoWorkPieceFunc, _ string) {
	for i := 0; i < pieces && ctx.Err() == nil; i++ {
		do(i)
	}
}

type lister struct {
	fwk.SharedLister
	nodes nodeList
}

func (l lister) NodeInfos() fwk.NodeInfoLister { return l.nodes }

type nodeList []fwk.NodeInfo

func (l nodeList) List() ([]fwk.NodeInfo, error) { return l, nil }

func (l nodeList) HavePodsWithAffinityList() ([]fwk.NodeInfo, error) {
	return l.with(fwk.NodeInfo.GetPodsWithAffinity), nil
}

func (l nodeList) HavePodsWithRequiredAntiAffinityList() ([]fwk.NodeInfo, error) {
	return l.with(fwk.NodeInfo.GetPodsWithRequiredAntiAffinity), nil
}

func (l nodeList) HavePodsWithRequiredNonHostScopedAntiAffinityList() ([]fwk.NodeInfo, error) {
	return l.with(fwk.NodeInfo.GetPodsWithRequiredNonHostScopedAntiAffinity), nil
}

func (l nodeList) Get(name string) (fwk.NodeInfo, error) {
	for _, n := range l {
		if n.Node().Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("there is no node %s", name)
}

func (l nodeList) with(pods func(fwk.NodeInfo) []fwk.PodInfo) []fwk.NodeInfo {
	return slices.DeleteFunc(slices.Clone(l), func(n fwk.NodeInfo) bool { return len(pods(n)) == 0 })
}

// factory, group, version and namespaces lead to the lister of namespaces, and to nothing else.
type factory struct {
	informers.SharedInformerFactory
	indexer cache.Indexer
}

func (f factory) Core() core.Interface { return group{indexer: f.indexer} }

type group struct {
	core.Interface
	indexer cache.Indexer
}

func (g group) V1() informersv1.Interface { return version{indexer: g.indexer} }

type version struct {
	informersv1.Interface
	indexer cache.Indexer
}

func (v version) Namespaces() informersv1.TypedNamespaceInformer {
	return namespaces{indexer: v.indexer}
}

type namespaces struct {
	informersv1.TypedNamespaceInformer
	indexer cache.Indexer
}

func (n namespaces) Lister() listersv1.NamespaceLister {
	return listersv1.NewNamespaceLister(n.indexer)
}
