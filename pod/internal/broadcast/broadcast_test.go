package broadcast

import "testing"

func TestNotifyWakesAllThatWaitAndNobodyLater(t *testing.T) {
	var b Broadcast
	b.Notify() // wakes nobody
	first, second := b.Wait(), b.Wait()
	for _, c := range []<-chan struct{}{first, second} {
		select {
		case <-c:
			t.Fatal("woken before Notify")
		default:
		}
	}
	b.Notify()
	later := b.Wait()
	for _, c := range []<-chan struct{}{first, second} {
		select {
		case <-c:
		default:
			t.Error("not woken by Notify")
		}
	}
	select {
	case <-later:
		t.Error("woken by an earlier Notify")
	default:
	}
	b.Notify()
	select {
	case <-later:
	default:
		t.Error("not woken by the second Notify")
	}
}
