// Package patch writes what a reconciler changed on an object, and nothing if it changed nothing. All patches hold the
// resource version, so that a decision made on stale sight ends in a conflict and is made again.
package patch

import (
	"context"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

// Status writes the difference of the status between before and after. The error is a conflict if the object changed meanwhile.
func Status(ctx context.Context, c client.Client, before, after client.Object) error {
	same, err := unchanged(before, after)
	if same || err != nil {
		return err
	}
	lock := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := c.Status().Patch(ctx, after, lock); err != nil {
		return fmt.Errorf("write the status of %s: %w", client.ObjectKeyFromObject(after), err)
	}
	return nil
}

// AddFinalizer adds the finalizer if the object lacks it.
func AddFinalizer(ctx context.Context, c client.Client, o client.Object, finalizer string) error {
	before := o.DeepCopyObject().(client.Object)
	if !controllerutil.AddFinalizer(o, finalizer) {
		return nil
	}
	return meta(ctx, c, before, o)
}

// DropFinalizers removes the finalizers that the object has of these. An object that is gone is no error.
func DropFinalizers(ctx context.Context, c client.Client, o client.Object, finalizers ...string) error {
	before := o.DeepCopyObject().(client.Object)
	dropped := false
	for _, f := range finalizers {
		dropped = controllerutil.RemoveFinalizer(o, f) || dropped
	}
	if !dropped {
		return nil
	}
	return client.IgnoreNotFound(meta(ctx, c, before, o))
}

func meta(ctx context.Context, c client.Client, before, after client.Object) error {
	lock := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := c.Patch(ctx, after, lock); err != nil {
		return fmt.Errorf("write the finalizers of %s: %w", client.ObjectKeyFromObject(after), err)
	}
	return nil
}

func unchanged(before, after client.Object) (bool, error) {
	diff, err := client.MergeFrom(before).Data(after)
	if err != nil {
		return false, fmt.Errorf("compare %s: %w", client.ObjectKeyFromObject(after), err)
	}
	return string(diff) == "{}", nil
}
