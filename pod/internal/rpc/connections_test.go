package rpc

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"google.golang.org/grpc/connectivity"
)

// newConnections returns the connections of a client with options. They are closed at the end of the test.
func newConnections(t *testing.T, opts ...client.Option) *connections {
	t.Helper()
	c := &connections{open: map[*connection]bool{}}
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
		conn, err = c.acquire(i, "")
	} else {
		conn, err = c.acquire(nil, target.(string))
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
			_, err = c.acquire(i, "")
		} else {
			_, err = c.acquire(nil, target.(string))
		}
		if !errors.Is(err, errClosed) {
			t.Errorf("a call after Close gets %v", err)
		}
	}
}

// The registry does not say when an address is not called any more.
func TestConnectionsToUnusedAddresses(t *testing.T) {
	checkNoLeak(t)
	c := newConnections(t, client.PoolTTL(50*time.Millisecond))
	i, _ := newInstance("127.0.0.1:1")
	instance := c.mustAcquire(t, i)
	instance.release()
	unused, inUse := c.mustAcquire(t, "127.0.0.1:1"), c.mustAcquire(t, "127.0.0.1:2")
	unused.release()
	inUse.release()
	inUse = c.mustAcquire(t, "127.0.0.1:2")
	recent := c.mustAcquire(t, "127.0.0.1:3")
	time.Sleep(60 * time.Millisecond)
	recent.release()
	c.mustAcquire(t, "127.0.0.1:4").release() // looks for unused ones
	eventually(t, "the unused connection is closed", func() bool { return isClosed(unused) })
	if isClosed(inUse) || isClosed(instance) || isClosed(recent) || c.count() != 4 {
		t.Errorf("closed: in use %v, of an instance %v, used just now %v; %d are open, want 4", isClosed(inUse), isClosed(instance), isClosed(recent), c.count())
	}
	inUse.release()
}

// PoolTTL closes the TCP connection to an address, and not that to an instance.
func TestConnectionsIdle(t *testing.T) {
	t.Parallel()
	a := startCounted(t, nil)
	c := newConnections(t, client.PoolTTL(time.Second))
	i, _ := newInstance(a.address())
	for _, target := range []any{i, a.address()} {
		conn := c.mustAcquire(t, target)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if o, err := result(ctx, conn.channel.Invoke(ctx, "/greeter.Greeter/Hello", &proto.HelloRequest{}, &proto.HelloResponse{})); err != nil {
			t.Fatal(o, err)
		}
		cancel()
		conn.release()
	}
	if n := a.open.Load(); n != 2 {
		t.Fatalf("%d connections, want 2", n)
	}
	eventually(t, "the connection to the address is closed", func() bool { return a.open.Load() == 1 })
	time.Sleep(1500 * time.Millisecond)
	if n := a.open.Load(); n != 1 {
		t.Errorf("%d connections, want that to the instance", n)
	}
}
