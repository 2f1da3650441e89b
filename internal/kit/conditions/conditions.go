// Package conditions sets metav1 conditions the way all of Berth's controllers do.
package conditions

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Set makes a condition true or false with a reason (a word) and a message (a sentence), and reports whether it changed.
func Set(list *[]metav1.Condition, kind string, ok bool, generation int64, reason, message string) bool {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	return meta.SetStatusCondition(list, metav1.Condition{
		Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: generation,
	})
}
