package dashboard

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2/logger"
)

const (
	heartbeat    = 4 * time.Second // between two heartbeats of an event stream; the script reconnects after 15 s of silence
	writeTimeout = 5 * time.Second // for one event; a viewer that does not read it is disconnected
)

func (d *dashboard) servePage(w http.ResponseWriter, r *http.Request) {
	d.render(w, r, http.StatusOK, page{})
}

// render writes the page with the latest view.
func (d *dashboard) render(w http.ResponseWriter, r *http.Request, code int, p page) {
	defer d.hub.join()()
	var err error
	if p.view, err = d.hub.wait(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	p.times, p.HasTraces = d.hub.times(), d.traces != nil
	defer limitWrite(w, d.pageTimeout)()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	if err := pageTemplate.Execute(w, p); err != nil && r.Context().Err() == nil {
		logger.Errorf("Rendering the page: %v", err)
	}
}

// limitWrite sets a deadline for sending a response. done flushes the response and
// removes the deadline, which would also apply to the next request on the connection.
func limitWrite(w http.ResponseWriter, timeout time.Duration) (done func()) {
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(timeout))
	return func() {
		_ = rc.Flush()
		_ = rc.SetWriteDeadline(time.Time{})
	}
}

// serveView answers with JSON that is made of the current view.
func (d *dashboard) serveView(encode func(*view) [][]byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		defer d.hub.join()()
		v, err := d.hub.wait(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		defer limitWrite(w, d.pageTimeout)()
		w.Header().Set("Content-Type", "application/json")
		for _, b := range append(encode(v), []byte("\n")) {
			_, _ = w.Write(b)
		}
	}
}

func (d *dashboard) serveEvents(w http.ResponseWriter, r *http.Request) { d.stream(w, r, 0) }

// stream sends the latest view and each later one, and the changes, until the viewer
// disconnects or the pod drains. With a rate it also makes calls, and sends their numbers.
func (d *dashboard) stream(w http.ResponseWriter, r *http.Request, rate int) {
	release, status, refusal := d.hub.streams.open(r.RemoteAddr)
	if status != http.StatusOK {
		w.Header().Set("Retry-After", "30")
		http.Error(w, refusal, status)
		return
	}
	defer release()
	defer d.hub.join()()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var stats <-chan time.Time // never, without calls
	if rate > 0 {
		defer d.traffic.join(rate)()
		ticker := time.NewTicker(statsInterval)
		defer ticker.Stop()
		stats = ticker.C
		defer time.AfterFunc(d.maxCalling, cancel).Stop()
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Connection", "close") // when the stream ends, the browser connects to another pod
	rc := http.NewResponseController(w)
	send := func(parts ...[]byte) bool {
		_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
		for _, b := range parts {
			if _, err := w.Write(b); err != nil {
				return false
			}
		}
		return rc.Flush() == nil
	}
	ticker := time.NewTicker(d.heartbeat)
	defer ticker.Stop()
	var sent *view
	sentChange := -1 // so that the first event is sent even without a change
	for ok := send([]byte("retry: 1000\n\n")); ok; {
		v, changed := d.hub.current()
		if v != nil && v != sent {
			if ok = send(slices.Concat([][]byte{[]byte("data: ")}, v.encode(d.hub.times()), [][]byte{[]byte("\n\n")})...); !ok {
				return
			}
			sent = v
			if last := v.recent.last(); last != sentChange {
				if ok = send([]byte("event: changes\ndata: "), v.recent.encode(sentChange), []byte("\n\n")); !ok {
					return
				}
				sentChange = last
			}
		}
		select {
		case <-changed:
		case <-ticker.C:
			now, _ := json.Marshal(d.hub.times()) // the encoding of times cannot fail
			ok = send([]byte("event: heartbeat\ndata: "), now, []byte("\n\n"))
		case <-stats:
			ok = send([]byte("event: calls\ndata: "), d.statistics(), []byte("\n\n"))
		case <-pod.Draining(r.Context()):
			_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // the deadline of the last event may have passed
			return
		case <-ctx.Done():
			return
		}
	}
}
