package metrics

import (
	"maps"
	"sync"
	"sync/atomic"
)

// maxSeries is how many combinations of label values one metric has. A client's methods and a web service's routes are those of its
// program; the limit is for programs that pass on what others invent, such as a proxy.
const maxSeries = 2048

// series are the time series of one metric by their labels. Finding one takes no lock and allocates nothing.
type series[K comparable, V any] struct {
	create   func(K) V
	overflow func(K) K // the labels of what exceeds maxSeries

	current atomic.Pointer[map[K]V]
	mu      sync.Mutex // serializes changes
}

// get returns the series of these labels. The first call creates it.
func (s *series[K, V]) get(k K) V {
	if v, ok := s.all()[k]; ok {
		return v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.all()
	if len(before) >= maxSeries && s.overflow != nil {
		k = s.overflow(k)
	}
	if v, ok := before[k]; ok {
		return v
	}
	after := make(map[K]V, len(before)+1)
	maps.Copy(after, before)
	v := s.create(k)
	after[k] = v
	s.current.Store(&after)
	return v
}

// all returns all series. The caller must not change the map.
func (s *series[K, V]) all() map[K]V {
	if m := s.current.Load(); m != nil {
		return *m
	}
	return nil
}

// remove removes the series that a function selects.
func (s *series[K, V]) remove(gone func(K, V) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	after := maps.Clone(s.all())
	maps.DeleteFunc(after, gone)
	s.current.Store(&after)
}
