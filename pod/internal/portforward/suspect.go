package portforward

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// When an answer is late for maxSilence, the path asks the API server for a sign of life, at most once in that time. Without one
// within signOfLife, calls that time out are no longer the fault of their instances. An API server that works answers in a few
// milliseconds; the sum of the two is less than the timeouts of most calls, which is 5 s by default.
const maxSilence, signOfLife = 500 * time.Millisecond, 500 * time.Millisecond

// checkTimeout is how long a check waits for the API server altogether.
const checkTimeout = 5 * time.Second

var errNoSignOfLife = fmt.Errorf("it has given no sign of life for %s", signOfLife)

// checks are the running checks of a path: at most one.
type checks struct {
	context context.Context // ends with stop
	cancel  context.CancelFunc

	mu      sync.Mutex
	stopped bool
	running bool
	began   time.Time // the last check
	all     sync.WaitGroup
}

// suspect starts a check of the API server, unless there was one within the last maxSilence. It does not wait.
func (p *Path) suspect() {
	c := &p.checks
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped || c.running || time.Since(c.began) < maxSilence {
		return
	}
	c.running, c.began = true, time.Now()
	c.all.Go(func() {
		p.check(c.context)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.running = false
	})
}

func (c *checks) stop() {
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	c.cancel()
	c.all.Wait()
}

// check asks the API server for a sign of life. Any answer is one, also a refusal.
func (p *Path) check(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	late := time.AfterFunc(signOfLife, func() { p.setTrouble(errNoSignOfLife) })
	err := p.askForLife(ctx)
	if isFirst := late.Stop(); err == nil {
		p.trouble.Store(nil)
	} else if isFirst && !errors.Is(ctx.Err(), context.Canceled) {
		p.setTrouble(err)
	}
}

func (p *Path) setTrouble(cause error) {
	err := p.pathError("", cause)
	p.trouble.Store(&err)
}

func (p *Path) askForLife(ctx context.Context) error {
	target, err := url.JoinPath(p.server.Host, "livez")
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return err
	}
	r.Close = true // checks are rare
	rsp, err := p.transport.RoundTrip(r)
	if err != nil {
		return err
	}
	return rsp.Body.Close()
}

// asking records that a tunnel has sent something that may have to be answered.
func (t *tunnel) asking() {
	if t.asked.Load() == 0 && t.asked.CompareAndSwap(0, time.Now().UnixNano()) {
		t.silence.Reset(maxSilence)
	}
}

// answered records that something has arrived, which is a sign of life.
func (t *tunnel) answered() {
	if t.asked.Load() != 0 {
		t.asked.Store(0)
	}
	if t.path.trouble.Load() != nil {
		t.path.trouble.Store(nil)
	}
}

// checkSilence suspects the API server if nothing has arrived for maxSilence. The timer may be that of an earlier question.
func (t *tunnel) checkSilence() {
	asked := t.asked.Load()
	if asked == 0 || t.closed.Load() {
		return
	}
	if silent := time.Since(time.Unix(0, asked)); silent < maxSilence {
		t.silence.Reset(maxSilence - silent)
		return
	}
	t.path.suspect()
	t.silence.Reset(maxSilence)
}
