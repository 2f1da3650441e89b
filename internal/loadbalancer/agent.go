// Package loadbalancer serves Services of type LoadBalancer and Ingresses with pods as their targets. HAProxy does the work
// (docs/decisions/20261123-haproxy.md); this package feeds it: it gives out addresses of public subnets, writes HAProxy's
// configuration from the cluster's objects, and lets it take that over without dropping a connection.
package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/ipam"
)

// Options of a load balancer.
type Options struct {
	Kubeconfig string
	// RunDir is for HAProxy's files and socket.
	RunDir     string
	HealthPort int
	// Default: Services of type LoadBalancer and Ingresses that name no class are Berth's.
	Default bool
}

// notRunningPause is how often a HAProxy that does not run is looked for.
const notRunningPause = 100 * time.Millisecond

// Run feeds HAProxy until ctx ends. HAProxy goes on with what it has.
func Run(ctx context.Context, o Options) error {
	config, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	if err != nil {
		return fmt.Errorf("read kubeconfig %s: %w", o.Kubeconfig, err)
	}
	config.QPS = -1
	scheme := kruntime.NewScheme()
	if err := errors.Join(clientscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme), gateway.Install(scheme)); err != nil {
		return fmt.Errorf("build the scheme: %w", err)
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme, Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: fmt.Sprintf("127.0.0.1:%d", o.HealthPort),
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{
			&corev1.Secret{}: {Field: fields.OneTermEqualSelector("type", string(corev1.SecretTypeTLS))},
		}},
	})
	if err != nil {
		return fmt.Errorf("make the load balancer's manager: %w", err)
	}
	proxy, err := newProxy(o.RunDir)
	if err != nil {
		return err
	}
	host, err := newHost()
	if err != nil {
		return err
	}
	r := &reconciler{client: mgr.GetClient(), recorder: mgr.GetEventRecorderFor("berth-lb"), proxy: proxy, host: host, pool: newPool(), byDefault: o.Default, said: map[string]string{}} //nolint:staticcheck // events of core/v1, as everywhere here
	if err := r.setup(mgr); err != nil {
		return err
	}
	if err := errors.Join(mgr.AddReadyzCheck("ping", healthz.Ping), mgr.AddHealthzCheck("ping", healthz.Ping)); err != nil {
		return fmt.Errorf("set the load balancer up: %w", err)
	}
	return mgr.Start(ctx)
}

// publisher makes addresses the host's own, and no other ones, and lets pods reach these ports of them. It may be asked for
// what is so already.
type publisher interface {
	publish(ctx context.Context, addrs []netip.Addr, ports []netip.AddrPort) error
}

// reconciler brings HAProxy in line with the whole cluster: all objects lead to the same request.
type reconciler struct {
	client    client.Client
	recorder  record.EventRecorder
	proxy     *proxy
	host      publisher
	pool      *pool
	byDefault bool
	said      map[string]string // object's UID and reason -> message of its last event
}

func (r *reconciler) setup(mgr ctrl.Manager) error {
	all := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{}}
	})
	b := ctrl.NewControllerManagedBy(mgr).Named("loadbalancer")
	for _, o := range []client.Object{&corev1.Service{}, &discovery.EndpointSlice{}, &networking.Ingress{}, &networking.IngressClass{}, &corev1.Secret{}, &v1alpha1.Subnet{},
		&gateway.GatewayClass{}, &gateway.Gateway{}, &gateway.HTTPRoute{}, &gateway.ReferenceGrant{}, &corev1.Namespace{}} {
		b = b.Watches(o, all)
	}
	return b.Complete(r)
}

