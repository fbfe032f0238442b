package also

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/registry"
)

// fake is an old registry. It keeps what is registered, and fails as its fields say.
type fake struct {
	name     string // different in each test, for the log
	mu       sync.Mutex
	nodes    map[string]*registry.Service // by node id
	calls    []string                     // with the time since begin
	begin    time.Time
	err      error         // of each call
	panics   bool          // Register panics
	hang     chan struct{} // calls wait until it is closed; nil if they do not
	watchErr error
	watchers map[*fakeWatcher]bool
}

var fakes atomic.Int32

func newFake(t *testing.T) (*fake, *Registry) {
	f := &fake{name: fmt.Sprintf("%s#%d", t.Name(), fakes.Add(1)), begin: time.Now(), nodes: map[string]*registry.Service{}, watchers: map[*fakeWatcher]bool{}}
	r := New(f)
	t.Cleanup(r.Close)
	return f, r
}

// called records a call and returns its error.
func (f *fake) called(text string) error {
	f.mu.Lock()
	f.calls = append(f.calls, fmt.Sprintf("%s at %s", text, time.Since(f.begin).Round(time.Second)))
	hang, err := f.hang, f.err
	f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return err
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// count returns how many calls have begun with a text.
func (f *fake) count(text string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if strings.HasPrefix(c, text) {
			n++
		}
	}
	return n
}

func (f *fake) ids() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for id := range f.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

func (f *fake) Register(s *registry.Service, opts ...registry.RegisterOption) error {
	var o registry.RegisterOptions
	for _, opt := range opts {
		opt(&o)
	}
	if err := f.called(fmt.Sprintf("register %s for %s", s.Nodes[0].Id, o.TTL)); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.panics {
		panic("no client")
	}
	f.nodes[s.Nodes[0].Id] = s
	return nil
}

func (f *fake) Deregister(s *registry.Service, _ ...registry.DeregisterOption) error {
	if err := f.called("deregister " + s.Nodes[0].Id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.nodes, s.Nodes[0].Id)
	return nil
}

