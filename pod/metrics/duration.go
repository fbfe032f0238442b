package metrics

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	micrometadata "github.com/micro/go-micro/v2/metadata"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/metadata"
)

// duration is a histogram with exemplars.
type duration struct {
	prometheus.Observer
	exemplars [len(buckets) + 1]atomic.Int64 // by bucket, the second in which the last exemplar was taken
}

func newDuration(o prometheus.Observer) *duration { return &duration{Observer: o} }

var start = time.Now()

// secondsNow returns the seconds since the start of the process.
func secondsNow() int64 { return int64(time.Since(start) / time.Second) }

// observe records a duration. It looks for the id of the trace once per bucket and second, because an
// exemplar allocates memory.
func (d *duration) observe(took time.Duration, traceID func() string) {
	seconds := took.Seconds()
	bucket, _ := slices.BinarySearch(buckets[:], seconds)
	last := &d.exemplars[bucket]
	if now := secondsNow() + 1; last.Load() != now && last.Swap(now) != now {
		if id := traceID(); isTraceID(id) {
			d.Observer.(prometheus.ExemplarObserver).ObserveWithExemplar(seconds, prometheus.Labels{"trace_id": id})
			return
		}
	}
	d.Observe(seconds)
}

// isTraceID reports whether an id, which comes from a caller, may become an exemplar.
func isTraceID(id string) bool {
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && c != '-' {
			return false
		}
	}
	return id != "" && len(id) <= 36 // a uuid, which go-micro makes, or 32 digits of W3C
}

// clientTrace returns the id of the trace of a call of a client.
func clientTrace(ctx context.Context) string {
	id, _ := micrometadata.Get(ctx, "Micro-Trace-Id")
	return id
}

// serverTrace returns the id of the trace of a call that a server serves.
func serverTrace(ctx context.Context) string {
	if ids := metadata.ValueFromIncomingContext(ctx, "micro-trace-id"); len(ids) > 0 {
		return ids[0]
	}
	return ""
}
