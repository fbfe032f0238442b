package load

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	tierCallers, tierCalls = 10, 10                 // of tiers: 100 calls
	tierPause              = 200 * time.Millisecond // from one call of a caller to the next, so that all begin within 2 s
)

// tiers measures how many attempts the last of some tiers receives for each call while it answers UNAVAILABLE.
// Each other tier is a server of the library whose handler calls the next one with its context.
func tiers(l Library, j Job) (r Result, err error) {
	last, err := NewInstance()
	if err != nil {
		return r, err
	}
	address, client := last.Address, Client(nil)
	for tier := j.Count; ; tier-- {
		if client, err = l.Dial([]string{address}, true); err != nil {
			return r, err
		}
		if err = client.Hello(context.Background()); err != nil { // connects, and reads the settings of the environment before the next Dial
			return r, err
		}
		if tier == 1 {
			break
		}
		if address, err = l.tier(client.Hello); err != nil {
			return r, err
		}
	}
	last.Behave(func(context.Context) error { return status.Error(codes.Unavailable, "down") })
	before := last.received.Load()
	record := recorder{client: client}
	for range tierCallers {
		record.done.Go(func() {
			for range tierCalls {
				next := time.After(tierPause)
				record.one(time.Now())
				<-next
			}
		})
	}
	record.done.Wait()
	r.Attempts = float64(last.received.Load()-before) / (tierCallers * tierCalls)
	return r, nil
}

// tier starts a server of the library that answers what call returns.
func (l Library) tier(call func(context.Context) error) (string, error) {
	if l.Tier != nil {
		return l.Tier(call)
	}
	i, err := NewInstance()
	if err != nil {
		return "", err
	}
	i.Behave(call)
	return i.Address, nil
}

// killed closes the listener and all connections of one of 4 instances, while 100 callers call them.
func killed(l Library, j Job) (r Result, err error) {
	all, client, err := dial(l, j, 4, lognormal(answer, 0))
	if err != nil {
		return r, err
	}
	record := recorder{client: client}
	start := time.Now().Add(warmUp)
	end := start.Add(warmUp)
	record.closed(100, end)
	time.Sleep(time.Until(start))
	all[len(all)-1].kill()
	for _, c := range record.wait().between(start.Add(-time.Second), end) {
		if c.failed {
			r.FailedCalls++
		}
	}
	return r, nil
}

// kill stops an instance as the end of its process does.
func (i *Instance) kill() {
	i.listener.Close()
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, c := range i.connections {
		c.Close()
	}
}
