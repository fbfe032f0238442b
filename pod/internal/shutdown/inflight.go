package shutdown

import (
	"context"
	"sync"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
)

// inFlight counts the calls or messages in flight. It is safe for concurrent use.
type inFlight struct {
	mu   sync.Mutex
	n    int
	idle broadcast.Broadcast // notified when n becomes 0
}

// begin counts one more call or message until end is called.
func (f *inFlight) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
}

func (f *inFlight) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n--; f.n == 0 {
		f.idle.Notify()
	}
}

func (f *inFlight) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// wait waits until nothing is in flight or ctx ends, and returns the number still in flight.
func (f *inFlight) wait(ctx context.Context) (left int) {
	for {
		idle := f.idle.Wait()
		n := f.count()
		if n == 0 {
			return 0
		}
		select {
		case <-idle:
		case <-ctx.Done():
			return n
		}
	}
}

// count returns how many calls or messages of all kinds are in flight.
func count(kinds []*inFlight) int {
	n := 0
	for _, k := range kinds {
		n += k.count()
	}
	return n
}
