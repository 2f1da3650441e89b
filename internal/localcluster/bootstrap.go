package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	chart "github.com/berth-run/berth/charts/berth"
	"github.com/berth-run/berth/internal/layout"
)

const (
	fieldOwner   = client.FieldOwner("berth-up")
	gatewayGroup = "gateway.networking.k8s.io"
)

// Client makes a client of the local cluster for the user of a kubeconfig.
func Client(kubeconfig string) (client.Client, *rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, nil, fmt.Errorf("read kubeconfig %s (is the cluster up? berth up): %w", kubeconfig, err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, nil, err
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return c, config, nil
}

// bootstrap gives the cluster Berth's types, roles and, if it has none, subnets. Doing so again changes nothing. The admin
// is not cluster-admin yet in a new cluster, so it starts as a member of system:masters that exists on this machine only
// for this moment.
func bootstrap(ctx context.Context, dirs layout.Dirs) error {
	c, err := masterClient(dirs)
	if err != nil {
		return err
	}
	for _, pattern := range []string{"crds/*.yaml", "templates/*.yaml"} {
		files, err := fs.Glob(chart.Files, pattern)
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := eachObject(chart.Files, f, func(o *unstructured.Unstructured) error { return install(ctx, c, o) }); err != nil {
				return fmt.Errorf("apply %s: %w", f, err)
			}
		}
	}
	for _, b := range []rbac.ClusterRoleBinding{
		binding("berth:admins", "cluster-admin", rbac.Subject{APIGroup: rbac.GroupName, Kind: rbac.GroupKind, Name: "berth:admins"}),
		binding("berth:apiserver-kubelet-client", "system:kubelet-api-admin", rbac.Subject{APIGroup: rbac.GroupName, Kind: rbac.UserKind, Name: "kube-apiserver-kubelet-client"}),
	} {
		if err := apply(ctx, c, &b); err != nil {
			return err
		}
	}
	return wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		err := ensureSubnets(ctx, c)
		if meta.IsNoMatchError(err) {
			return false, nil // the new types are not served yet
		}
		return err == nil, err
	})
}

func binding(name, role string, subject rbac.Subject) rbac.ClusterRoleBinding {
	return rbac.ClusterRoleBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: rbac.SchemeGroupVersion.String(), Kind: "ClusterRoleBinding"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbac.Subject{subject},
	}
}

// eachObject does something with every object in a file of YAML documents.
func eachObject(files fs.FS, path string, do func(*unstructured.Unstructured) error) error {
	f, err := files.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	decoder := yaml.NewYAMLOrJSONDecoder(f, 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := decoder.Decode(o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(o.Object) == 0 {
			continue
		}
		if err := do(o); err != nil {
			return err
		}
	}
}

// install applies what is Berth's own; a type of others, of the Gateway API, is only created: a newer one may be there.
func install(ctx context.Context, c client.Client, o *unstructured.Unstructured) error {
	if group, _, _ := unstructured.NestedString(o.Object, "spec", "group"); group == gatewayGroup {
		return client.IgnoreAlreadyExists(c.Create(ctx, o, fieldOwner))
	}
	return apply(ctx, c, o)
}

func apply(ctx context.Context, c client.Client, o client.Object) error {
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return err
	}
	return c.Apply(ctx, client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: raw}), fieldOwner, client.ForceOwnership)
}

// ensureSubnets makes three private and three public subnets in three zones if the cluster has no subnet.
func ensureSubnets(ctx context.Context, c client.Client) error {
	var list v1alpha1.SubnetList
	if err := c.List(ctx, &list); err != nil || len(list.Items) > 0 {
		return err
	}
	for i, zone := range []string{"a", "b", "c"} {
		zone = layout.DefaultRegion + zone
		for _, s := range []v1alpha1.Subnet{
			{ObjectMeta: metav1.ObjectMeta{Name: "private-" + zone}, Spec: v1alpha1.SubnetSpec{CIDR: fmt.Sprintf("10.90.%d.0/19", 32*i), Zone: zone, Type: v1alpha1.SubnetPrivate}},
			{ObjectMeta: metav1.ObjectMeta{Name: "public-" + zone}, Spec: v1alpha1.SubnetSpec{CIDR: fmt.Sprintf("10.90.%d.0/24", 96+i), Zone: zone, Type: v1alpha1.SubnetPublic}},
		} {
			if err := c.Create(ctx, &s); err != nil {
				return fmt.Errorf("create subnet %s: %w", s.Name, err)
			}
		}
	}
	return nil
}

func masterClient(dirs layout.Dirs) (client.Client, error) {
	_, config, err := Client(dirs.AdminKubeconfig())
	if err != nil {
		return nil, err
	}
	if config.CertData, config.KeyData, err = masterCertificate(dirs); err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	return client.New(config, client.Options{Scheme: scheme})
}
