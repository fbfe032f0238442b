package apiserver_test

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	corev1 "k8s.io/api/core/v1"
)

// ignoreAll is a handler that ignores everything.
type ignoreAll struct{}

func (ignoreAll) Replace([]*corev1.Pod) {}
func (ignoreAll) Update(*corev1.Pod)    {}
func (ignoreAll) Delete(*corev1.Pod)    {}
func (ignoreAll) StateChanged(error)    {}

// listWatch calls ListWatchPods in a goroutine. stop ends the goroutine and waits for it.
func listWatch(t *testing.T, env apiserver.Environment, h apiserver.Handler[*corev1.Pod]) (stop func()) {
	t.Helper()
	c, err := apiserver.Connect(env, apiserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.ListWatchPods(ctx, apiserver.Selector{}, func(p *corev1.Pod) *corev1.Pod { return p }, h)
	}()
	return func() {
		cancel()
		<-ended
		c.Close()
	}
}

const emptyList = `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}`

func TestListWatchBacksOffWhenWatchesEndAtOnce(t *testing.T) {
	for name, event := range map[string]string{
		"without an event": "",
		"after one event":  `{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","resourceVersion":"2"}}}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int64
			_, env := kubetest.StartFake(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				w.Header().Set("Content-Type", "application/json")
				if r.URL.Query().Get("watch") != "" {
					fmt.Fprint(w, event)
				} else {
					fmt.Fprint(w, emptyList)
				}
			}))
			stop := listWatch(t, env, ignoreAll{})
			time.Sleep(5 * time.Second)
			stop()
			// Delays are 0.1, 0.2, 0.4, 0.8 and then 1 s, less up to a half: at most 12 LIST and 12 WATCH requests.
			if n := requests.Load(); n < 4 || n > 24 {
				t.Errorf("%d requests in 5 s, want between 4 and 24", n)
			}
		})
	}
}

func TestRetryAfterDoesNotHoldUpCalls(t *testing.T) {
	_, env := kubetest.StartFake(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "32") // as API Priority and Fairness does
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	c, err := apiserver.Connect(env, apiserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin := time.Now()
	if _, err := c.PatchPod(t.Context(), []byte("{}")); err == nil || time.Since(begin) > 10*time.Second {
		t.Errorf("PatchPod: %v after %s, want the API server's refusal at once", err, time.Since(begin))
	}
	stop := listWatch(t, env, ignoreAll{})
	time.Sleep(200 * time.Millisecond)
	begin = time.Now()
	if stop(); time.Since(begin) > 10*time.Second {
		t.Errorf("stopping took %s", time.Since(begin))
	}
}
