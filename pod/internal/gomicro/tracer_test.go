package gomicro

import (
	"context"
	"maps"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/micro/go-micro/v2/debug/trace"
	"github.com/micro/go-micro/v2/debug/trace/memory"
	"github.com/micro/go-micro/v2/metadata"
)

// TestTracerIsLikeGoMicros starts the same spans with go-micro's tracer and with its replacement.
func TestTracerIsLikeGoMicros(t *testing.T) {
	for name, headers := range map[string]metadata.Metadata{
		"no metadata":            nil,
		"no trace":               {"Micro-From-Service": "a", "x-of-the-user": "b"},
		"a trace":                {"Micro-Trace-Id": "t", "Micro-Span-Id": "s", "x-of-the-user": "b"},
		"a trace in lower case":  {"micro-trace-id": "t", "micro-span-id": "s"},
		"a trace without a span": {"Micro-Trace-Id": "t"},
		"a span without a trace": {"Micro-Span-Id": "s"},
		"an id":                  {"Micro-Id": "i", "Micro-Span-Id": "s"},
		"an id without a span":   {"Micro-Id": "i"},
		"an id and a trace":      {"Micro-Id": "i", "Micro-Trace-Id": "t", "micro-span-id": "s"},
		"empty ids":              {"Micro-Trace-Id": "", "Micro-Span-Id": ""},
	} {
		t.Run(name, func(t *testing.T) {
			const made = "made by the tracer"
			start := func(tracer trace.Tracer) (trace.Span, metadata.Metadata) {
				ctx := context.Background()
				if headers != nil {
					ctx = metadata.NewContext(ctx, maps.Clone(headers))
				}
				ctx, span := tracer.Start(ctx, "greeter.Hello")
				if err := tracer.Finish(span); err != nil {
					t.Error(err)
				}
				if all, err := tracer.Read(); err != nil || len(all) != 1 || all[0] != span {
					t.Errorf("after Finish, Read returns %v, %v", all, err)
				}
				md := Metadata(ctx) // FromContext chooses at random between keys that differ in case
				if span.Started.IsZero() || span.Metadata == nil {
					t.Errorf("the span %+v has no time or no metadata", span)
				}
				hide := func(id *string, key string) {
					if len(*id) == 36 { // a UUID
						if md[key] != *id {
							t.Errorf("the header %s is %q, want %q", key, md[key], *id)
						}
						*id, md[key] = made, made
					}
				}
				s := trace.Span{Trace: span.Trace, Parent: span.Parent, Id: span.Id, Name: span.Name}
				hide(&s.Trace, "Micro-Trace-Id")
				hide(&s.Id, "Micro-Span-Id")
				if s.Id != made {
					t.Errorf("the id of the span is %q, want a UUID", s.Id)
				}
				return s, md
			}
			want, wantMD := start(memory.NewTracer())
			got, gotMD := start(&tracer{memory.NewTracer().(*memory.Tracer)})
			if got.Trace != want.Trace || got.Parent != want.Parent || got.Name != want.Name {
				t.Errorf("the span is %+v, want %+v", got, want)
			}
			if !maps.Equal(gotMD, wantMD) {
				t.Errorf("the metadata is %v, want %v", gotMD, wantMD)
			}
		})
	}
}

func TestNewID(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id, err := uuid.Parse(newID())
		if err != nil || id.Version() != 4 || id.Variant() != uuid.RFC4122 || seen[id.String()] {
			t.Fatalf("%s: version %d, variant %s, error %v, made before: %v", id, id.Version(), id.Variant(), err, seen[id.String()])
		}
		seen[id.String()] = true
	}
	if n := testing.AllocsPerRun(100, func() { newID() }); n != 1 {
		t.Errorf("%v allocations, want that of the string", n)
	}
}

func TestUseTracer(t *testing.T) {
	original := trace.DefaultTracer
	t.Cleanup(func() { trace.DefaultTracer, tracerOnce = original, sync.Once{} })
	var users sync.WaitGroup
	theirs := memory.NewTracer()
	trace.DefaultTracer = theirs
	for range 10 {
		users.Go(func() { // several clients of a program
			UseTracer()
			if got, ok := trace.DefaultTracer.(*tracer); !ok || got.Tracer != theirs {
				t.Errorf("services get the tracer %T", trace.DefaultTracer)
			}
		})
	}
	users.Wait()
	trace.DefaultTracer = theirs // a program that does not want it
	if UseTracer(); trace.DefaultTracer != theirs {
		t.Error("a later call replaces the tracer again")
	}

	type own struct{ trace.Tracer }
	tracerOnce, trace.DefaultTracer = sync.Once{}, own{}
	if UseTracer(); trace.DefaultTracer != (own{}) {
		t.Errorf("the program's tracer was replaced by %T", trace.DefaultTracer)
	}
}

func TestTracerTakesNoContext(t *testing.T) {
	ctx, span := (&tracer{memory.NewTracer().(*memory.Tracer)}).Start(nil, "greeter.Hello") //nolint:staticcheck // go-micro's tracer takes it
	if ctx == nil || span == nil || span.Name != "greeter.Hello" || span.Id == "" {
		t.Errorf("Start returns %v, %v", ctx, span)
	}
}

func TestTracerAllocatesLessThanGoMicros(t *testing.T) {
	ctx := metadata.NewContext(context.Background(), metadata.Metadata{"Micro-Trace-Id": "t", "Micro-Span-Id": "s", "Micro-From-Service": "a", "X-Of-The-User": "b"})
	measure := func(tracer trace.Tracer) float64 {
		return testing.AllocsPerRun(100, func() { tracer.Start(ctx, "greeter.Hello") })
	}
	theirs, ours := measure(memory.NewTracer()), measure(&tracer{memory.NewTracer().(*memory.Tracer)})
	if t.Logf("%v allocations, go-micro's tracer %v", ours, theirs); ours > theirs-4 {
		t.Errorf("%v allocations, go-micro's tracer makes %v", ours, theirs)
	}
}
