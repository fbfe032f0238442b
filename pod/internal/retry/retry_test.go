package retry

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	micrometadata "github.com/micro/go-micro/v2/metadata"
	"google.golang.org/grpc/metadata"
)

func TestBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, test := range map[string]struct {
			metadata micrometadata.Metadata
			pushback Pushback
			want     Refusal
		}{
			"nothing known":                {nil, Pushback{}, Permitted},
			"retry of a tier above":        {micrometadata.Metadata{"Grpc-Previous-Rpc-Attempts": "1"}, Pushback{}, ChainStopped},
			"key in lower case":            {micrometadata.Metadata{"grpc-previous-rpc-attempts": "2"}, Pushback{}, ChainStopped},
			"first attempt of a tier":      {micrometadata.Metadata{"grpc-previous-rpc-attempts": "0"}, Pushback{}, Permitted},
			"server wants no retry":        {nil, Pushback{true, -1}, PushedBack},
			"server wants a retry later":   {nil, Pushback{true, 999 * time.Millisecond}, Permitted},
			"server wants a retry at once": {nil, Pushback{true, 0}, Permitted},
			"later than the deadline":      {nil, Pushback{true, time.Second}, PushedBack},
		} {
			ctx, cancel := context.WithTimeout(micrometadata.NewContext(t.Context(), test.metadata), time.Second)
			var b Budgets
			r, got := b.Of("greeter").Begin(ctx, Failure{Pushback: test.pushback})
			cancel()
			r.End(true)
			want := Counts{}
			switch test.want {
			case Permitted:
				want.Made = 1
			case ChainStopped:
				want.ChainStopped = 1
			case PushedBack:
				want.PushedBack = 1
			}
			if got != test.want || b.Counts("greeter") != want {
				t.Errorf("%s: %d, %+v, want %d, %+v", name, got, b.Counts("greeter"), test.want, want)
			}
		}
		var b Budgets
		if _, got := b.Of("greeter").Begin(t.Context(), Failure{Pushback: Pushback{true, time.Hour}}); got != Permitted {
			t.Errorf("without a deadline: %d", got)
		}
	})
}

func TestPushback(t *testing.T) {
	for value, want := range map[string]Pushback{
		"0": {true, 0}, "25": {true, 25 * time.Millisecond}, "2147483647": {true, 2147483647 * time.Millisecond},
		"-1": {true, -1}, "2147483648": {true, -1}, "": {true, -1}, "soon": {true, -1}, "1.5": {true, -1},
	} {
		if got := PushbackOf(metadata.Pairs(PushbackTrailer, value)); got != want {
			t.Errorf("%q: %+v, want %+v", value, got, want)
		}
	}
	if got := PushbackOf(nil); got.Given {
		t.Errorf("no trailer: %+v", got)
	}
	if got := PushbackOf(metadata.Pairs(PushbackTrailer, "1", PushbackTrailer, "2")); got != (Pushback{true, -1}) {
		t.Errorf("two values: %+v", got)
	}
}
