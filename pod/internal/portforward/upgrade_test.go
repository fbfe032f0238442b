package portforward

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
)

// Two connections that learn at the same time that the server refuses WebSocket do not cancel each other out.
func TestSPDYIsRememberedByTwoConnectionsAtOnce(t *testing.T) {
	p, f := newPath(t)
	var asked atomic.Int32
	both := make(chan struct{})
	f.Refuse(func(r *http.Request) kubetest.Refusal {
		if r.Header.Get("Upgrade") != "websocket" {
			return kubetest.Refusal{}
		}
		if asked.Add(1) == 2 {
			close(both)
		}
		select {
		case <-both:
		case <-r.Context().Done():
		}
		return kubetest.Refusal{Code: http.StatusBadRequest, Body: "unable to upgrade"}
	})
	var dials sync.WaitGroup
	for range 2 {
		dials.Go(func() {
			c, err := p.DialContext(t.Context(), "a", "10.0.0.1:9100")
			if err != nil {
				t.Error(err)
				return
			}
			c.Close()
		})
	}
	dials.Wait()
	expectEcho(t, dial(t, p), "x")
	if n := asked.Load(); n != 2 {
		t.Errorf("asked for WebSocket %d times, want only the first two", n)
	}
}
