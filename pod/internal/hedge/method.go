package hedge

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
)

const (
	// The second attempt begins after this quantile of the latency. kitex recommends p99, and Dean and
	// Barroso take p95.
	quantile = 0.98

	// share is that of the calls that may have a second attempt, and maxSaved how many unused second
	// attempts are saved for a moment at which many calls take long, such as a pause of one instance.
	share    = 0.03
	maxSaved = 20

	// Above this share of errors no second attempts are made, as with kitex. It is an exponentially
	// weighted moving average of the last errorWindow calls.
	maxErrors   = 0.1
	errorWindow = 64

	// minCalls is the number of calls from which the quantile is known: two of them took longer.
	minCalls = 100

	// maxMethods bounds the memory, 1.2 kB each. Calls of further methods are not hedged.
	maxMethods = 256
)

// Methods are the methods that are called with the option. The zero value is empty. It is safe for
// concurrent use.
type Methods struct {
	known sync.Map // *Method by methodName
	count atomic.Int64
}

type methodName struct{ service, method string }

// Find returns a method of a service, nil if there are too many.
func (m *Methods) Find(service, method string) *Method {
	name := methodName{service, method}
	if found, ok := m.known.Load(name); ok {
		return found.(*Method)
	}
	if m.count.Add(1) > maxMethods {
		m.count.Add(-1)
		return nil
	}
	found, loaded := m.known.LoadOrStore(name, &Method{})
	if loaded {
		m.count.Add(-1)
	}
	return found.(*Method)
}

// Method is what is known of one method of one service, whatever the instance. It is safe for concurrent
// use.
type Method struct {
	delay atomic.Int64 // see Delay

	mu        sync.Mutex
	latencies histogram
	errors    float64 // share of them in the last calls
	saved     float64 // second attempts that may be made
}

// Delay returns the time from the first attempt to the second one. It is 0 if there is no second attempt,
// because too little is known of the method or too many calls fail.
func (m *Method) Delay() time.Duration { return time.Duration(m.delay.Load()) }

// observe adds the end of a first attempt. The time of an error says nothing about the latency.
func (m *Method) observe(took time.Duration, o outcome.Outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saved = min(maxSaved, m.saved+share)
	if o == outcome.Answered || o == outcome.TimedOut {
		m.latencies.add(took)
	}
	failed := 0.
	if o != outcome.Answered && o != outcome.Inconclusive {
		failed = 1
	}
	m.errors += (failed - m.errors) / errorWindow
	delay := m.latencies.at(quantile)
	if m.errors > maxErrors || m.latencies.total < minCalls {
		delay = 0
	}
	if time.Duration(m.delay.Load()) != delay {
		m.delay.Store(int64(delay))
	}
}

// draw takes a second attempt from the budget, and reports whether there was one.
func (m *Method) draw() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.saved < 1 || m.errors > maxErrors {
		return false
	}
	m.saved--
	return true
}
