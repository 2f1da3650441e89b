package localcluster

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
)

// profileLimit is how long the cluster's own profile may take to be ACTIVE.
const profileLimit = 30 * time.Second

// defaultProfile is the profile of the cluster's own pods, named as `eksctl create cluster --fargate` does.
const defaultProfile = "fp-default"

// systemFiles are what runs in the cluster from the start. What is in once/ belongs to the user as soon as it is there.
//
//go:embed system
var systemFiles embed.FS

// installSystem gives the cluster its DNS, on nodes of Berth's own. Doing so again leaves alone what users may change: the
// profile, the Corefile and the number of replicas.
func installSystem(ctx context.Context, dirs layout.Dirs) error {
	c, err := masterClient(dirs)
	if err != nil {
		return err
	}
	var installed appsv1.Deployment
	err = c.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: "coredns"}, &installed)
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	if apierrors.IsNotFound(err) {
		if err := createDefaultProfile(ctx, c); err != nil {
			return err
		}
	}
	return eachSystemObject(func(o *unstructured.Unstructured, once bool) error {
		if o.GetKind() == "Deployment" && installed.Spec.Replicas != nil {
			if err := unstructured.SetNestedField(o.Object, int64(*installed.Spec.Replicas), "spec", "replicas"); err != nil {
				return err
			}
		}
		if once {
			return client.IgnoreAlreadyExists(c.Create(ctx, o, fieldOwner))
		}
		return apply(ctx, c, o)
	})
}

// createDefaultProfile puts the pods of namespace kube-system onto Berth, in every private subnet.
func createDefaultProfile(ctx context.Context, c client.Client) error {
	p := &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: defaultProfile}, Spec: v1alpha1.FargateProfileSpec{
		Selectors: []v1alpha1.Selector{{Namespace: metav1.NamespaceSystem}}}}
	if err := client.IgnoreAlreadyExists(c.Create(ctx, p, fieldOwner)); err != nil {
		return err
	}
	// One profile is created at a time: who creates one right after `berth up` should not meet this one.
	return wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, profileLimit, true, func(ctx context.Context) (bool, error) {
		err := c.Get(ctx, client.ObjectKeyFromObject(p), p)
		return p.Status.Status == v1alpha1.ProfileActive || p.Status.Status == v1alpha1.ProfileCreateFailed || apierrors.IsNotFound(err), client.IgnoreNotFound(err)
	})
}

func eachSystemObject(do func(o *unstructured.Unstructured, once bool) error) error {
	for _, pattern := range []string{"system/once/*.yaml", "system/*.yaml"} {
		files, err := fs.Glob(systemFiles, pattern)
		if err != nil {
			return err
		}
		slices.Sort(files)
		for _, file := range files {
			if err := eachObject(systemFiles, file, func(o *unstructured.Unstructured) error {
				return do(o, pattern == "system/once/*.yaml")
			}); err != nil {
				return fmt.Errorf("install %s: %w", file, err)
			}
		}
	}
	return nil
}
