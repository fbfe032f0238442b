// Package podwatch runs one watch of pods in a goroutine of its own, and logs it.
//
// The watch itself, with its LIST, its retries and its delays, is
// apiserver.Connection.ListWatchPods. A Watch adds what every user of it needs: a goroutine
// that Stop ends, one log line when watching begins to fail and one when it works again, and
// the callback APIError for both. The handler that Start receives is called from that
// goroutine only.
//
// A Watch is used once: Start, and later Stop. Its zero value has not started.
package podwatch

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/micro/go-micro/v2/logger"
	corev1 "k8s.io/api/core/v1"
)

// API is the part of apiserver.Connection that a Watch uses.
type API interface {
	ListWatchPods(ctx context.Context, selector apiserver.Selector, trim func(*corev1.Pod) *corev1.Pod, h apiserver.Handler[*corev1.Pod])
}

// Watch lists and watches pods from Start to Stop.
type Watch struct {
	APIError func(operation string, err error) // called when watching begins to fail, and with nil when it works again; may be nil

	cancel  context.CancelFunc // nil before Start
	stopped atomic.Bool
	ended   sync.WaitGroup
}

// Start begins to pass the selected pods and the errors to h. trim returns a pod with only
// the fields that h reads. The log calls the pods by the given name.
func (w *Watch) Start(api API, selector apiserver.Selector, name string, trim func(*corev1.Pod) *corev1.Pod, h apiserver.Handler[*corev1.Pod]) {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.ended.Go(func() { api.ListWatchPods(ctx, selector, trim, loggingHandler{h, name, w}) })
}

// Started reports whether Start was called. The caller must not call Start at the same time.
func (w *Watch) Started() bool { return w.cancel != nil }

// Running reports whether Stop was not called yet.
func (w *Watch) Running() bool { return !w.stopped.Load() }

// Stop ends the goroutine and waits for it.
func (w *Watch) Stop() {
	w.stopped.Store(true)
	if w.cancel != nil {
		w.cancel()
	}
	w.ended.Wait()
}

// ReportAPIError calls APIError, if there is one.
func (w *Watch) ReportAPIError(operation string, err error) {
	if w.APIError != nil {
		w.APIError(operation, err)
	}
}

type loggingHandler struct {
	apiserver.Handler[*corev1.Pod]
	name  string
	watch *Watch
}

func (h loggingHandler) StateChanged(err error) {
	if err != nil {
		logger.Warnf("Registry [kubernetes] Watching %s: %v; retrying", h.name, err)
	} else {
		logger.Infof("Registry [kubernetes] Watching %s again", h.name)
	}
	h.watch.ReportAPIError("watching "+h.name, err)
	h.Handler.StateChanged(err)
}
