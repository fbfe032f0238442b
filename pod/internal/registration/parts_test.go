package registration

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/broker"
	"github.com/micro/go-micro/v2/registry"
)

const brokerName = "micro.http.broker"

// topic returns what go-micro's HTTP broker registers for a topic.
func topic(name, queue string) *registry.Service {
	return &registry.Service{Name: brokerName, Version: queue,
		Nodes: []*registry.Node{{Id: name + "-1", Address: "10.244.0.9:9300", Metadata: map[string]string{"broker": "http", "topic": name}}}}
}

// annotated returns the service in the annotation of the fake's pod, and the ids of its nodes.
func annotated(t *testing.T, api *fakeAPI, name string) (s registry.Service, ids []string) {
	t.Helper()
	api.mu.Lock()
	defer api.mu.Unlock()
	if err := json.Unmarshal([]byte(api.pod.Annotations[podmeta.AnnotationPrefix+name]), &s); err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Nodes {
		ids = append(ids, n.Id)
	}
	return s, ids
}

// The broker registers each topic every 30 s. Before they were merged, each call replaced what the one
// before had written.
func TestTopicsAreMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		o, _ := testOptions(api)
		s := newTestService(t, o)
		topics := []*registry.Service{topic("paid", "all"), topic("ordered", "all"), topic("shipped", "all")}
		for range 5 {
			for _, one := range topics {
				if err := s.Register(one); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(30 * time.Second)
		}
		if _, ids := annotated(t, api, brokerName); fmt.Sprint(ids) != "[ordered-1 paid-1 shipped-1]" || api.count() != 3 || !s.Registered() {
			t.Errorf("the annotation has the nodes %v after %d PATCH, want all of them after 3", ids, api.count())
		}
		if err := s.Deregister(topics[0]); err != nil {
			t.Fatal(err)
		}
		if err := s.Deregister(topics[0]); err != nil {
			t.Fatal(err)
		}
		if _, ids := annotated(t, api, brokerName); fmt.Sprint(ids) != "[ordered-1 shipped-1]" {
			t.Errorf("after one has ended: %v", ids)
		}
		if err := s.Register(topic("other", "one of them")); err == nil || !strings.Contains(err.Error(), `version "all"`) || !strings.Contains(err.Error(), "queue") {
			t.Errorf("another version: %v", err)
		}
		if err := errors.Join(s.Deregister(topics[1]), s.Deregister(topics[2])); err != nil || api.has(brokerName) {
			t.Errorf("after all have ended: %v, the annotation is there: %v", err, api.has(brokerName))
		}
		if err := s.Register(topic("other", "one of them")); err != nil {
			t.Errorf("the other version alone: %v", err)
		}
		s.Leave("greeter")
		if api.has(brokerName) {
			t.Error("Leave leaves the registration")
		}
	})
}

func TestPartsOfAService(t *testing.T) {
	first, second := service("greeter", "a", "10.0.0.1:1"), service("greeter", "b", "10.0.0.1:2")
	second.Metadata, second.Endpoints[0].Name = map[string]string{"x": "y"}, "Greeter.Bye"
	for _, order := range [][]*registry.Service{{first, second}, {second, first}, {first, second, first}} {
		var all parts
		var err error
		for _, s := range order {
			if all, err = all.with(s); err != nil {
				t.Fatal(err)
			}
		}
		m := all.merged()
		if len(m.Nodes) != 2 || m.Nodes[0].Id != "a" || m.Nodes[1].Id != "b" || m.Metadata["x"] != "y" || m.Endpoints[0].Name != "Greeter.Hello" {
			t.Errorf("merged is %+v", m)
		}
	}
	changed := service("greeter", "a", "10.0.0.1:9")
	changed.Version = "v2"
	all, err := parts{first}.with(changed)
	if err != nil || len(all) != 1 || all.merged().Nodes[0].Address != "10.0.0.1:9" || all.merged().Version != "v2" {
		t.Errorf("a service that has changed: %v, %v", all, err)
	}
	if len(first.Nodes) != 1 || len(second.Nodes) != 1 {
		t.Error("the caller's services were changed")
	}
}

// onlyService is the part of a Service that a broker uses, as a registry.
type onlyService struct {
	registry.Registry
	s *Service
}

func (r onlyService) Register(s *registry.Service, opts ...registry.RegisterOption) error {
	return r.s.Register(s, opts...)
}

func (r onlyService) Deregister(s *registry.Service, opts ...registry.DeregisterOption) error {
	return r.s.Deregister(s, opts...)
}

