package rpc

import (
	"context"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/netanswer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/logger"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec
	"google.golang.org/grpc/health/grpc_health_v1"
)

// probeTimeout is how long an instance may take to answer a probe. A connection over TLS to another
// continent takes a second. A process that is frozen answers the probe that waits as soon as it goes
// on. Where packets are lost, the next probe finds out earlier, because TCP repeats a SYN after 1, 3 and 7 s.
const probeTimeout = 3 * time.Second

// probes are the running probes of a client. A probe asks an instance that gave no answer for the
// health of its server, and any answer will do, also that the server has no such method. It does
// so over a new HTTP/2 connection, because the old one may lead to a machine that is gone. To
// connect is not enough: the kernel also accepts connections to a process that is frozen.
type probes struct {
	context context.Context // ends when the client is closed
	cancel  context.CancelFunc

	mu      sync.Mutex
	stopped bool
	running sync.WaitGroup
}

// startDue starts the probe that is due after a choice. It does not wait. A closed client leaves it to the
// other clients of the registry.
func (p *probes) startDue(choice balancer.Choice, c *connections) {
	if p.context.Err() != nil {
		return
	}
	b := choice.Probe()
	if b == nil {
		return
	}
	isRunning := p.run(b.Instance.Address, b.Done, func(ctx context.Context) (outcome.Outcome, error) {
		conn, err := c.acquire(b.Instance, "", "")
		if err != nil {
			return outcome.Inconclusive, err
		}
		defer conn.release()
		if conn.channel.GetState() != connectivity.Ready {
			return conn.checkHealth(ctx, conn.channel) // with the next attempt to connect
		}
		return c.probeAgain(ctx, conn)
	})
	if !isRunning {
		b.Done(errClosed, false)
	}
}

// startForAddress starts the probe of a fixed address after a call that has timed out, unless one has
// just run. The connection may lead to a machine that is gone, while the address stands for another one.
func (p *probes) startForAddress(conn *connection, c *connections) {
	now, last := time.Now(), conn.probed.Load()
	if last != nil && now.Sub(*last) < probeTimeout || conn.channel.GetState() != connectivity.Ready || !conn.probed.CompareAndSwap(last, &now) {
		return
	}
	p.run(conn.target.(fixedAddress).address, func(error, bool) {}, func(ctx context.Context) (outcome.Outcome, error) { return c.probeAgain(ctx, conn) })
}

// run runs a probe in a goroutine of its own, and then calls done with its error, which is nil if it
// was answered, and whether it is conclusive. It returns false after stop.
func (p *probes) run(address string, done func(error, bool), probe func(context.Context) (outcome.Outcome, error)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return false
	}
	p.running.Go(func() {
		begin, o, err := time.Now(), outcome.Inconclusive, errClosed
		ctx, cancel := context.WithTimeout(p.context, probeTimeout)
		defer cancel()
		defer func() {
			if r := recover(); r != nil { // an interceptor of grpcc.DialOptions, whose panics in calls go-micro's server recovers
				logger.Errorf("Client [pod] Probing instance %s: panic: %v", address, r)
			}
			// If this process has paused, the instance may have answered in time.
			hasPaused := time.Since(begin) > probeTimeout+probeTimeout/2
			done(err, o != outcome.Inconclusive && !hasPaused)
		}()
		o, err = probe(ctx)
	})
	return true
}

// stop ends all probes and waits for them.
func (p *probes) stop() {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	p.cancel()
	p.running.Wait()
}

// probeAgain opens another connection, which later calls use if it is answered. The error is nil if
// it is.
func (c *connections) probeAgain(ctx context.Context, conn *connection) (outcome.Outcome, error) {
	channel, err := c.dialAgain(conn.target)
	if err != nil {
		return outcome.Inconclusive, err
	}
	isAnswered := false
	defer func() {
		if !isAnswered {
			_ = channel.Close()
		}
	}()
	o, err := conn.checkHealth(ctx, channel)
	if isAnswered = err == nil; isAnswered {
		c.renew(conn, channel)
	}
	return o, err
}

// checkHealth asks for the health of the server. The error is nil if there is any answer. A
// handshake that has never succeeded is inconclusive: the client's settings may be wrong.
func (c *connection) checkHealth(ctx context.Context, channel channel) (outcome.Outcome, error) {
	o, err := result(ctx, netanswer.Of(ctx, channel, func(opt grpc.CallOption) error {
		_, err := grpc_health_v1.NewHealthClient(channel).Check(ctx, &grpc_health_v1.HealthCheckRequest{},
			grpc.WaitForReady(true), grpc.ForceCodecV2(encoding.GetCodecV2("proto")), opt)
		return err
	}))
	switch {
	case o == outcome.FailedHandshake && !c.answered.Load():
		return outcome.Inconclusive, err
	case o.IsAnswer():
		return c.judge(o, nil)
	case c.path != nil:
		return c.path.Judge(o, err)
	}
	return o, err
}
