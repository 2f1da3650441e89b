package proxy

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
)

// late is how long an endpoint of a node waits at most for the news which host the node is on. The Berth that says so is
// made before the pod is bound, so it can only be another watch that is slower.
const late = 2 * time.Second

// remembered is for how long a node that is gone keeps its host: endpoints may name it a little longer. It is shorter than
// the pause before its address, and so its name, is given again.
const remembered = 30 * time.Second

// locations knows on which host each node is. There are at most as many as there are addresses of pods.
type locations struct {
	mu      sync.Mutex
	hosts   map[string]location
	changed chan struct{} // closed, and replaced, at each change
}

type location struct {
	host string
	gone time.Time // zero: it is there
}

// watchLocations learns from all Berths where their nodes are, until ctx ends.
func watchLocations(ctx context.Context, config *rest.Config) (*locations, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make the API client: %w", err)
	}
	l := newLocations()
	factory := dynamicinformer.NewDynamicSharedInformerFactory(client, 0)
	informer := factory.ForResource(v1alpha1.GroupVersion.WithResource("berths")).Informer()
	if err := informer.SetTransform(onlyLocation); err != nil {
		return nil, err
	}
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { l.set(o, true) },
		UpdateFunc: func(_, o any) { l.set(o, true) },
		DeleteFunc: func(o any) { l.set(o, false) },
	})
	if err != nil {
		return nil, err
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
		return nil, fmt.Errorf("learn which pods run on which host: %w", ctx.Err())
	}
	return l, nil
}

func newLocations() *locations {
	return &locations{hosts: map[string]location{}, changed: make(chan struct{})}
}

// onlyLocation drops what of a Berth nobody here reads.
func onlyLocation(o any) (any, error) {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return o, nil
	}
	node, host := nodeAndHost(u)
	slim := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"nodeName": node, "hostName": host}}}
	slim.SetGroupVersionKind(u.GroupVersionKind())
	slim.SetNamespace(u.GetNamespace())
	slim.SetName(u.GetName())
	slim.SetResourceVersion(u.GetResourceVersion())
	return slim, nil
}

func nodeAndHost(u *unstructured.Unstructured) (node, host string) {
	node, _, _ = unstructured.NestedString(u.Object, "spec", "nodeName")
	host, _, _ = unstructured.NestedString(u.Object, "spec", "hostName")
	return node, host
}

func (l *locations) set(o any, exists bool) {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = gone.Obj
	}
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return
	}
	node, host := nodeAndHost(u)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case exists && host != "":
		l.hosts[node] = location{host: host}
	case l.hosts[node].host == host:
		l.hosts[node] = location{host: host, gone: time.Now()}
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// hostOf is the host of a node of Berth's; of any other node, and of one that is long gone, it is empty.
func (l *locations) hostOf(ctx context.Context, node string) string {
	if !eks.IsNodeName(node) {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, late)
	defer cancel()
	for {
		l.mu.Lock()
		at, changed := l.hosts[node], l.changed
		l.mu.Unlock()
		if at.host != "" && (at.gone.IsZero() || time.Since(at.gone) < remembered) {
			return at.host
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ""
		}
	}
}
