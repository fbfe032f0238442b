package events

import (
	"context"
	"sync"

	"google.golang.org/grpc/connectivity"
)

// Channel is the part of grpc.ClientConn that WatchConnection reads.
type Channel interface {
	GetState() connectivity.State
	WaitForStateChange(ctx context.Context, last connectivity.State) bool
}

// WatchConnection reports, in a goroutine of the group, when a channel connects and when its connection ends, until the
// channel is closed. Without a callback it does nothing.
func (h *Hub) WatchConnection(group *sync.WaitGroup, channel Channel, i Instance) {
	if report := h.Get().ConnectionChanged; report != nil {
		group.Go(func() { watch(channel, func(change ConnectionChange) { report(i, change) }) })
	}
}

func watch(channel Channel, report func(ConnectionChange)) {
	isOpen := false
	for state := channel.GetState(); ; state = channel.GetState() {
		switch {
		case state == connectivity.Ready && !isOpen:
			isOpen = true
			report(Opened)
		case state == connectivity.Shutdown && isOpen:
			report(Closed)
		case state != connectivity.Ready && isOpen:
			isOpen = false
			report(Lost)
		case state == connectivity.TransientFailure:
			report(Refused)
		}
		if state == connectivity.Shutdown {
			return
		}
		channel.WaitForStateChange(context.Background(), state)
	}
}
