package podcheck

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestBandwidth(t *testing.T) {
	for text, want := range map[string]int64{"10M": 10_000_000, "1k": 1000, "1P": 1_000_000_000_000_000, "512Ki": 512 << 10, "1e6": 1_000_000, "25e+05": 2_500_000} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{AnnotationEgress: text}}}
		ingress, egress, err := Bandwidth(pod)
		if err != nil || ingress != nil || egress == nil || egress.Value() != want {
			t.Errorf("%q is read as %v, %v, %v", text, ingress, egress, err)
		}
		if v := Violations(pod, Options{}); len(v) > 0 {
			t.Errorf("%q is refused: %q", text, v)
		}
	}
	for _, text := range []string{"", "fast", "10 M", "999", "-5M", "2P", "10Mbit", "1e-100000000", "1e100000000", "0E100000000"} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{AnnotationIngress: text}}}
		v, f := Violations(pod, Options{}), Findings(pod, Options{})
		if len(v) != 1 || !strings.Contains(v[0], "annotation kubernetes.io/ingress-bandwidth") || !strings.Contains(v[0], "such as 10M") {
			t.Errorf("%q: violations %q", text, v)
		}
		if len(f) != 1 || f[0].Field != "metadata.annotations[kubernetes.io/ingress-bandwidth]" {
			t.Errorf("%q: findings %+v", text, f)
		}
	}
}
