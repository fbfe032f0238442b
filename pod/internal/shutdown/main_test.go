package shutdown

import (
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	signals := make(chan os.Signal, 1) // the first Notify starts a goroutine, which must not belong to a bubble of synctest
	signal.Notify(signals, syscall.SIGTERM)
	signal.Stop(signals)
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), // and the goroutines of go-micro that never end
		goleak.IgnoreAnyFunction("github.com/micro/go-micro/v2/registry/memory.(*Registry).ttlPrune"),
		goleak.IgnoreAnyFunction("github.com/micro/go-micro/v2/util/auth.Generate.func1"),
		goleak.IgnoreAnyFunction("github.com/patrickmn/go-cache.(*janitor).Run"))
}

// go-micro's registry in memory starts a goroutine, so these are not made in a bubble of synctest.
var ownRegistry, otherRegistry = memory.NewRegistry(), memory.NewRegistry()

// fakeRegistration is a registration whose state a test sets.
type fakeRegistration struct {
	changed broadcast.Broadcast

	mu               sync.Mutex
	background       string // service of InBackground
	backgroundErr    error
	other            registry.Registry
	registered       bool
	lastErr          error
	deregistered     bool
	onDeregister     func()
	confirmed        bool
	terminatingSince time.Time
	gracePeriod      time.Duration
}

func (f *fakeRegistration) set(change func()) {
	f.mu.Lock()
	change()
	f.mu.Unlock()
	f.changed.Notify()
}

func (f *fakeRegistration) InBackground(service string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.background = service
	return f.backgroundErr
}

func (f *fakeRegistration) UseOther(other registry.Registry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.other = other
}

func (f *fakeRegistration) RegisteredAs(string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.registered
}

func (f *fakeRegistration) LastError(string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lastErr
}

func (f *fakeRegistration) Leave(string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deregistered = true
	if f.onDeregister != nil {
		f.onDeregister()
	}
}

func (f *fakeRegistration) DeregistrationPending(string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.deregistered && !f.confirmed
}

func (f *fakeRegistration) Changed() <-chan struct{} { return f.changed.Wait() }

func (f *fakeRegistration) TerminatingSince() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.terminatingSince
}

func (f *fakeRegistration) GracePeriod() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gracePeriod
}

var errRelease = errors.New("closing the registry")

// newConfig returns the configuration of a registered service, and the counts of Retain
// and Release. Release returns errRelease.
func newConfig() (c Config, f *fakeRegistration, retained, released *int) {
	f = &fakeRegistration{registered: true, confirmed: true, gracePeriod: 30 * time.Second}
	retained, released = new(int), new(int)
	return Config{Registry: ownRegistry, Registration: f, DrainWait: DefaultDrainWait, Getenv: func(string) string { return "" }, Limits: DefaultLimits,
		Retain: func() { *retained++ }, Release: func() error { *released++; return errRelease }}, f, retained, released
}
