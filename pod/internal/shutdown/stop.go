package shutdown

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

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
)

// ending is the state of a stop. Only the functions of the stop use it, one after the other.
type ending struct {
	deadline     time.Time      // end of the drain
	signals      chan os.Signal // signals that arrive during the stop
	secondSignal os.Signal      // nil until one has arrived
}

// leave makes the service not ready, removes its registration from the pod, and waits
// until the clients have noticed.
func (l *lifecycle) leave() {
	begin := time.Now()
	signal.Notify(l.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT) // go-micro has received the first signal: this is the second
	close(l.stopping)

	l.setDeadline(begin)
	noticed := begin.Add(l.DrainWait)
	if l.deadline.Before(noticed) {
		noticed = l.deadline
	}
	logger.Infof("Shutting down: deregistering, and accepting calls for %s more while clients notice", max(0, time.Until(noticed)).Round(100*time.Millisecond))
	l.Registration.DeregisterAll()
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
	l.deadline = begin.Add(max(0, l.Registration.GracePeriod()-stopMargin))
}

// waitUntil waits until a time, or for a second signal.
func (l *lifecycle) waitUntil(end time.Time) {
	t := time.NewTimer(time.Until(end))
	defer t.Stop()
	select {
	case <-t.C:
	case l.secondSignal = <-l.signals:
	}
}

// awaitConfirmation waits until the API server has confirmed the deregistration, and logs a
// warning if it has not done so at the timeout or at a second signal.
func (l *lifecycle) awaitConfirmation(timeout <-chan time.Time) {
	for l.secondSignal == nil {
		changed := l.Registration.Changed()
		if !l.Registration.DeregistrationPending() {
			return
		}
		select {
		case <-changed:
			continue
		case <-timeout:
		case l.secondSignal = <-l.signals:
		}
		logger.Warnf("Deregistering: the API server has not confirmed it")
		return
	}
}

// drain waits until nothing of the given kinds is in flight. The log and the error call
// them by the given name.
func (l *lifecycle) drain(what string, kinds ...*inFlight) error {
	busy := false
	for _, k := range kinds {
		busy = busy || k.count() > 0
	}
	if !busy {
		return nil
	}
	ctx, cancel := l.drainContext(what)
	defer cancel()
	cutOff := 0
	for _, k := range kinds {
		cutOff += k.wait(ctx)
	}
	if cutOff == 0 {
		return nil
	}
	return fmt.Errorf("waiting for %s in flight: %d cut off: %w", what, cutOff, context.Cause(ctx))
}

// drainContext returns a context that ends, with its cause, at the deadline or with
// a second signal.
func (l *lifecycle) drainContext(what string) (context.Context, context.CancelFunc) {
	left := max(0, time.Until(l.deadline))
	logger.Infof("Waiting for %s in flight, for %s at most", what, left.Round(100*time.Millisecond))
	timed, stop := context.WithTimeoutCause(context.Background(), left, errors.New("the pod's grace period ends"))
	ctx, cancel := context.WithCancelCause(timed)
	if l.secondSignal != nil {
		cancel(fmt.Errorf("a second signal: %s", l.secondSignal))
	}
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case l.secondSignal = <-l.signals:
			cancel(fmt.Errorf("a second signal: %s", l.secondSignal))
		case <-ctx.Done():
		}
	})
	return ctx, func() { stop(); watcher.Wait() }
}

// end is the last phase of the stop.
func (l *lifecycle) end() error {
	defer signal.Stop(l.signals) // after Release: a signal must not end the process before
	return l.Release()
}
