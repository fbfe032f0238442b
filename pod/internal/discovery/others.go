package discovery

import (
	"context"
	"encoding/json"
	"maps"
	"reflect"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/registry"
)

// Others is another registry, whose instances complete those of the pods while services move from it
// to pods. Package also implements it.
type Others interface {
	// Follow passes the instances of a service to publish, each as a service with one node, at once and
	// after each change, until stop. With an error come those last known.
	Follow(service string, publish func([]*registry.Service, error)) (stop func())
	// List returns the names of all services that are known now.
	List() []*registry.Service
	// String returns the name of the registry.
	String() string
}

// following is an informer's use of Others.
type following struct {
	stop     func()
	answered chan struct{} // closed after the first answer or error
}

// follow completes an informer by the instances of another registry. The caller holds s.mu.
func (s *Services) follow(i *Informer, service string, o Others) {
	f := &following{answered: make(chan struct{})}
	first := sync.OnceFunc(func() { close(f.answered) })
	i.others = f
	f.stop = o.Follow(service, func(all []*registry.Service, err error) {
		if err == nil {
			s.setOthers(i, service, all)
		}
		first()
	})
}

// setOthers stores the instances of a service in its informer, and in the overview, whose Watch
// go-micro's cache uses for every service that it has looked up.
func (s *Services) setOthers(i *Informer, service string, all []*registry.Service) {
	i.setOthers(service, all)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.informers[service] != i { // Stop has removed it
		return
	}
	s.others[service] = all
	if s.overview != nil {
		s.overview.setOthers(service, all)
	}
}

func (i *Informer) setOthers(service string, all []*registry.Service) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.pods.setOthers(service, all) {
		i.publish()
	}
	i.pods.dropUnused()
}

// wait waits until the other registry has answered or failed, for at most limit or until ctx ends.
func (f *following) wait(ctx context.Context, limit time.Duration) {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-f.answered:
	case <-ctx.Done():
	case <-t.C:
	}
}

// otherInstances are the instances that another registry knows, by service and node id.
type otherInstances struct {
	registry  string // its name
	namespace string // of the pods
	podsKnown bool   // a LIST of the pods has succeeded
	byService map[string]map[string]*otherEntry
}

// otherEntry is an instance of the other registry.
type otherEntry struct {
	source   *registry.Service // with one node
	instance *Instance
	onPod    bool // a pod has, or had, registered the same process: the other registry may be late to drop it
}

// setOthers replaces what the other registry knows of a service. An instance stays the same while
// its registration does.
func (t *table) setOthers(service string, all []*registry.Service) (changed bool) {
	before := t.others.byService[service]
	after := make(map[string]*otherEntry, len(all))
	for _, s := range all {
		node := s.Nodes[0]
		if e := before[node.Id]; e != nil && (e.source == s || reflect.DeepEqual(e.source, s)) {
			e.source = s
			after[node.Id] = e
			continue
		}
		after[node.Id] = &otherEntry{source: s, instance: t.addOther(s)}
		changed = true
	}
	for id, e := range before {
		if after[id] != e {
			t.release([]*Instance{e.instance})
			changed = true
		}
	}
	if t.others.byService == nil {
		t.others.byService = map[string]map[string]*otherEntry{}
	}
	t.others.byService[service] = after
	return changed
}

// addOther makes the instance of a service with one node.
func (t *table) addOther(s *registry.Service) *Instance {
	endpoints := ""
	if len(s.Endpoints) > 0 {
		b, _ := json.Marshal(s.Endpoints)
		endpoints = string(b)
	}
	var number uint64
	if endpoints != "" {
		number = t.endpoints.keep(endpoints)
	}
	c := *s
	c.Endpoints = nil
	return t.add(nil, "("+t.others.registry+")", "", &c, number)[0]
}

// listed records that the pods are known.
func (t *table) listed() { t.others.podsKnown = true }

// dropOthers releases all instances of the other registry.
func (t *table) dropOthers() {
	for service := range maps.Clone(t.others.byService) {
		t.setOthers(service, nil)
	}
}

// onlyOthers returns the instances that only the other registry knows. Each address is returned once: a
// process that was killed and its successor in the same pod are both registered until the time to live
// of the first ends. What a pod of the own namespace has registered in both comes from the pods alone: the
// other registry keeps it after the end of a process that could not deregister.
func (t *table) onlyOthers() (all []*Instance) {
	if len(t.others.byService) == 0 {
		return nil
	}
	type key struct{ service, value string }
	ids, addresses := map[key]bool{}, map[key]bool{}
	for _, e := range t.pods {
		for _, i := range e.instances {
			ids[key{i.Service.Name, i.Id}], addresses[key{i.Service.Name, i.Address}] = true, true
		}
	}
	for service, entries := range t.others.byService {
		for id, e := range entries {
			e.onPod = e.onPod || ids[key{service, id}]
			if t.others.podsKnown && e.source.Nodes[0].Metadata[podmeta.NamespaceKey] == t.others.namespace {
				continue
			}
			address := key{service, e.instance.Address}
			if !e.onPod && !addresses[address] {
				addresses[address] = true
				all = append(all, e.instance)
			}
		}
	}
	return all
}
