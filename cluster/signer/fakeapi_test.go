package signer

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// fakeAPI is an API server with the requests of one signer.
type fakeAPI struct {
	mu       sync.Mutex
	requests map[string]request
	version  int
	changed  chan struct{} // closed at each change
	updates  map[string]int
	bundle   string
	down     bool            // answers 503
	conflict map[string]int  // how many updates of a request to refuse, with 409
	refused  map[string]bool // requests of which every update is refused, with 422
}

func newFakeAPI(t *testing.T) (*fakeAPI, string) {
	t.Helper()
	f := &fakeAPI{requests: map[string]request{}, updates: map[string]int{}, conflict: map[string]int{}, refused: map[string]bool{}, changed: make(chan struct{})}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return f, server.URL
}

func (f *fakeAPI) change(r request) {
	f.version++
	r.Metadata.ResourceVersion = fmt.Sprint(f.version)
	f.requests[r.Metadata.Name] = r
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeAPI) add(r request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.change(r)
}

func (f *fakeAPI) set(set func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	set()
}

func (f *fakeAPI) issued(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests[name].Status.CertificateChain != ""
}

func fail(w http.ResponseWriter, code int, message string) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := r.URL.Query()
	switch {
	case f.down:
		fail(w, 503, "the server is currently unable to handle the request")
	case r.Method == http.MethodPatch && r.URL.Path == group+"/clustertrustbundles/"+BundleName:
		var o struct{ Spec map[string]string }
		_ = json.NewDecoder(r.Body).Decode(&o)
		f.bundle = o.Spec["trustBundle"]
		_, _ = io.WriteString(w, "{}")
	case q.Get("fieldSelector") != "spec.signerName="+Name && r.Method == http.MethodGet:
		fail(w, 400, "no selector")
	case q.Get("watch") != "":
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		end, _ := time.ParseDuration(q.Get("timeoutSeconds") + "s")
		timer := time.After(end)
		var seen int
		_, _ = fmt.Sscan(q.Get("resourceVersion"), &seen)
		for {
			for _, o := range f.requests {
				var v int
				if _, _ = fmt.Sscan(o.Metadata.ResourceVersion, &v); v > seen {
					_ = json.NewEncoder(w).Encode(map[string]any{"type": "MODIFIED", "object": o})
				}
			}
			w.(http.Flusher).Flush()
			seen = f.version
			changed := f.changed
			f.mu.Unlock()
			select {
			case <-changed:
			case <-timer:
				f.mu.Lock()
				return
			case <-r.Context().Done():
				f.mu.Lock()
				return
			}
			f.mu.Lock()
		}
	case r.Method == http.MethodGet:
		list := requestList{Metadata: metadata{ResourceVersion: fmt.Sprint(f.version)}}
		for _, o := range f.requests {
			list.Items = append(list.Items, o)
		}
		_ = json.NewEncoder(w).Encode(list)
	case r.Method == http.MethodPut:
		var update request
		_ = json.NewDecoder(r.Body).Decode(&update)
		name := update.Metadata.Name
		f.updates[name]++
		old, ok := f.requests[name]
		switch {
		case !ok:
			fail(w, 404, "not found")
		case f.refused[name]:
			fail(w, 422, "is invalid")
		case f.conflict[name] > 0 || old.Metadata.ResourceVersion != update.Metadata.ResourceVersion || old.Metadata.UID != update.Metadata.UID:
			f.conflict[name]--
			fail(w, 409, "the object has been modified")
		default:
			old.Status = update.Status
			f.change(old)
			_ = json.NewEncoder(w).Encode(old)
		}
	default:
		fail(w, 405, r.Method+" "+r.URL.Path)
	}
}
