package node

import (
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
)

// eventsHeld is how long events wait at most for the first container to run. They carry the time at which they happened.
const eventsHeld = 2 * time.Second

// heldSink writes events when the first container runs: until then API server and processor have more urgent things to do.
type heldSink struct {
	record.EventSink
	started <-chan struct{}
	late    <-chan time.Time
}

func newHeldSink(sink record.EventSink, started <-chan struct{}) *heldSink {
	late := make(chan time.Time)
	time.AfterFunc(eventsHeld, func() { close(late) })
	return &heldSink{sink, started, late}
}

func (s *heldSink) wait() {
	select {
	case <-s.started:
	case <-s.late:
	}
}

func (s *heldSink) Create(event *v1.Event) (*v1.Event, error) {
	s.wait()
	return s.EventSink.Create(event)
}

func (s *heldSink) Patch(old *v1.Event, data []byte) (*v1.Event, error) {
	s.wait()
	return s.EventSink.Patch(old, data)
}

// takenForGranted are events of a Node that say what is true of every new one, its conditions say too, and the kubelet
// says four times while it registers. They were a fifth of all requests that a pod's start costs the API server. The
// opposite of each (NodeHasInsufficientMemory and the like) is sent. The names: kubelet/nodestatus/setters.go.
var takenForGranted = map[string]bool{
	"NodeHasSufficientMemory": true,
	"NodeHasNoDiskPressure":   true,
	"NodeHasSufficientPID":    true,
}

// recorder is the kubelet's, less what is taken for granted.
type recorder struct{ record.EventRecorderLogger }

func (r recorder) Event(object runtime.Object, kind, reason, message string) {
	if !takenForGranted[reason] {
		r.EventRecorderLogger.Event(object, kind, reason, message)
	}
}

func (r recorder) Eventf(object runtime.Object, kind, reason, format string, args ...any) {
	if !takenForGranted[reason] {
		r.EventRecorderLogger.Eventf(object, kind, reason, format, args...)
	}
}

func (r recorder) WithLogger(logger klog.Logger) record.EventRecorderLogger {
	return recorder{r.EventRecorderLogger.WithLogger(logger)}
}

var _ record.EventRecorderLogger = recorder{}
