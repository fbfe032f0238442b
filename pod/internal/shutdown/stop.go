package shutdown

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/micro/go-micro/v2/logger"
)

const (
	// stopMargin is the part of the grace period that is kept for the work after the
	// drain: go-micro gives its gRPC server up to one second to close its
	// connections.
	stopMargin = 3 * time.Second

	// confirmationTimeout is how long a stop waits for the API server to confirm the
	// deregistration if DrainWait is shorter than that.
	confirmationTimeout = time.Second

	// closeTimeout is how long the drain waits for connections on which no call is in
	// flight: for clients that do not answer GOAWAY, for which grpc-go waits 5 s, and for
	// streams of reflection.
	closeTimeout = time.Second
)

// ending is the state of a stop.
type ending struct {
	context     context.Context           // of the service: its end begins the stop; nil if there is none
	began       time.Time                 // when the stop began
	cutOffs     int                       // calls, messages or requests that were cut off
	deadline    time.Time                 // end of the drain
	drainEnds   atomic.Pointer[time.Time] // the same for other goroutines; nil before the stop
	signals     chan os.Signal            // signals that arrive during the stop
	interrupted context.Context           // ends with a second signal
	interrupt   context.CancelCauseFunc
	watching    sync.WaitGroup // the goroutine that receives signals
}

func newEnding() ending {
	interrupted, interrupt := context.WithCancelCause(context.Background())
	return ending{signals: make(chan os.Signal, 2), interrupted: interrupted, interrupt: interrupt}
}

// begunBySignal reports whether the first signal has begun the stop: go-micro has received it
// then, or signal.NotifyContext. If the service's context has ended for another reason, the
// first signal is that of a kubelet which deletes the pod.
func (l *lifecycle) begunBySignal() bool {
	return l.context == nil || l.context.Err() == nil || strings.HasSuffix(context.Cause(l.context).Error(), " signal received")
}

// leave makes the service not ready, removes its registration from the pod, and waits
// until the clients have noticed.
func (l *lifecycle) leave() {
	begin := time.Now()
	signal.Notify(l.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	first := !l.begunBySignal()
	l.watching.Go(func() {
		for {
			select {
			case sig := <-l.signals:
				if !first {
					l.interrupt(fmt.Errorf("a second signal: %s", sig))
					return
				}
				first = false
			case <-l.interrupted.Done(): // end
				return
			}
		}
	})
	l.began = begin
	l.setDeadline(begin)
	close(l.stopping)

	noticed := begin.Add(l.DrainWait)
	if l.deadline.Before(noticed) {
		noticed = l.deadline
	}
	logger.Infof("Shutting down: deregistering, and accepting calls for %s more while clients notice", max(0, time.Until(noticed)).Round(100*time.Millisecond))
	l.Registration.Leave(l.name)
	confirmed := time.NewTimer(max(time.Until(noticed), confirmationTimeout))
	defer confirmed.Stop()
	l.waitUntil(noticed)
	l.awaitConfirmation(confirmed.C)
	l.setDeadline(begin) // by now the registry may have seen the pod's deletion, with another grace period
}

// setDeadline computes the end of the drain from the pod's grace period, as far as the
// registry knows it. The kubelet counts the grace period from when it sees the deletion
// of the pod, and runs a preStop hook within that time, before it sends SIGTERM.
func (l *lifecycle) setDeadline(begin time.Time) {
	if deletion := l.Registration.TerminatingSince(); !deletion.IsZero() && deletion.Before(begin) {
		begin = deletion
	}
	deadline := begin.Add(max(0, l.Registration.GracePeriod()-stopMargin))
	l.deadline = deadline
	l.drainEnds.Store(&deadline)
}

// waitUntil waits until a time, or for a second signal.
func (l *lifecycle) waitUntil(end time.Time) {
	t := time.NewTimer(time.Until(end))
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.interrupted.Done():
	}
}

// awaitConfirmation waits until the API server has confirmed the deregistration, and logs a
// warning if it has not done so at the timeout or at a second signal.
func (l *lifecycle) awaitConfirmation(timeout <-chan time.Time) {
	for l.interrupted.Err() == nil {
		changed := l.Registration.Changed()
		if !l.Registration.DeregistrationPending(l.name) {
			return
		}
		select {
		case <-changed:
			continue
		case <-timeout:
		case <-l.interrupted.Done():
		}
		logger.Warnf("Deregistering: the API server has not confirmed it")
		return
	}
}

// drain waits until nothing of the given kinds is in flight, and then until the connections
// are closed, if a channel says when they are: meanwhile new calls may arrive. The log and the
// error call the kinds by the given name.
func (l *lifecycle) drain(what string, connectionsClosed <-chan struct{}, kinds ...*inFlight) error {
	ctx, cancel := l.drainContext()
	defer cancel()
	if count(kinds) > 0 {
		l.logWaiting(what)
	}
	for {
		cutOff := 0
		for _, k := range kinds {
			cutOff += k.wait(ctx)
		}
		if l.cutOffs += cutOff; cutOff > 0 {
			return fmt.Errorf("waiting for %s in flight: %d cut off: %w", what, cutOff, context.Cause(ctx))
		}
		if connectionsClosed == nil {
			return nil
		}
		select {
		case <-connectionsClosed:
			return nil
		case <-ctx.Done():
		case <-time.After(closeTimeout):
		}
		if count(kinds) == 0 {
			return nil
		}
	}
}

func (l *lifecycle) logWaiting(what string) {
	logger.Infof("Waiting for %s in flight, for %s at most", what, max(0, time.Until(l.deadline)).Round(100*time.Millisecond))
}

// drainContext returns a context that ends, with its cause, at the deadline or with
// a second signal.
func (l *lifecycle) drainContext() (context.Context, context.CancelFunc) {
	return context.WithDeadlineCause(l.interrupted, l.deadline, errors.New("the pod's grace period ends"))
}

// end is the last phase of the stop.
func (l *lifecycle) end() error {
	defer signal.Stop(l.signals) // after Release: a signal must not end the process before
	if drained := l.Events.Get().Drained; drained != nil && !l.began.IsZero() {
		drained(l.name, events.Drain{Duration: time.Since(l.began), CutOff: l.cutOffs})
	}
	err := l.Release()
	l.interrupt(nil)
	l.watching.Wait()
	return err
}
