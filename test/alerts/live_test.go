package alerts

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// An instance is ejected from 10 s on. With durations divided by 20 the alert fires after 15 s, and ends with the first evaluation at which no sample of the last 3 s shows the ejection. A pod
// that is gone raises nothing.
func TestReplay(t *testing.T) {
	var samples strings.Builder
	begin := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	for second := range 60 {
		at, ejected := begin.Add(time.Duration(second)*time.Second).UnixMilli(), 0
		if second >= 10 && second < 40 {
			ejected = 1
		}
		fmt.Fprintf(&samples, "sample %d %d micro_client_ejected{namespace=\"x\",pod=\"caller\",server_address=\"orders\"}\n", at, ejected)
		fmt.Fprintf(&samples, "sample %d 4 micro_registry_instances{namespace=\"x\",pod=\"caller\",server_address=\"orders\",state=\"ready\"}\n", at)
		if second < 20 {
			fmt.Fprintf(&samples, "sample %d 100 micro_registry_snapshot_age_seconds{namespace=\"x\",pod=\"gone\"}\n", at)
		}
	}
	fired, err := Replay(t.Context(), component, 20, strings.NewReader(samples.String()))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range fired {
		got = append(got, fmt.Sprintf("%s from %.0f to %.0f", f.Alert, f.From.Sub(begin).Seconds(), f.Until.Sub(begin).Seconds()))
	}
	if want := "[MicroRegistryStale from 0 to 21 MicroInstanceEjected from 26 to 42]"; fmt.Sprint(got) != want {
		t.Errorf("%s fire, want %s", got, want)
	}
	for _, text := range []string{"", "x", "sample 1 2", "sample x 2 a", "sample 1 x a", "sample 1 2 a{"} {
		if _, err := Replay(t.Context(), component, 20, strings.NewReader(text)); err == nil {
			t.Errorf("%q is replayed", text)
		}
	}
}
