package discovery

import (
	"runtime"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
)

// stopDuring calls Stop while f waits for the lock of the informer of all services, in most
// calls so that Stop gets the lock before f.
func stopDuring(s *Services, f func()) {
	i := s.overview
	i.mu.Lock()
	ended := make(chan struct{})
	go func() { defer close(ended); f() }()
	i.changed.Notify() // an observer reads the instances again
	for range 100 {
		runtime.Gosched()
	}
	i.mu.Unlock()
	s.Stop()
	<-ended
}

// TestStopHidesNoInstances checks that nobody reads the table that Stop empties.
func TestStopHidesNoInstances(t *testing.T) {
	for range 200 {
		pods := &kubetest.Pods{}
		pods.Put(greeterPod(t, 0))
		s := newServices(pods)
		read, observed := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(observed)
			first := true
			for all, err := range s.Observe(t.Context()) {
				if first {
					first = false
					close(read)
				}
				if len(all) != 1 && err == nil {
					t.Errorf("Observe yields %d instances without an error", len(all))
				}
			}
		}()
		<-read
		stopDuring(s, func() {
			if all, err := s.List(); len(all) != 1 && err == nil {
				t.Errorf("List returns %d services without an error", len(all))
			}
		})
		<-observed
		s.Stop() // List may have started again
	}
}
