package scheduler

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/internal/eks"
)

// logging is what the pod's annotation and event say about its log router (facts 2.4, 2.5): there is none, in the words of
// EKS if nobody configured one. The cache holds this one ConfigMap only.
func (r *Reconciler) logging(ctx context.Context) (annotation, message string, err error) {
	err = r.Client.Get(ctx, client.ObjectKey{Namespace: eks.LoggingNamespace, Name: eks.LoggingConfigMap}, &corev1.ConfigMap{})
	switch {
	case apierrors.IsNotFound(err):
		return eks.LoggingNotFound, eks.MessageLoggingNotFound, nil
	case err != nil:
		return "", "", fmt.Errorf("get the log router's configuration: %w", err)
	}
	return eks.LoggingNoRouter, eks.MessageLoggingNoRouter, nil
}
