package pod

import (
	"context"
	"maps"
	"testing"

	"github.com/micro/go-micro/v2/metadata"
	"github.com/micro/go-micro/v2/server"
)

// TestHandlersSeeSameHeaders compares what handlers get with and without the wrapper.
func TestHandlersSeeSameHeaders(t *testing.T) {
	received := metadata.Metadata{":authority": "a", "content-type": "b", "user-agent": "c", "micro-from-service": "d", "micro-trace-id": "e", "Remote": "f", "x-of-the-user": "g", "UPPER": "h"}
	ctx := metadata.NewContext(context.Background(), maps.Clone(received))
	want, _ := metadata.FromContext(ctx)
	called := false
	err := capitalizeHeaders(func(ctx context.Context, _ server.Request, _ interface{}) error {
		called = true
		if got, _ := metadata.FromContext(ctx); !maps.Equal(got, want) {
			t.Errorf("a handler gets %v, want %v", got, want)
		}
		for key := range received {
			if value, _ := metadata.Get(ctx, key); value != received[key] {
				t.Errorf("a handler gets %q for the key %q, want %q", value, key, received[key])
			}
		}
		return nil
	})(ctx, nil, nil)
	if err != nil || !called {
		t.Fatalf("handler called: %v, error: %v", called, err)
	}
	_ = capitalizeHeaders(func(ctx context.Context, _ server.Request, _ interface{}) error {
		if md, ok := metadata.FromContext(ctx); ok {
			t.Errorf("without headers, a handler gets %v", md)
		}
		return nil
	})(context.Background(), nil, nil)
}

// TestCapitalizedHeadersCostNoStrings measures that go-micro's functions make no string of a usual key
// after the wrapper.
func TestCapitalizedHeadersCostNoStrings(t *testing.T) {
	ctx := metadata.NewContext(context.Background(), metadata.Metadata{":authority": "a", "content-type": "b", "user-agent": "c", "micro-from-service": "d", "micro-namespace": "e"})
	measure := func(ctx context.Context) float64 {
		return testing.AllocsPerRun(100, func() { _, _ = metadata.Get(ctx, "Micro-Namespace") })
	}
	_ = capitalizeHeaders(func(capitalized context.Context, _ server.Request, _ interface{}) error {
		if before, after := measure(ctx), measure(capitalized); after > before-5 {
			t.Errorf("reading a header allocates %v times, want %v", after, before-5)
		}
		return nil
	})(ctx, nil, nil)
}
