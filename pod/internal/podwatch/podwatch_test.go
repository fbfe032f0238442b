package podwatch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	dlog "github.com/micro/go-micro/v2/debug/log"
	corev1 "k8s.io/api/core/v1"
)

// fakeAPI passes to the handler what a test sends, until the context ends.
type fakeAPI struct {
	selector apiserver.Selector
	do       chan func(apiserver.Handler[*corev1.Pod])
	ended    bool
}

func (f *fakeAPI) ListWatchPods(ctx context.Context, selector apiserver.Selector, trim func(*corev1.Pod) *corev1.Pod, h apiserver.Handler[*corev1.Pod]) {
	f.selector = selector
	for {
		select {
		case do := <-f.do:
			do(h)
		case <-ctx.Done():
			h.Update(trim(&corev1.Pod{}))
			f.ended = true
			return
		}
	}
}

// recorder records what the handler receives.
type recorder struct {
	pods   []string
	states []error
}

func (r *recorder) Replace(pods []*corev1.Pod) { r.pods = append(r.pods, fmt.Sprint(len(pods))) }
func (r *recorder) Update(p *corev1.Pod)       { r.pods = append(r.pods, "update "+p.Name) }
func (r *recorder) Delete(p *corev1.Pod)       { r.pods = append(r.pods, "delete "+p.Name) }
func (r *recorder) StateChanged(err error)     { r.states = append(r.states, err) }

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, handler := &fakeAPI{do: make(chan func(apiserver.Handler[*corev1.Pod]))}, &recorder{}
		var reported []string
		w := Watch{APIError: func(operation string, err error) { reported = append(reported, fmt.Sprint(operation, ": ", err)) }}
		if w.Started() || !w.Running() {
			t.Errorf("before Start: started %v, running %v", w.Started(), w.Running())
		}
		name := fmt.Sprintf("pods %x", rand.Uint64()) // go test -count: the log has the lines of earlier runs, all of the same time
		w.Start(api, apiserver.Selector{Labels: "a=b"}, name, func(*corev1.Pod) *corev1.Pod {
			trimmed := &corev1.Pod{}
			trimmed.Name = "trimmed"
			return trimmed
		}, handler)
		if !w.Started() || !w.Running() {
			t.Errorf("after Start: started %v, running %v", w.Started(), w.Running())
		}
		refused := errors.New("refused")
		api.do <- func(h apiserver.Handler[*corev1.Pod]) {
			h.Replace([]*corev1.Pod{{}, {}})
			h.Delete(&corev1.Pod{})
			h.StateChanged(refused)
			h.StateChanged(nil)
		}
		w.Stop()
		if !api.ended || !w.Started() || w.Running() || api.selector.Labels != "a=b" {
			t.Errorf("after Stop: the API's call has ended %v, started %v, running %v, selector %v", api.ended, w.Started(), w.Running(), api.selector)
		}
		if want := []string{"2", "delete ", "update trimmed"}; !slices.Equal(handler.pods, want) {
			t.Errorf("the handler received %q, want %q", handler.pods, want)
		}
		if !slices.Equal(handler.states, []error{refused, nil}) {
			t.Errorf("the handler received the states %v", handler.states)
		}
		if want := []string{"watching " + name + ": refused", "watching " + name + ": <nil>"}; !slices.Equal(reported, want) {
			t.Errorf("APIError received %q, want %q", reported, want)
		}
		log, err := dlog.DefaultLog.Read()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Watching " + name + ": refused; retrying", "Watching " + name + " again"} {
			if n := len(slices.DeleteFunc(slices.Clone(log), func(r dlog.Record) bool { return !strings.HasSuffix(fmt.Sprint(r.Message), want) })); n != 1 {
				t.Errorf("%d lines of the log with %q, want 1", n, want)
			}
		}
	})
}

func TestWatchWithoutStartAndCallback(t *testing.T) {
	var w Watch
	w.ReportAPIError("watching all pods", nil) // nobody to call
	w.Stop()
	if w.Running() || w.Started() {
		t.Errorf("running %v, started %v", w.Running(), w.Started())
	}
}
