package gomicro

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/micro/go-micro/v2/debug/trace"
	"github.com/micro/go-micro/v2/debug/trace/memory"
)

var tracerOnce sync.Once

// UseTracer replaces the tracer that micro.NewService gives to the wrappers of clients and
// handlers, unless the program has set another one. Only the first call has an effect.
//
// go-micro reads the variable without a lock when it makes a service and when the service
// starts. Calls of UseTracer may run at the same time, and every service that is made after one
// of them gets the new tracer.
func UseTracer() {
	tracerOnce.Do(func() {
		if t, ok := trace.DefaultTracer.(*memory.Tracer); ok {
			trace.DefaultTracer = &tracer{t}
		}
	})
}

// newID returns a random UUID, as uuid.NewString does with one more allocation and a system call. Ids of traces need not be unpredictable.
func newID() string {
	var id uuid.UUID
	binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
	binary.NativeEndian.PutUint64(id[8:], rand.Uint64())
	id[6] = id[6]&0x0f | 0x40 // version 4, random
	id[8] = id[8]&0x3f | 0x80 // the variant of RFC 9562
	return id.String()
}

// tracer is go-micro's tracer, which keeps the last 256 spans in memory, with a cheaper
// Start. go-micro's Start copies the headers of a call three times to read three of them, and makes
// a trace id that it does not need.
type tracer struct{ *memory.Tracer }

// Start begins a span. It continues the trace of the context's metadata, if there is one, and returns a
// context with the new span as parent.
func (t *tracer) Start(ctx context.Context, name string) (context.Context, *trace.Span) {
	if Check() != nil {
		return t.Tracer.Start(ctx, name)
	}
	span := &trace.Span{Name: name, Id: newID(), Started: time.Now(), Metadata: map[string]string{}}
	var microID string
	var hasTrace, hasMicroID, hasParent bool
	for key, value := range Metadata(ctx) {
		switch capitalize(key) {
		case "Micro-Trace-Id":
			span.Trace, hasTrace = value, true
		case "Micro-Id":
			microID, hasMicroID = value, true
		case "Micro-Span-Id":
			span.Parent, hasParent = value, true
		}
	}
	switch {
	case !hasParent || !hasTrace && !hasMicroID:
		span.Trace, span.Parent = newID(), ""
	case !hasTrace:
		span.Trace = microID
	}
	return trace.ToContext(ctx, span.Trace, span.Id), span
}
