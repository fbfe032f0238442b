package gomicro

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/micro/go-micro/v2/metadata"
)

// TestHandlersSeeSameHeaders compares what handlers get with and without CapitalizeHeaders.
func TestHandlersSeeSameHeaders(t *testing.T) {
	received := metadata.Metadata{":authority": "a", "content-type": "b", "user-agent": "c", "micro-from-service": "d", "micro-trace-id": "e", "Remote": "f", "x-of-the-user": "g", "UPPER": "h"}
	want, _ := metadata.FromContext(metadata.NewContext(context.Background(), received))
	ctx := metadata.NewContext(context.Background(), maps.Clone(received))
	CapitalizeHeaders(ctx)
	if got, _ := metadata.FromContext(ctx); !maps.Equal(got, want) {
		t.Errorf("a handler gets %v, want %v", got, want)
	}
	for key := range received {
		if value, _ := metadata.Get(ctx, key); value != received[key] {
			t.Errorf("a handler gets %q for the key %q, want %q", value, key, received[key])
		}
	}
	CapitalizeHeaders(context.Background())
}

// TestCapitalizedHeadersCostNoStrings measures that go-micro's functions make no string of a usual key
// after CapitalizeHeaders.
func TestCapitalizedHeadersCostNoStrings(t *testing.T) {
	ctx := metadata.NewContext(context.Background(), metadata.Metadata{":authority": "a", "content-type": "b", "user-agent": "c", "micro-from-service": "d", "micro-namespace": "e"})
	measure := func() float64 {
		return testing.AllocsPerRun(100, func() { _, _ = metadata.Get(ctx, "Micro-Namespace") })
	}
	before := measure()
	CapitalizeHeaders(ctx)
	if after := measure(); after > before-5 {
		t.Errorf("reading a header allocates %v times, want %v", after, before-5)
	}
}

func TestLowerCase(t *testing.T) {
	for _, key := range append(slices.Clone(usualKeys), "x-of-the-user", "UPPER", "Über", "") {
		for _, k := range []string{key, strings.ToLower(key), strings.ToUpper(key)} {
			if got := LowerCase(k); got != strings.ToLower(k) {
				t.Errorf("LowerCase(%q) = %q", k, got)
			}
		}
	}
}
