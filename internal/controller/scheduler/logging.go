package scheduler

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/logrouter"
)

// logging is what the pod's annotation and event say about its log router (facts 2.4, 2.5), in the words of EKS if nobody
// configured one or the configuration is wrong; if it is good, that there is no router. The cache holds this one ConfigMap only.
func (r *Reconciler) logging(ctx context.Context) (annotation, message string, err error) {
	var namespace corev1.Namespace
	var config corev1.ConfigMap
	if err = r.Client.Get(ctx, client.ObjectKey{Name: eks.LoggingNamespace}, &namespace); err == nil {
		err = r.Client.Get(ctx, client.ObjectKey{Namespace: eks.LoggingNamespace, Name: eks.LoggingConfigMap}, &config)
	}
	switch {
	case apierrors.IsNotFound(err):
		return eks.LoggingNotFound, eks.MessageLoggingNotFound, nil
	case err != nil:
		return "", "", fmt.Errorf("get the log router's configuration: %w", err)
	}
	wrong := logrouter.Invalid(config.Data)
	if namespace.Labels[eks.LoggingNamespaceLabel] != "enabled" {
		wrong = fmt.Sprintf("namespace %s does not have the label %s: enabled", eks.LoggingNamespace, eks.LoggingNamespaceLabel)
	}
	if wrong != "" {
		return eks.LoggingInvalid, eks.MessageLoggingInvalid(wrong), nil
	}
	return eks.LoggingNoRouter, eks.MessageLoggingNoRouter, nil
}
