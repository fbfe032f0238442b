// Package broadcast wakes goroutines that wait for a change of some state.
//
// The owner of the state calls Notify after each change. A reader that must miss no
// change calls Wait first, then reads the state, and then receives from the channel:
//
//	for {
//		changed := b.Wait()
//		if ready() {
//			return
//		}
//		<-changed
//	}
package broadcast

import "sync"

// Broadcast wakes all goroutines that wait for a change. Its zero value is ready for use.
type Broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// Wait returns a channel that the next Notify closes.
func (b *Broadcast) Wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

// Notify wakes all waiting goroutines.
func (b *Broadcast) Notify() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
