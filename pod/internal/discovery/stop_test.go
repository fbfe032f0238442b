package discovery

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
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

func TestStopReleasesInstancesAndForgetsInformers(t *testing.T) {
	bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
		pods.Put(greeterPod(t, 0))
		before, err := s.Synced(t.Context(), "greeter")
		if err != nil {
			t.Fatal(err)
		}
		instance := before.Snapshot().Instances[0]
		s.Stop()
		if s.InstanceOf(&instance.Node) != nil || !instance.HasLeft() {
			t.Error("Stop has not released the instance")
		}
		after, err := s.Synced(t.Context(), "greeter")
		if err != nil || after == before || len(after.Snapshot().Instances) != 1 {
			t.Errorf("after Stop Synced returned the same informer: %v, error %v", after == before, err)
		}
	})
}

// TestSettingsReachBothKindsOfInformers reads one service and all services.
func TestSettingsReachBothKindsOfInformers(t *testing.T) {
	for name, read := range map[string]func(s *Services) ([]*registry.Service, error){
		"one service":  func(s *Services) ([]*registry.Service, error) { return s.Get("greeter") },
		"all services": func(s *Services) ([]*registry.Service, error) { return s.List() },
	} {
		bubble(t, func(t *testing.T, _ *Services, pods *kubetest.Pods) {
			reported := 0
			s := New(func() (API, error) { return API{API: pods}, nil }, func() Settings {
				return Settings{Timeout: time.Second, AnyAddress: true, APIError: func(string, error) { reported++ }}
			})
			defer s.Stop()
			pods.Put(podRegistering("p", map[string]string{"greeter": registrationOf("greeter", "gateway.example:443")}))
			if all, err := read(s); err != nil || len(all) != 1 {
				t.Errorf("reading %s returned %v, %v", name, all, err)
			}
			pods.Fail(errors.New("down"))
			if reported != 1 {
				t.Errorf("the error of %s is reported %d times", name, reported)
			}
		})
	}
}

func TestLatestDeregisteredInstancesOfTheSamePodAreKept(t *testing.T) {
	table := newAllServices(&index{}, podmeta.Limits{})
	for n := range maxDeregisteredPerPod + 2 {
		service := fmt.Sprint("s-", n)
		table.update(podRegistering("p", map[string]string{service: registrationOf(service, "10.0.0.1:1")}))
	}
	if first := table.deregistered["p"][0].Service.Name; len(table.deregistered["p"]) != maxDeregisteredPerPod || first != "s-1" {
		t.Errorf("%d deregistered instances are kept, the oldest is of %s, want s-1", len(table.deregistered["p"]), first)
	}
	another := podRegistering("p", nil)
	another.UID = "another"
	table.update(another)
	if left := table.observed(); len(left) != 0 {
		t.Errorf("another pod with the same name has the instances %v", left)
	}
}

func TestSkippedRegistrationsAreLoggedOncePerBreak(t *testing.T) {
	table := newAllServices(&index{}, podmeta.Limits{})
	lines := func(pods ...*corev1.Pod) int {
		return len(captureLog(t, func() {
			for _, p := range pods {
				table.update(p)
			}
		}))
	}
	bad := podRegistering("p", map[string]string{"a": "{"})
	good := podRegistering("p", map[string]string{"a": registrationOf("a", "10.0.0.1:1")})
	if n := lines(bad, good, bad); n != 2 {
		t.Errorf("%d lines about a registration that broke twice, want 2", n)
	}
	many := map[string]string{}
	for n := range maxWarningsPerPod + 5 {
		many[fmt.Sprint("b-", n)] = "{"
	}
	if n := lines(podRegistering("q", many)); n != maxWarningsPerPod {
		t.Errorf("%d lines about one pod, want %d", n, maxWarningsPerPod)
	}
}
