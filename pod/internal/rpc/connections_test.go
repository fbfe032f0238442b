package rpc

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"google.golang.org/grpc/connectivity"
)

// newConnections returns the connections of a client with options. They are closed at the end of the test.
func newConnections(t *testing.T, opts ...client.Option) *connections {
	t.Helper()
	c := &connections{path: noPath, credentials: noCredentials, open: map[*connection]bool{}}
	c.replace(newSettings(grpcc.NewClient(opts...).Options()))
	t.Cleanup(c.closeAll)
	return c
}

// count returns the number of connections that are not closed.
func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

func (c *connections) mustAcquire(t *testing.T, target any) *connection {
	t.Helper()
	var conn *connection
	var err error
	if i, ok := target.(*discovery.Instance); ok {
		conn, err = c.acquire(i, "", "")
	} else {
		conn, err = c.acquire(nil, target.(string), "")
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func isClosed(c *connection) bool { return c.channel.GetState() == connectivity.Shutdown }

func TestConnectionsAreShared(t *testing.T) {
	checkNoLeak(t)
	c := newConnections(t)
	i, _ := newInstance("127.0.0.1:1")
	other, _ := newInstance("127.0.0.1:1")
	targets := []any{i, other, "127.0.0.1:1", "127.0.0.1:2"}
	acquired := map[*connection]int{}
	var mu sync.Mutex
	var calls sync.WaitGroup
	for range 20 {
		for _, target := range targets {
			calls.Go(func() {
				conn := c.mustAcquire(t, target)
				defer conn.release()
				mu.Lock()
				defer mu.Unlock()
				acquired[conn]++
			})
		}
	}
	calls.Wait()
	if len(acquired) != 4 || c.count() != 4 {
		t.Errorf("20 calls to each of two instances and two addresses used %d connections, %d are open, want 4", len(acquired), c.count())
	}
	for conn, n := range acquired {
		if n != 20 || isClosed(conn) {
			t.Errorf("the connection to %v was acquired %d times, want 20; closed: %v", conn.target, n, isClosed(conn))
		}
	}
}

func TestConnectionToInstanceThatLeaves(t *testing.T) {
	checkNoLeak(t)
	c := newConnections(t)
	i, leave := newInstance("127.0.0.1:1")
	first, second := c.mustAcquire(t, i), c.mustAcquire(t, i)
	leave()
	eventually(t, "the connection leaves", func() bool { _, ok := c.forCalls.Load(i); return !ok })
	first.release()
	late := c.mustAcquire(t, i)
	if late == second || isClosed(second) {
		t.Errorf("a call after its instance has left uses the same connection: %v; the connection of a call in flight is closed: %v", late == second, isClosed(second))
	}
	second.release()
	eventually(t, "the connection is closed when its calls have ended", func() bool { return isClosed(second) })
	if isClosed(late) {
		t.Error("the connection of the late call is closed")
	}
	late.release()
	eventually(t, "the connection of the late call is closed too", func() bool { return isClosed(late) && c.count() == 0 })

	i, leave = newInstance("127.0.0.1:1")
	unused := c.mustAcquire(t, i)
	unused.release()
	leave()
	eventually(t, "a connection without calls is closed at once", func() bool { return isClosed(unused) && c.count() == 0 })
}

func TestConnectionsWithOtherSettings(t *testing.T) {
	checkNoLeak(t)
	c := newConnections(t)
	i, leave := newInstance("127.0.0.1:1")
	inUse := c.mustAcquire(t, i)
	unused := c.mustAcquire(t, "127.0.0.1:1")
	unused.release()
	s := newSettings(grpcc.NewClient(client.PoolTTL(time.Hour)).Options())
	c.replace(s)
	leave() // the connection in use leaves a second time
	eventually(t, "the connection without calls is closed", func() bool { return isClosed(unused) })
	if isClosed(inUse) {
		t.Error("the connection of a call in flight is closed")
	}
	inUse.release()
	eventually(t, "the other connection is closed", func() bool { return isClosed(inUse) && c.count() == 0 })
	later := c.mustAcquire(t, "127.0.0.1:1")
	defer later.release()
	if c.settings != s || isClosed(later) {
		t.Errorf("later connections do not use the new settings, or are closed: %v", isClosed(later))
	}
}

func TestConnectionsClose(t *testing.T) {
	checkNoLeak(t)
	c := newConnections(t)
	i, leave := newInstance("127.0.0.1:1")
	inUse := c.mustAcquire(t, i)
	gone, leaveNow := newInstance("127.0.0.1:2")
	leaving := c.mustAcquire(t, gone)
	leaveNow()
	eventually(t, "the connection leaves", func() bool { _, ok := c.forCalls.Load(gone); return !ok })
	closed := make(chan struct{})
	go func() { defer close(closed); c.closeAll() }()
	eventually(t, "the connections of calls in flight are closed", func() bool { return isClosed(inUse) && isClosed(leaving) })
	leave()
	inUse.release()
	select {
	case <-closed:
		t.Error("Close does not wait for the call that ends because of it")
	case <-time.After(10 * time.Millisecond):
	}
	leaving.release()
	<-closed
	c.closeAll()
	for _, target := range []any{i, "127.0.0.1:1"} {
		var err error
		if target == i {
			_, err = c.acquire(i, "", "")
		} else {
			_, err = c.acquire(nil, target.(string), "")
		}
		if !errors.Is(err, errClosed) {
			t.Errorf("a call after Close gets %v", err)
		}
	}
}

// A connection closes between once and twice client.PoolTTL after its last call, whatever its target.
func TestConnectionsIdle(t *testing.T) {
	const ttl = time.Minute
	s := newSettings(grpcc.NewClient(client.PoolTTL(ttl)).Options())
	synctest.Test(t, func(t *testing.T) {
		c := &connections{path: noPath, credentials: noCredentials, open: map[*connection]bool{}, settings: s}
		i, _ := newInstance("127.0.0.1:1")
		unusedInstance, unusedAddress := c.mustAcquire(t, i), c.mustAcquire(t, "127.0.0.1:1")
		unusedInstance.release()
		unusedAddress.release()
		inUse, called := c.mustAcquire(t, "127.0.0.1:2"), c.mustAcquire(t, "127.0.0.1:3")
		called.release()
		for range 19 {
			time.Sleep(ttl / 10)
			c.mustAcquire(t, "127.0.0.1:3").release()
		}
		if isClosed(unusedInstance) || isClosed(unusedAddress) {
			t.Error("an unused connection is closed too early")
		}
		time.Sleep(ttl/10 + 1)
		synctest.Wait()
		if !isClosed(unusedInstance) || !isClosed(unusedAddress) || isClosed(inUse) || isClosed(called) || c.count() != 2 {
			t.Errorf("closed: unused %v, %v, with a call in flight %v, called often %v; %d are open", isClosed(unusedInstance), isClosed(unusedAddress), isClosed(inUse), isClosed(called), c.count())
		}
		again := c.mustAcquire(t, i)
		if again == unusedInstance || isClosed(again) {
			t.Error("a later call does not open another connection")
		}
		again.release()
		time.Sleep(10 * ttl)
		synctest.Wait()
		if isClosed(inUse) || !isClosed(called) || !isClosed(again) {
			t.Errorf("closed: with a call in flight %v, not called any more %v, %v", isClosed(inUse), isClosed(called), isClosed(again))
		}
		inUse.release()
		time.Sleep(3 * ttl)
		synctest.Wait()
		if !isClosed(inUse) || c.count() != 0 || c.waiting {
			t.Errorf("closed after the end of its call: %v; %d are open; the timer runs without connections: %v", isClosed(inUse), c.count(), c.waiting)
		}
	})
}

// Init changes client.PoolTTL; with 0 nothing closes.
func TestConnectionsIdleAfterInit(t *testing.T) {
	settings := map[time.Duration]*settings{}
	for _, ttl := range []time.Duration{-1, 0, time.Minute, time.Hour} {
		settings[ttl] = newSettings(grpcc.NewClient(client.PoolTTL(ttl)).Options())
	}
	synctest.Test(t, func(t *testing.T) {
		c := &connections{path: noPath, credentials: noCredentials, open: map[*connection]bool{}}
		defer c.closeAll()
		for ttl, s := range settings {
			c.replace(s)
			conn := c.mustAcquire(t, "127.0.0.1:1")
			conn.release()
			time.Sleep(2*time.Minute + 1)
			synctest.Wait()
			if isClosed(conn) != (ttl == time.Minute) {
				t.Errorf("after 2 minutes with client.PoolTTL(%s) an unused connection is closed: %v", ttl, isClosed(conn))
			}
		}
	})
}

// A client has connections to the instances that it calls, not to all that it has ever called.
func TestClientKeepsConnectionsOnlyToInstancesThatItCalls(t *testing.T) {
	checkNoLeak(t)
	a := startCounted(t, nil)
	addresses := make([]string, 200)
	for i := range addresses {
		addresses[i] = a.address()
	}
	c, _ := newTestClient(t, addresses, client.PoolTTL(300*time.Millisecond))
	for range 600 {
		if err := callGreeter(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	opened := a.accepted.Load()
	eventually(t, "all connections but that to the address are closed", func() bool {
		return callGreeter(t.Context(), c, client.WithAddress(a.address())) == nil && a.open.Load() == 1
	})
	if opened < 150 {
		t.Errorf("600 calls to 200 instances opened %d connections, want most of 200", opened)
	}
}
