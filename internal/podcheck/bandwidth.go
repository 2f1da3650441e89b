package podcheck

import (
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Annotations by which a pod limits its bandwidth, in bits per second, as the kubelet and the CNI's plugin define them.
const (
	AnnotationIngress = "kubernetes.io/ingress-bandwidth"
	AnnotationEgress  = "kubernetes.io/egress-bandwidth"
)

// Limits of a bandwidth, those of upstream (k8s.io/kubernetes/pkg/util/bandwidth).
var minBandwidth, maxBandwidth = resource.MustParse("1k"), resource.MustParse("1P")

// maxExponent is the length of an exponent that is read at all, as e+15. To parse 1e-100000000 takes minutes, and nobody has
// looked at annotations before.
const maxExponent = 4

var errExponent = errors.New("the exponent is too long")

// Bandwidth reads the pod's limits; nil means none. The error names the annotation and what to write.
func Bandwidth(pod *corev1.Pod) (ingress, egress *resource.Quantity, err error) {
	if ingress, err = bandwidth(pod, AnnotationIngress); err != nil {
		return nil, nil, err
	}
	if egress, err = bandwidth(pod, AnnotationEgress); err != nil {
		return nil, nil, err
	}
	return ingress, egress, nil
}

func bandwidth(pod *corev1.Pod, annotation string) (*resource.Quantity, error) {
	text, there := pod.Annotations[annotation]
	if !there {
		return nil, nil
	}
	var q resource.Quantity
	err := errExponent
	if i := strings.IndexAny(text, "eE"); i < 0 || len(text)-i <= maxExponent {
		q, err = resource.ParseQuantity(text)
	}
	if err != nil || q.Cmp(minBandwidth) < 0 || q.Cmp(maxBandwidth) > 0 {
		return nil, fmt.Errorf("annotation %s: %q is not a number of bits per second from 1k to 1P, such as 10M", annotation, text)
	}
	return &q, nil
}

// bandwidths is what is wrong with the pod's annotations, by annotation.
func bandwidths(pod *corev1.Pod) map[string]string {
	wrong := map[string]string{}
	for _, annotation := range []string{AnnotationIngress, AnnotationEgress} {
		if _, err := bandwidth(pod, annotation); err != nil {
			wrong[annotation] = err.Error()
		}
	}
	return wrong
}