func TestTopicsOfARealBroker(t *testing.T) {
	for _, c := range []struct{ address, refused string }{{"", "MICRO_BROKER_ADDRESS"}, {":0", ""}} {
		api := newFakeAPI()
		o, environment := testOptions(api)
		environment["POD_IP"] = "192.0.2.1" // nobody listens there
		s := newTestService(t, o)
		b := broker.NewBroker(broker.Registry(onlyService{s: s}), broker.Addrs(c.address))
		if err := b.Connect(); err != nil {
			t.Fatal(err)
		}
		var subscribers []broker.Subscriber
		for _, name := range []string{"paid", "ordered"} {
			one, err := b.Subscribe(name, func(broker.Event) error { return nil })
			if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
				t.Errorf("the broker at %q: %v", c.address, err)
			}
			if err == nil {
				subscribers = append(subscribers, one)
			}
		}
		if c.refused == "" {
			var topics []string
			all, _ := annotated(t, api, brokerName)
			for _, n := range all.Nodes {
				topics = append(topics, n.Metadata["topic"])
			}
			if slices.Sort(topics); fmt.Sprint(topics) != "[ordered paid]" {
				t.Errorf("the annotation has the topics %v", topics)
			}
			if err := errors.Join(subscribers[0].Unsubscribe(), subscribers[1].Unsubscribe()); err != nil || api.has(brokerName) {
				t.Errorf("the end of the subscriptions: %v, the annotation is there: %v", err, api.has(brokerName))
			}
		}
		if err := b.Disconnect(); err != nil {
			t.Error(err)
		}
	}
}

// Readiness depends on the service of the lifecycle, not on the topics of its broker.
func TestOtherServicesDoNotMatter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		o, environment := testOptions(api)
		s := newTestService(t, o)
		if err := errors.Join(s.InBackground("greeter"), s.Register(service("greeter", "a", "10.0.0.1:1"))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		api.set(func() { api.refuse = func(podmeta.Patch) error { return errForbidden } }) // an outage
		if err := s.Register(topic("paid", "all")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if !s.RegisteredAs("greeter") || s.LastError("greeter") != nil || s.RegisteredAs(brokerName) || !errors.Is(s.LastError(brokerName), errForbidden) || s.Registered() {
			t.Errorf("greeter: registered %v, error %v; broker: registered %v, error %v; all: %v",
				s.RegisteredAs("greeter"), s.LastError("greeter"), s.RegisteredAs(brokerName), s.LastError(brokerName), s.Registered())
		}
		if err := s.Register(service("adder", "a", "10.0.0.1:1")); err != nil || s.RegisteredAs("adder") || s.RegisteredAs("unknown") || s.LastError("unknown") != nil {
			t.Errorf("adder: %v", err)
		}
		delete(environment, "POD_IP") // Register refuses the service without asking the API server
		if err := s.Register(service("local", "a", "127.0.0.1:1")); err == nil || s.LastError("local") == nil || s.LastError("greeter") != nil {
			t.Errorf("local: Register returned %v, the error is %v", err, s.LastError("local"))
		}
		if err := s.Register(service("local", "a", "10.0.0.1:1")); err != nil || s.LastError("local") != nil {
			t.Errorf("local: Register returned %v, the error is %v", err, s.LastError("local"))
		}
	})
}

// Init of a web service changes its name, as with MICRO_SERVER_NAME, after the lifecycle has read it.
func TestNameThatTheLifecycleDoesNotKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		o, environment := testOptions(api)
		s := newTestService(t, o)
		if err := errors.Join(s.InBackground("page"), s.InBackground("greeter"), s.Register(service("greeter", "a", "10.0.0.1:1")), s.Register(topic("paid", "all"))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if s.RegisteredAs("page") || !s.RegisteredAs("greeter") {
			t.Errorf("before it is registered: page %v, greeter %v", s.RegisteredAs("page"), s.RegisteredAs("greeter"))
		}
		podIP := environment["POD_IP"]
		delete(environment, "POD_IP")
		if err := s.Register(service("renamed", "b", "127.0.0.1:2")); err == nil || s.RegisteredAs("page") || s.LastError("page") == nil || s.LastError("greeter") != nil {
			t.Errorf("Register returned %v, the error of page is %v", err, s.LastError("page"))
		}
		environment["POD_IP"] = podIP
		if err := s.Register(service("renamed", "b", "127.0.0.1:2")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if !s.RegisteredAs("page") || s.LastError("page") != nil {
			t.Errorf("registered %v, the error is %v", s.RegisteredAs("page"), s.LastError("page"))
		}
		api.set(func() { api.refuse = func(podmeta.Patch) error { return errForbidden } })
		s.Leave("page")
		time.Sleep(time.Second)
		if !s.DeregistrationPending("page") || s.DeregistrationPending("greeter") {
			t.Errorf("while the API server refuses: pending %v and %v", s.DeregistrationPending("page"), s.DeregistrationPending("greeter"))
		}
		api.set(func() { api.refuse = nil })
		time.Sleep(10 * time.Second)
		err := s.Register(service("renamed", "b", "127.0.0.1:2")) // as go-micro may do once more
		time.Sleep(time.Second)
		if err != nil || api.has("renamed") || s.DeregistrationPending("page") || !s.RegisteredAs("greeter") {
			t.Errorf("after page has left: renamed is on the pod: %v, pending: %v, greeter is registered: %v, %v", api.has("renamed"), s.DeregistrationPending("page"), s.RegisteredAs("greeter"), err)
		}
		err = errors.Join(s.InBackground("page"), s.Register(service("renamed", "b", "127.0.0.1:2")))
		time.Sleep(time.Second)
		if err != nil || !api.has("renamed") || !s.RegisteredAs("page") {
			t.Errorf("after page has started again: renamed is on the pod: %v, %v", api.has("renamed"), err)
		}
	})
}
