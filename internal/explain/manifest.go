package explain

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Template is a pod that a manifest would create.
type Template struct {
	Name string
	Pod  *corev1.Pod
	// Replicas of it at a time; zero for a DaemonSet.
	Replicas int32
}

// Templates reads the pods of a manifest, in YAML or JSON, of one or many documents. Kinds that make no pods are skipped,
// also those that the decoder does not know.
func Templates(manifest []byte, decoder runtime.Decoder, namespace string) ([]Template, error) {
	var out []Template
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifest)))
	for n := 1; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		found, err := decode(document, decoder, namespace)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		out = append(out, found...)
	}
}

func decode(document []byte, decoder runtime.Decoder, namespace string) ([]Template, error) {
	json, err := yaml.ToJSON(document)
	if err != nil {
		return nil, fmt.Errorf("it is not valid YAML: %w", err)
	}
	if json = bytes.TrimSpace(json); len(json) == 0 || bytes.Equal(json, []byte("null")) {
		return nil, nil // nothing but comments
	}
	object, _, err := decoder.Decode(json, nil, nil)
	if runtime.IsNotRegisteredError(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("it is not a valid Kubernetes object: %w", err)
	}
	if list, ok := object.(*corev1.List); ok {
		var out []Template
		for i, item := range list.Items {
			found, err := decode(item.Raw, decoder, namespace)
			if err != nil {
				return nil, fmt.Errorf("items[%d]: %w", i, err)
			}
			out = append(out, found...)
		}
		return out, nil
	}
	return template(object, namespace), nil
}

// template is the pod that the object's controller would make of it.
func template(object runtime.Object, namespace string) []Template {
	var meta metav1.ObjectMeta
	var spec corev1.PodTemplateSpec
	one := int32(1)
	replicas := &one
	kind := object.GetObjectKind().GroupVersionKind()
	switch o := object.(type) {
	case *corev1.Pod:
		meta, spec = o.ObjectMeta, corev1.PodTemplateSpec{ObjectMeta: o.ObjectMeta, Spec: o.Spec}
	case *corev1.ReplicationController:
		meta = o.ObjectMeta
		if o.Spec.Template != nil {
			spec = *o.Spec.Template
		}
		replicas = o.Spec.Replicas
	case *appsv1.Deployment:
		meta, spec, replicas = o.ObjectMeta, o.Spec.Template, o.Spec.Replicas
	case *appsv1.ReplicaSet:
		meta, spec, replicas = o.ObjectMeta, o.Spec.Template, o.Spec.Replicas
	case *appsv1.DaemonSet:
		meta, spec, replicas = o.ObjectMeta, o.Spec.Template, new(int32)
	case *appsv1.StatefulSet:
		meta, spec, replicas = o.ObjectMeta, *o.Spec.Template.DeepCopy(), o.Spec.Replicas
		for _, claim := range o.Spec.VolumeClaimTemplates {
			spec.Spec.Volumes = append(spec.Spec.Volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name + "-" + o.Name + "-0"}}})
		}
	case *batchv1.Job:
		meta, spec, replicas = o.ObjectMeta, o.Spec.Template, o.Spec.Parallelism
	case *batchv1.CronJob:
		meta, spec, replicas = o.ObjectMeta, o.Spec.JobTemplate.Spec.Template, o.Spec.JobTemplate.Spec.Parallelism
	default:
		return nil
	}
	if meta.Namespace != "" {
		namespace = meta.Namespace
	}
	pod := &corev1.Pod{ObjectMeta: *spec.ObjectMeta.DeepCopy(), Spec: spec.Spec}
	pod.Name, pod.Namespace = meta.Name, namespace
	if kind.Kind != "Pod" {
		pod.OwnerReferences = []metav1.OwnerReference{owner(kind, meta.Name)}
	}
	if replicas == nil {
		replicas = &one // the API server's default
	}
	return []Template{{Name: fmt.Sprintf("%s %s/%s", kind.Kind, namespace, meta.Name), Pod: pod, Replicas: *replicas}}
}

func owner(kind schema.GroupVersionKind, name string) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: kind.GroupVersion().String(), Kind: kind.Kind, Name: name}
}