func (f *fake) GetService(name string, _ ...registry.GetOption) (all []*registry.Service, err error) {
	if err := f.called("get " + name); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.nodes {
		if s.Name == name {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return nil, registry.ErrNotFound
	}
	return all, nil
}

func (f *fake) ListServices(...registry.ListOption) ([]*registry.Service, error) {
	if err := f.called("list"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*registry.Service
	for _, s := range f.nodes {
		all = append(all, &registry.Service{Name: s.Name})
	}
	return all, nil
}

type fakeWatcher struct {
	results chan *registry.Result
	stopped chan struct{}
	once    sync.Once
}

func (f *fake) Watch(...registry.WatchOption) (registry.Watcher, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "watch")
	if f.watchErr != nil {
		return nil, f.watchErr
	}
	w := &fakeWatcher{results: make(chan *registry.Result), stopped: make(chan struct{})}
	f.watchers[w] = true
	return w, nil
}

// send passes an event to every watcher, and waits until they have it.
func (f *fake) send(action string, s *registry.Service) {
	f.mu.Lock()
	watchers := maps.Clone(f.watchers)
	f.mu.Unlock()
	for w := range watchers {
		select {
		case w.results <- &registry.Result{Action: action, Service: s}:
		case <-w.stopped:
		}
	}
	synctest.Wait()
}

func (w *fakeWatcher) Next() (*registry.Result, error) {
	select {
	case r := <-w.results:
		return r, nil
	case <-w.stopped:
		return nil, registry.ErrWatcherStopped
	}
}

func (w *fakeWatcher) Stop() { w.once.Do(func() { close(w.stopped) }) }

func (f *fake) Init(...registry.Option) error { return nil }
func (f *fake) Options() registry.Options     { return registry.Options{} }
func (f *fake) String() string                { return f.name }

func service(name, id string) *registry.Service {
	return &registry.Service{Name: name, Version: "1", Nodes: []*registry.Node{{Id: id, Address: "10.0.0.1:" + id}}}
}

// published keeps what Follow publishes.
type published struct {
	mu    sync.Mutex
	last  string // ids in order
	err   error
	times int
}

func (p *published) publish(all []*registry.Service, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ids []string
	for _, s := range all {
		if len(s.Nodes) != 1 {
			panic("a service has several nodes")
		}
		ids = append(ids, s.Nodes[0].Id)
	}
	slices.Sort(ids)
	p.last, p.err = strings.Join(ids, " "), err
	p.times++
}

func (p *published) get() (string, error, int) {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last, p.err, p.times
}

func (p *published) check(t *testing.T, want string) {
	t.Helper()
	if got, err, _ := p.get(); got != want || err != nil {
		t.Errorf("published %q, %v; want %q", got, err, want)
	}
}

func TestRegistrationsAreSentAndRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newFake(t)
		s := service("greeter", "1")
		s.Nodes = append(s.Nodes, &registry.Node{Id: "2", Address: "10.0.0.1:2"})
		r.Register(s, registry.RegisterTTL(90*time.Second))
		synctest.Wait()
		if !r.Registered("greeter") || r.Registered("adder") || f.ids() != "1 2" {
			t.Errorf("registered: %v, %v; nodes %q", r.Registered("greeter"), r.Registered("adder"), f.ids())
		}
		time.Sleep(30 * time.Second)
		r.Register(s, registry.RegisterTTL(90*time.Second)) // as go-micro's server does
		r.Wait(time.Second)
		time.Sleep(time.Second)
		r.Deregister(&registry.Service{Name: "greeter", Version: "1", Nodes: s.Nodes[:1]})
		r.Wait(time.Second)
		if f.ids() != "2" {
			t.Errorf("after Deregister of node 1: %q", f.ids())
		}
		r.Leave(func(name string) bool { return name == "greeter" })
		r.Wait(time.Second)
		r.Deregister(s) // again
		synctest.Wait()
		want := []string{"register 1 for 1m30s at 0s", "register 2 for 1m30s at 0s", "register 1 for 1m30s at 30s", "register 2 for 1m30s at 30s", "deregister 1 at 31s", "deregister 2 at 31s"}
		if !slices.Equal(f.calls, want) {
			t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(f.calls, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestFailedRegistrationIsLoggedOnceAndRetried(t *testing.T) {
	for _, c := range []struct {
		name, want string
		fail       func(*fake)
	}{
		{"error", "connection refused", func(f *fake) { f.err = errors.New("connection refused") }},
		{"panic", "the registry panicked: no client", func(f *fake) { f.panics = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				f, r := newFake(t)
				f.set(func() { c.fail(f) })
				r.Register(service("greeter", "1"))
				time.Sleep(10 * time.Minute)
				if n := f.count("register"); n < 20 || n > 45 { // 1 s, 2 s, 4 s ... 30 s, each halved at most
					t.Errorf("%d attempts in 10 minutes", n)
				}
				if err := r.Failing(); err == nil || !strings.Contains(err.Error(), c.want) || r.Registered("greeter") {
					t.Errorf("Failing returned %v, Registered %v", err, r.Registered("greeter"))
				}
				f.set(func() { f.err, f.panics = nil, false })
				time.Sleep(maxBackoff)
				if f.ids() != "1" || !r.Registered("greeter") || r.Failing() != nil {
					t.Errorf("after the registry is back: nodes %q, Registered %v, Failing %v", f.ids(), r.Registered("greeter"), r.Failing())
				}
				if lines := kubetest.LogLines(t, begin, f.name, c.want, `Registering service "greeter"`); len(lines) != 1 {
					t.Errorf("%d log lines: %q", len(lines), lines)
				}
				if lines := kubetest.LogLines(t, begin, f.name, "works again"); len(lines) != 1 {
					t.Errorf("%d log lines: %q", len(lines), lines)
				}
			})
		})
	}
}

func TestRegistryWithoutAnswerDelaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		f, r := newFake(t)
		hang := make(chan struct{})
		f.set(func() { f.hang = hang })
		var p published
		stop := r.Follow("greeter", p.publish)
		r.Register(service("greeter", "1"))
		r.Deregister(service("greeter", "1"))
		r.Register(service("greeter", "2"))
		if took := time.Since(begin); took > 0 {
			t.Errorf("the calls took %s", took)
		}
		if all := r.List(); all != nil || time.Since(begin) != callTimeout {
			t.Errorf("List returned %v after %s", all, time.Since(begin))
		}
		if all := r.List(); all != nil || time.Since(begin) != callTimeout {
			t.Errorf("a second List returned %v after %s", all, time.Since(begin))
		}
		if got, err, _ := p.get(); got != "" || err == nil {
			t.Errorf("published %q, %v; want an error", got, err)
		}
		if err := r.Failing(); err == nil || !strings.Contains(err.Error(), "no answer for 5s") {
			t.Errorf("Failing returned %v", err)
		}
		time.Sleep(time.Hour)
		if n := f.count(""); n > 4 { // the register, get, list and watch that hang
			t.Errorf("%d calls: %q", n, f.calls)
		}
		f.set(func() { f.hang = nil })
		close(hang)
		r.Wait(time.Minute)
		time.Sleep(readAgain * 2)
		if f.ids() != "2" || r.Failing() != nil {
			t.Errorf("after the registry answers again: nodes %q, Failing %v", f.ids(), r.Failing())
		}
		p.check(t, "2")
		hang = make(chan struct{})
		f.set(func() { f.hang = hang })
		r.Deregister(service("greeter", "2"))
		began := time.Now()
		r.Wait(2 * time.Second)
		stop()
		r.Close()
		if took := time.Since(began); took != 2*time.Second+closeWait {
			t.Errorf("Wait, stop and Close took %s", took)
		}
		close(hang)
	})
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newFake(t)
		f.nodes["1"] = service("greeter", "1")
		f.nodes["9"] = service("adder", "9")
		var p published
		stop := r.Follow("greeter", p.publish)
		p.check(t, "1")
		f.send("create", service("greeter", "2"))
		p.check(t, "1 2")
		f.send("create", service("adder", "3"))
		p.check(t, "1 2")
		f.send("delete", service("greeter", "1"))
		p.check(t, "2")
		reads := f.count("get")
		f.send("delete", &registry.Service{Name: "greeter"}) // some registry does not say what has left
		p.check(t, "1")
		if n := f.count("get"); n != reads+1 {
			t.Errorf("%d readings, want %d", n, reads+1)
		}
		f.send("update", &registry.Service{Name: "greeter", Nodes: []*registry.Node{nil, {Id: "4"}}}) // no address
		p.check(t, "1")

		// An event that was lost shows with the next reading.
		f.set(func() { f.nodes["5"] = service("greeter", "5") })
		time.Sleep(2 * readAgain)
		p.check(t, "1 5")

		// A watch that ends begins again, and is followed by a reading.
		f.set(func() {
			for w := range f.watchers {
				w.Stop()
			}
			clear(f.watchers)
			f.nodes["6"] = service("greeter", "6")
		})
		time.Sleep(minBackoff)
		p.check(t, "1 5 6")

		// While reading fails, the instances stay.
		f.set(func() { f.err = errors.New("down"); clear(f.nodes) })
		time.Sleep(2 * readAgain)
		if got, err, _ := p.get(); got != "1 5 6" || err == nil {
			t.Errorf("published %q, %v", got, err)
		}
		f.set(func() { f.err = nil })
		time.Sleep(maxBackoff)
		p.check(t, "")

		stop()
		_, _, before := p.get()
		f.set(func() { f.nodes["7"] = service("greeter", "7") })
		time.Sleep(time.Hour)
		if _, _, times := p.get(); times != before {
			t.Errorf("published %d times after stop", times-before)
		}
	})
}

func TestWatchThatIsRefusedIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		f, r := newFake(t)
		f.watchErr = errors.New("permission denied")
		var p published
		stop := r.Follow("greeter", p.publish)
		defer stop()
		time.Sleep(10 * time.Minute)
		if n := f.count("watch"); n < 20 || n > 45 {
			t.Errorf("%d watches in 10 minutes", n)
		}
		f.set(func() { f.watchErr = nil })
		time.Sleep(maxBackoff + callTimeout)
		synctest.Wait()
		if r.Failing() != nil {
			t.Errorf("Failing returned %v", r.Failing())
		}
		if lines := kubetest.LogLines(t, begin, f.name, "permission denied", `Watching service "greeter"`); len(lines) != 1 {
			t.Errorf("%d log lines: %q", len(lines), lines)
		}
	})
}

func TestList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newFake(t)
		f.nodes["1"] = service("greeter", "1")
		for _, err := range []error{nil, errors.New("down")} {
			f.set(func() { f.err = err })
			if all := r.List(); len(all) != 1 || all[0].Name != "greeter" {
				t.Errorf("List returned %v while the registry's error is %v", all, err)
			}
		}
	})
}