// Reconcile gives out addresses, feeds HAProxy and writes status.
func (r *reconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if err := r.ensureClasses(ctx); err != nil {
		return reconcile.Result{}, err
	}
	c, subnets, err := r.read(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	problems := r.pool.assign(&c, subnets, time.Now())
	built := Build(c)
	if err := r.host.publish(ctx, slices.Clone(built.Config.Held), built.Config.ports()); err != nil {
		return reconcile.Result{}, err
	}
	err = r.proxy.apply(ctx, built.Config, built.Certs)
	if errors.Is(err, errNotRunning) {
		return reconcile.Result{RequeueAfter: notRunningPause}, nil
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	r.tell(append(problems, built.Problems...))
	return reconcile.Result{RequeueAfter: ipam.ReusePause}, errors.Join(r.writeStatus(ctx, c), r.writeGateways(ctx, c, built), r.writeUsage(ctx, subnets))
}

func (r *reconciler) read(ctx context.Context) (Cluster, []v1alpha1.Subnet, error) {
	var services corev1.ServiceList
	var endpoints discovery.EndpointSliceList
	var ingresses networking.IngressList
	var classes networking.IngressClassList
	var secrets corev1.SecretList
	var subnets v1alpha1.SubnetList
	var gatewayClasses gateway.GatewayClassList
	var gateways gateway.GatewayList
	var routes gateway.HTTPRouteList
	var grants gateway.ReferenceGrantList
	var namespaces corev1.NamespaceList
	for _, list := range []client.ObjectList{&services, &endpoints, &ingresses, &classes, &secrets, &subnets,
		&gatewayClasses, &gateways, &routes, &grants, &namespaces} {
		if err := r.client.List(ctx, list); err != nil {
			return Cluster{}, nil, fmt.Errorf("read the cluster: %w", err)
		}
	}
	gone := func(o metav1.Object) bool { return o.GetDeletionTimestamp() != nil }
	return Cluster{
		Services:  slices.DeleteFunc(services.Items, func(s corev1.Service) bool { return gone(&s) }),
		Slices:    endpoints.Items,
		Ingresses: slices.DeleteFunc(ingresses.Items, func(i networking.Ingress) bool { return gone(&i) }),
		Gateways: slices.DeleteFunc(gateways.Items, func(g gateway.Gateway) bool {
			return gone(&g) || !slices.ContainsFunc(gatewayClasses.Items, func(c gateway.GatewayClass) bool {
				return c.Name == string(g.Spec.GatewayClassName) && c.Spec.ControllerName == GatewayController
			})
		}),
		HTTPRoutes: slices.DeleteFunc(routes.Items, func(r gateway.HTTPRoute) bool { return gone(&r) }),
		Grants:     grants.Items, Namespaces: namespaces.Items,
		Default: r.byDefault, Classes: classes.Items, GatewayClasses: gatewayClasses.Items, Secrets: secrets.Items,
		Pods: ranges(subnets.Items, v1alpha1.SubnetPrivate), Public: ranges(subnets.Items, v1alpha1.SubnetPublic), Accepts: r.proxy.accepts,
	}, subnets.Items, nil
}

// ensureClasses makes IngressClasses berth and alb and GatewayClass berth if they do not exist. Whether berth is the cluster's default class is
// said once, so that it can be changed.
func (r *reconciler) ensureClasses(ctx context.Context) error {
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
	own := meta("berth")
	if r.byDefault {
		own.Annotations = map[string]string{networking.AnnotationIsDefaultIngressClass: "true"}
	}
	for _, c := range []client.Object{
		&networking.IngressClass{ObjectMeta: own, Spec: networking.IngressClassSpec{Controller: IngressController}},
		&networking.IngressClass{ObjectMeta: meta("alb"), Spec: networking.IngressClassSpec{Controller: IngressController}},
		&gateway.GatewayClass{ObjectMeta: meta("berth"), Spec: gateway.GatewayClassSpec{ControllerName: GatewayController}},
	} {
		there := c.DeepCopyObject().(client.Object)
		if err := r.client.Get(ctx, client.ObjectKeyFromObject(c), there); client.IgnoreNotFound(err) != nil {
			return err
		} else if err == nil {
			continue
		}
		if err := client.IgnoreAlreadyExists(r.client.Create(ctx, c)); err != nil {
			return fmt.Errorf("create class %s: %w", c.GetName(), err)
		}
	}
	return nil
}

// tell makes an event of each problem, once until it changes.
func (r *reconciler) tell(problems []Problem) {
	now := map[string]string{}
	for _, p := range problems {
		key := string(p.Object.GetUID()) + p.Reason + p.Message
		now[key] = p.Message
		if r.said[key] == "" {
			r.recorder.Event(p.Object, corev1.EventTypeWarning, p.Reason, p.Message)
		}
	}
	r.said = now
}

// ranges are those of the subnets of a type.
func ranges(subnets []v1alpha1.Subnet, kind v1alpha1.SubnetType) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range subnets {
		if prefix, err := netip.ParsePrefix(s.Spec.CIDR); err == nil && s.Spec.Type == kind {
			out = append(out, prefix)
		}
	}
	return out
}

// writeStatus says at which address a Service or Ingress is served, and takes back what was said of one that is not.
func (r *reconciler) writeStatus(ctx context.Context, c Cluster) error {
	for i := range c.Services {
		s := &c.Services[i]
		before := s.DeepCopy()
		if addr, served := c.Addr[client.ObjectKeyFromObject(s)]; served {
			mode := corev1.LoadBalancerIPModeProxy // kube-proxy must not take a short cut past HAProxy
			if byKubeProxy(s) {
				mode = corev1.LoadBalancerIPModeVIP
			}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: addr.String(), IPMode: ptr.To(mode)}}
		} else if in := s.Status.LoadBalancer.Ingress; len(in) > 0 && c.public(in[0].IP) {
			s.Status.LoadBalancer.Ingress = nil
		}
		if err := r.patchStatus(ctx, s, before, equality.Semantic.DeepEqual(before.Status, s.Status)); err != nil {
			return err
		}
	}
	for i := range c.Ingresses {
		in := &c.Ingresses[i]
		before := in.DeepCopy()
		if Ours(in, c.Classes) && c.Web.IsValid() {
			in.Status.LoadBalancer.Ingress = []networking.IngressLoadBalancerIngress{{IP: c.Web.String()}}
		} else if at := in.Status.LoadBalancer.Ingress; len(at) > 0 && c.public(at[0].IP) {
			in.Status.LoadBalancer.Ingress = nil
		}
		if err := r.patchStatus(ctx, in, before, equality.Semantic.DeepEqual(before.Status, in.Status)); err != nil {
			return err
		}
	}
	return nil
}

// writeUsage tells how full the public subnets are. Addresses that rest become free without an event.
func (r *reconciler) writeUsage(ctx context.Context, subnets []v1alpha1.Subnet) error {
	now := time.Now()
	for i := range subnets {
		s := &subnets[i]
		a := r.pool.subnets[s.Spec.CIDR]
		prefix, err := netip.ParsePrefix(s.Spec.CIDR)
		if s.Spec.Type != v1alpha1.SubnetPublic || a == nil || err != nil {
			continue
		}
		before := s.DeepCopy()
		s.Status.AvailableIPs = int32(a.Free(now))
		s.Status.UsedIPs = int32(ipam.Size(prefix)) - s.Status.AvailableIPs
		if err := r.patchStatus(ctx, s, before, equality.Semantic.DeepEqual(before.Status, s.Status)); err != nil {
			return err
		}
	}
	return nil
}

func (r *reconciler) patchStatus(ctx context.Context, o, before client.Object, same bool) error {
	if same {
		return nil
	}
	if err := r.client.Status().Patch(ctx, o, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the status of %s/%s: %w", o.GetNamespace(), o.GetName(), err)
	}
	return nil
}
