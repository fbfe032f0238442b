package registration

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/micro/go-micro/v2/registry"
)

// fakeAlso records what it is asked for.
type fakeAlso struct {
	calls      []string
	registered map[string]bool // by service
}

func (f *fakeAlso) Register(s *registry.Service, opts ...registry.RegisterOption) {
	var o registry.RegisterOptions
	for _, opt := range opts {
		opt(&o)
	}
	f.calls = append(f.calls, "register "+s.Name+" at "+s.Nodes[0].Address+" for "+o.TTL.String())
	f.registered[s.Name] = true
}

func (f *fakeAlso) Deregister(s *registry.Service) {
	f.calls = append(f.calls, "deregister "+s.Name)
	delete(f.registered, s.Name)
}

func (f *fakeAlso) Leave(leaves func(string) bool) {
	for name := range f.registered {
		if leaves(name) {
			f.calls = append(f.calls, "leave "+name)
			delete(f.registered, name)
		}
	}
}

func (f *fakeAlso) Wait(limit time.Duration) { f.calls = append(f.calls, "wait "+limit.String()) }

func TestAlsoRegistersWhatThePodDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		o, _ := testOptions(api)
		also := &fakeAlso{registered: map[string]bool{}}
		o.Also = func() Also { return also }
		getenv := o.Getenv
		o.Getenv = func(name string) string {
			if name == "POD_IP" {
				return "10.0.0.7"
			}
			return getenv(name)
		}
		s := newTestService(t, o)
		greeter := service("greeter", "a", "127.0.0.1:1")
		if err := s.Register(greeter, registry.RegisterTTL(90*time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := s.Deregister(greeter); err != nil {
			t.Fatal(err)
		}
		check := func(want ...string) {
			t.Helper()
			if !slices.Equal(also.calls, want) {
				t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(also.calls, "\n"), strings.Join(want, "\n"))
			}
			also.calls = nil
		}
		check("register greeter at 10.0.0.7:1 for 1m30s", "deregister greeter", "wait 4s")

		// A lifecycle waits for nothing. What the pod refuses is registered and leaves, too.
		if err := s.InBackground("greeter"); err != nil {
			t.Fatal(err)
		}
		large := service("greeter", "a", "127.0.0.1:1")
		large.Metadata = map[string]string{"large": strings.Repeat("x", 300<<10)}
		if err := s.Register(large); err == nil {
			t.Error("the registration is not refused")
		}
		check("register greeter at 10.0.0.7:1 for 0s")
		s.Leave("greeter")
		check("leave greeter")
		if err := s.Register(greeter); err != nil { // go-micro may register once more
			t.Error(err)
		}
		check()
	})
}
