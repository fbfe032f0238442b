package pod

import (
	"context"
	"maps"
	"testing"

	"github.com/micro/go-micro/v2/metadata"
)

// TestHandlersSeeSameHeaders compares what handlers get with and without capitalizeHeaders.
func TestHandlersSeeSameHeaders(t *testing.T) {
	received := metadata.Metadata{":authority": "a", "content-type": "b", "user-agent": "c", "micro-from-service": "d", "micro-trace-id": "e", "Remote": "f", "x-of-the-user": "g", "UPPER": "h"}
	want, _ := metadata.FromContext(metadata.NewContext(context.Background(), received))
	ctx := metadata.NewContext(context.Background(), maps.Clone(received))
	capitalizeHeaders(ctx)
	if got, _ := metadata.FromContext(ctx); !maps.Equal(got, want) {
		t.Errorf("a handler gets %v, want %v", got, want)
	}
	for key := range received {
		if value, _ := metadata.Get(ctx, key); value != received[key] {
			t.Errorf("a handler gets %q for the key %q, want %q", value, key, received[key])
		}
	}
	capitalizeHeaders(context.Background())
}

// TestCapitalizedHeadersCostNoStrings measures that go-micro's functions make no string of a usual key
// after capitalizeHeaders.
func TestCapitalizedHeadersCostNoStrings(t *testing.T) {
	ctx := metadata.NewContext(context.Background(), metadata.Metadata{":authority": "a", "content-type": "b", "user-agent": "c", "micro-from-service": "d", "micro-namespace": "e"})
	measure := func() float64 {
		return testing.AllocsPerRun(100, func() { _, _ = metadata.Get(ctx, "Micro-Namespace") })
	}
	before := measure()
	capitalizeHeaders(ctx)
	if after := measure(); after > before-5 {
		t.Errorf("reading a header allocates %v times, want %v", after, before-5)
	}
}
