package move

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
)

// fakeConsul answers the requests of go-micro's consul registry as an agent of Consul does: it keeps
// services and their checks, and a request with an index waits until something has changed.
type fakeConsul struct {
	t        *testing.T
	mu       sync.Mutex
	services map[string]*api.ServiceEntry // by id
	index    uint64
	changed  chan struct{} // closed with the next change
}

// startConsul starts a fake of Consul.
func startConsul(t *testing.T, _ *kubetest.Server) oldServer {
	f := &fakeConsul{t: t, services: map[string]*api.ServiceEntry{}, index: 1, changed: make(chan struct{})}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return oldServer{address: s.Listener.Addr().String(), addresses: f.addresses}
}

func (f *fakeConsul) addresses(service string) (all []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.services {
		if s.Service.Service == service {
			all = append(all, net.JoinHostPort(s.Service.Address, strconv.Itoa(s.Service.Port)))
		}
	}
	return all, nil
}

func (f *fakeConsul) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, id := r.URL.Path, r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	switch {
	case path == "/v1/agent/host": // is the agent there
		_, _ = w.Write([]byte("{}"))
	case path == "/v1/agent/service/register":
		var s api.AgentServiceRegistration
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		e := &api.ServiceEntry{Node: &api.Node{Node: "node"}, Service: &api.AgentService{ID: s.ID, Service: s.Name, Tags: s.Tags, Address: s.Address, Port: s.Port}}
		if s.Check != nil { // a time to live, which begins as critical until the check passes
			e.Checks = api.HealthChecks{{ServiceID: s.ID, Status: api.HealthCritical}}
		}
		f.change(func() { f.services[s.ID] = e })
	case strings.HasPrefix(path, "/v1/agent/check/pass/service:"):
		id = strings.TrimPrefix(id, "service:")
		known := false
		f.change(func() {
			if s := f.services[id]; s != nil && len(s.Checks) > 0 {
				known, s.Checks[0].Status = true, api.HealthPassing
			}
		})
		if !known {
			http.Error(w, "unknown check", http.StatusInternalServerError)
		}
	case strings.HasPrefix(path, "/v1/agent/service/deregister/"):
		f.change(func() { delete(f.services, id) })
	case strings.HasPrefix(path, "/v1/health/service/"):
		f.answer(w, r, func() any {
			all := []*api.ServiceEntry{}
			for _, s := range f.services {
				if s.Service.Service == id {
					all = append(all, s)
				}
			}
			return all
		})
	case path == "/v1/catalog/services":
		f.answer(w, r, func() any {
			all := map[string][]string{}
			for _, s := range f.services {
				all[s.Service.Service] = s.Service.Tags
			}
			return all
		})
	default:
		f.t.Errorf("the fake of Consul does not know %s %s", r.Method, path)
		http.NotFound(w, r)
	}
}

func (f *fakeConsul) change(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.index++
	close(f.changed)
	f.changed = make(chan struct{})
}

// answer answers a query, which may wait for a change (Consul's blocking queries).
func (f *fakeConsul) answer(w http.ResponseWriter, r *http.Request, result func() any) {
	seen, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
	f.mu.Lock()
	changed, wait := f.changed, f.index <= seen
	f.mu.Unlock()
	if wait {
		select {
		case <-changed:
		case <-time.After(time.Minute):
		case <-r.Context().Done():
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("X-Consul-Index", strconv.FormatUint(f.index, 10))
	_ = json.NewEncoder(w).Encode(result()) // a caller that has left
}
