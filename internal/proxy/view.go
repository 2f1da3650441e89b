package proxy

import (
	"context"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	discoveryv1 "k8s.io/client-go/kubernetes/typed/discovery/v1"
)

// view is the cluster as one host's kube-proxy should see it: the only node is the host, and it runs every endpoint whose
// node is one of the host's. So traffic policy Local means this host, and topology its zone.
type view struct {
	kubernetes.Interface
	host   *v1.Node
	onHost func(node string) bool
}

func (c *view) CoreV1() corev1.CoreV1Interface { return &coreView{c.Interface.CoreV1(), c.host} }

func (c *view) DiscoveryV1() discoveryv1.DiscoveryV1Interface {
	return &discoveryView{c.Interface.DiscoveryV1(), c}
}

type coreView struct {
	corev1.CoreV1Interface
	host *v1.Node
}

func (c *coreView) Nodes() corev1.NodeInterface { return &hostOnly{host: c.host} }

// hostOnly are the nodes: the host, which never changes.
type hostOnly struct {
	corev1.NodeInterface
	host *v1.Node
}

func (n *hostOnly) List(context.Context, metav1.ListOptions) (*v1.NodeList, error) {
	return &v1.NodeList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []v1.Node{*n.host.DeepCopy()}}, nil
}

// Watch has nothing to tell. A reader that wants the initial state through it gets that first.
func (n *hostOnly) Watch(_ context.Context, options metav1.ListOptions) (watch.Interface, error) {
	w := watch.NewFakeWithChanSize(2, false)
	if options.SendInitialEvents != nil && *options.SendInitialEvents {
		w.Add(n.host.DeepCopy())
		w.Action(watch.Bookmark, &v1.Node{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "1",
			Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}})
	}
	return w, nil
}

type discoveryView struct {
	discoveryv1.DiscoveryV1Interface
	*view
}

func (d *discoveryView) EndpointSlices(namespace string) discoveryv1.EndpointSliceInterface {
	return &slices{d.DiscoveryV1Interface.EndpointSlices(namespace), d.view}
}

type slices struct {
	discoveryv1.EndpointSliceInterface
	*view
}

func (s *slices) List(ctx context.Context, options metav1.ListOptions) (*discovery.EndpointSliceList, error) {
	list, err := s.EndpointSliceInterface.List(ctx, options)
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		s.localize(&list.Items[i])
	}
	return list, nil
}

func (s *slices) Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	w, err := s.EndpointSliceInterface.Watch(ctx, options)
	if err != nil {
		return nil, err
	}
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
		if slice, ok := e.Object.(*discovery.EndpointSlice); ok && e.Type != watch.Bookmark {
			s.localize(slice)
		}
		return e, true
	}), nil
}

// localize names the host as the node of each endpoint that it runs.
func (s *slices) localize(slice *discovery.EndpointSlice) {
	for i, e := range slice.Endpoints {
		if e.NodeName != nil && s.onHost(*e.NodeName) {
			slice.Endpoints[i].NodeName = &s.host.Name
		}
	}
}
