// Package also uses a second registry, such as etcd, beside the pods, while services move from it to
// their pods.
//
// A service whose registry has pod.Also registers on its pod and in the old registry, and finds the
// instances of both. The old registry never delays or fails what concerns the pods: each of its calls
// runs in a goroutine of its own, a failure is logged once and retried, and a panic is an error.
//
//	Register, Deregister, Leave  (register.go) what go-micro's server registers, with its time to live
//	Follow                       (follow.go)   the instances of one service, as package discovery reads them
//	List                         (follow.go)   the names of all services
//	call                         (also.go)     one call of the old registry
//
// What crosses the wall: services and registries of go-micro, and nothing of Kubernetes.
package also

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
)

const (
	callTimeout = 5 * time.Second  // after which a call counts as failed; go-micro's etcd registry has the same
	minBackoff  = time.Second      // before the first retry
	maxBackoff  = 30 * time.Second // between later ones, as go-micro's interval of registration
	readAgain   = time.Minute      // between two readings without an event, as go-micro's cache
	closeWait   = time.Second      // how long Close waits for deregistrations
)

// Registry is a registry that is used beside the pods. Make it with New. It is safe for concurrent use.
type Registry struct {
	old    registry.Registry
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	worker sync.WaitGroup // writes
	wake   chan struct{}  // of the worker

	mu      sync.Mutex
	closed  bool
	started bool // the worker runs
	entries map[string]*entry
	changed broadcast.Broadcast // entries have changed
	failing map[string]error    // by operation
	listed  []*registry.Service // the last answer to List
	listing bool                // a List is running
}

// New returns a registry that uses old. It makes no call and starts no goroutine before it is used.
func New(old registry.Registry) *Registry {
	ctx, cancel := context.WithCancel(context.Background())
	return &Registry{old: old, ctx: ctx, cancel: cancel, wake: make(chan struct{}, 1), entries: map[string]*entry{}, failing: map[string]error{}}
}

// String returns the name of the old registry, such as etcd.
func (r *Registry) String() string { return r.old.String() }

// Failing returns why the last call of some operation failed, nil if none did.
func (r *Registry) Failing() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, err := range r.failing {
		return err
	}
	return nil
}

// Close ends the worker. Deregistrations that are still to be sent have a second; registrations stay.
func (r *Registry) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.await(closeWait, func(e *entry) bool { return !e.wanted && e.failures == 0 })
	r.cancel()
	r.worker.Wait()
}

// report records the result of an operation. The log has one line when the first operation fails, and one
// when all succeed again.
func (r *Registry) report(operation string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := len(r.failing)
	if err == nil {
		delete(r.failing, operation)
	} else if r.ctx.Err() == nil {
		r.failing[operation] = err
	}
	switch {
	case before == 0 && len(r.failing) > 0:
		logger.Warnf("Registry [kubernetes] %s registry %q, which pod.Also names: %v; retrying. The registration on the pod and services on pods do not depend on it", operation, r.old, err)
	case before > 0 && len(r.failing) == 0:
		logger.Infof("Registry [kubernetes] Registry %q, which pod.Also names, works again", r.old)
	}
}

// forget drops the result of an operation that is not repeated.
func (r *Registry) forget(operations ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.failing, func(operation string, _ error) bool {
		for _, o := range operations {
			if o == operation {
				return true
			}
		}
		return false
	})
}

// call makes one call of the old registry. If it has not returned after callTimeout, late gets an error
// and call goes on waiting, so that no second call is made meanwhile. If ctx ends, call returns, and the
// call is left alone: registries of go-micro cannot interrupt one.
func call[T any](ctx context.Context, f func() (T, error), late func(error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil { // go-micro's etcd registry has no client if its user was not authenticated
				r.err = fmt.Errorf("the registry panicked: %v", p)
			}
			done <- r
		}()
		r.value, r.err = f()
	}()
	t := time.NewTimer(callTimeout)
	defer t.Stop()
	for {
		select {
		case r := <-done:
			return r.value, r.err
		case <-t.C:
			late(fmt.Errorf("no answer for %s", callTimeout))
		case <-ctx.Done():
			var none T
			return none, ctx.Err()
		}
	}
}

// backoff returns the time before a retry, with jitter.
func backoff(failures int) time.Duration {
	d := min(minBackoff<<min(failures-1, 10), maxBackoff)
	return d/2 + rand.N(d/2+1)
}
