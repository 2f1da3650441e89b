// Package controller runs Berth's controllers in one process; All is the list of them.
package controller

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"time"

	certificates "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/admission"
	"github.com/berth-run/berth/internal/controller/berth"
	"github.com/berth-run/berth/internal/controller/host"
	"github.com/berth-run/berth/internal/controller/node"
	"github.com/berth-run/berth/internal/controller/nodecert"
	"github.com/berth-run/berth/internal/controller/patch"
	"github.com/berth-run/berth/internal/controller/profile"
	"github.com/berth-run/berth/internal/controller/scheduler"
	"github.com/berth-run/berth/internal/controller/subnet"
	"github.com/berth-run/berth/internal/eks"
	rules "github.com/berth-run/berth/internal/profile"
)

// Options of the controllers' process.
type Options struct {
	Kubeconfig, Region                 string
	Cluster                            string // its name, in messages
	Quotas                             rules.Quotas
	Isolation                          v1alpha1.Isolation // of profiles that name none; empty is auto
	WebhookCert, WebhookKey, WebhookCA string             // PEM files
	WebhookPort                        int                // 0 means eks.WebhookPort
	HealthPort                         int
	MetricsPort                        int // on loopback; 0: none
	LeaderElect                        bool
}

// Scheme knows Kubernetes' and Berth's types.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err) // the types of this program clash with each other: a mistake in it
		}
	}
	return s
}

// Setup is one controller.
type Setup interface{ Setup(ctrl.Manager) error }

// All controllers of a cluster.
func All(mgr ctrl.Manager, kube kubernetes.Interface, recorder record.EventRecorder, o Options) []Setup {
	c, live, addresses := mgr.GetClient(), mgr.GetAPIReader(), scheduler.NewAddresses()
	pods := scheduler.New(c, recorder, addresses, o.Region)
	pods.Live, pods.Isolation = live, o.Isolation
	return []Setup{
		pods,
		&berth.Reconciler{Client: c, Live: live, Recorder: recorder, Now: time.Now},
		&profile.Reconciler{Client: c, Quotas: o.Quotas, Cluster: o.Cluster, Isolation: o.Isolation},
		&subnet.Reconciler{Client: c, Live: live, Usage: addresses, Now: time.Now},
		&host.Reconciler{Client: c, Now: time.Now},
		&patch.Reconciler{Client: c, Recorder: recorder, Now: time.Now, Cluster: o.Cluster},
		&node.Reconciler{Client: c, Live: live},
		&nodecert.Reconciler{Client: c, Live: live, Approver: kube},
	}
}

// Run runs the controllers until ctx ends.
func Run(ctx context.Context, o Options) error {
	if err := o.Isolation.Validate(); err != nil {
		return fmt.Errorf("--isolation: %w", err)
	}
	if o.WebhookPort == 0 {
		o.WebhookPort = eks.WebhookPort
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	if err != nil {
		return fmt.Errorf("read kubeconfig %s: %w", o.Kubeconfig, err)
	}
	config.QPS = -1 // the API server's priority and fairness limits us, not a guess made here
	ca, err := os.ReadFile(o.WebhookCA)
	if err != nil {
		return fmt.Errorf("read the webhook's CA (--webhook-ca): %w", err)
	}
	mgr, err := newManager(config, o)
	if err != nil {
		return err
	}
	if err := mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.Berth{}, v1alpha1.BerthNodeNameField, func(o client.Object) []string {
		return []string{o.(*v1alpha1.Berth).Spec.NodeName}
	}); err != nil {
		return fmt.Errorf("index berths by node: %w", err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make the API client: %w", err)
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	events.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: kube.CoreV1().Events("")})
	recorder := events.NewRecorder(mgr.GetScheme(), corev1.EventSource{Component: eks.SchedulerName})
	for _, c := range All(mgr, kube, recorder, o) {
		if err := c.Setup(mgr); err != nil {
			return fmt.Errorf("set up %T: %w", c, err)
		}
	}
	mgr.GetWebhookServer().Register(admission.Path, &webhook.Admission{Handler: &admission.Handler{Reader: mgr.GetClient(), Live: mgr.GetAPIReader(), Now: time.Now}})
	mgr.GetWebhookServer().Register(admission.DebugPath, &webhook.Admission{Handler: admission.Debug{Reader: mgr.GetClient()}})
	registration := &admission.Registration{Client: mgr.GetClient(), URL: admission.URL(o.WebhookPort), CA: ca}
	if err := registration.Setup(mgr); err != nil {
		return fmt.Errorf("set up the webhook's registration: %w", err)
	}
	if err := mgr.AddReadyzCheck("webhook-registration", registration.Check); err != nil {
		return fmt.Errorf("add the check of the webhook's registration: %w", err)
	}
	return mgr.Start(ctx)
}

func newManager(api *rest.Config, o Options) (ctrl.Manager, error) {
	metrics := metricsserver.Options{BindAddress: "0"}
	if o.MetricsPort != 0 {
		metrics.BindAddress = fmt.Sprintf("127.0.0.1:%d", o.MetricsPort)
	}
	options := ctrl.Options{
		Scheme:                        Scheme(),
		Metrics:                       metrics,
		HealthProbeBindAddress:        fmt.Sprintf("127.0.0.1:%d", o.HealthPort),
		LeaderElection:                o.LeaderElect,
		LeaderElectionID:              "berth-controller",
		LeaderElectionNamespace:       "kube-system",
		LeaderElectionReleaseOnCancel: true,
		// Names need not be unique in the process: a test runs the controllers more than once.
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}: {Field: fields.OneTermEqualSelector("spec.schedulerName", eks.SchedulerName)},
			&certificates.CertificateSigningRequest{}: {},
			&corev1.ConfigMap{}:                       {Namespaces: map[string]cache.Config{eks.LoggingNamespace: {FieldSelector: fields.OneTermEqualSelector("metadata.name", eks.LoggingConfigMap)}}},
		}, DefaultTransform: cache.TransformStripManagedFields()},
		WebhookServer: webhook.NewServer(webhook.Options{
			Host: "127.0.0.1", Port: o.WebhookPort, CertDir: filepath.Dir(o.WebhookCert),
			CertName: filepath.Base(o.WebhookCert), KeyName: filepath.Base(o.WebhookKey),
			TLSOpts: []func(*tls.Config){func(c *tls.Config) { c.MinVersion = tls.VersionTLS12 }},
		}),
	}
	mgr, err := ctrl.NewManager(api, options)
	if err != nil {
		return nil, fmt.Errorf("make the controllers' manager: %w", err)
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return nil, err
	}
	if err := mgr.AddReadyzCheck("webhook", mgr.GetWebhookServer().StartedChecker()); err != nil {
		return nil, err
	}
	return mgr, nil
}
