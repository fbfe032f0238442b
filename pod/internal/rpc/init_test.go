package rpc

import (
	"runtime"
	"testing"

	"github.com/micro/go-micro/v2/client"
)

// Init replaces the connections. Nothing of the old ones stays, although their instance stays.
func TestInitLeavesNothingBehind(t *testing.T) {
	c, _ := newTestClient(t, []string{startCounted(t, nil).address()})
	initialize := func(times int) (heap int64) {
		for range times {
			if err := c.Init(client.Retries(1)); err != nil {
				t.Fatal(err)
			}
			if err := callGreeter(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the old connections are closed", func() bool { return c.connections.count() == 1 })
		runtime.GC()
		runtime.GC() // also what sync.Pool keeps for one collection
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const times = 200
	before := initialize(50)
	if grown := (initialize(times) - before) / times; grown > 1<<10 {
		t.Errorf("each Init leaves %d bytes behind", grown)
	}
}
