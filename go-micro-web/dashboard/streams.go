package dashboard

import (
	"fmt"
	"net/http"
	"net/netip"
	"sync"
)

const (
	maxStreams       = 1000 // open event streams
	maxClientStreams = 100  // open event streams of one client address
)

// streams counts the open event streams and bounds them, in all and for each client
// address, so that one client cannot keep all others from the live page. Behind a
// proxy or a port-forward many viewers share an address, and with it the limit.
// A client whose stream is refused can poll services.json, which has no limit. The
// zero value is ready to use. It is safe for concurrent use.
type streams struct {
	mu       sync.Mutex
	total    int
	byClient map[netip.Prefix]int
}

// open counts a stream to a remote address until release is called. If there are
// too many streams, it returns the HTTP status and the text of the refusal.
func (s *streams) open(remoteAddr string) (release func(), status int, refusal string) {
	client := clientOf(remoteAddr)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.byClient[client] >= maxClientStreams:
		return nil, http.StatusTooManyRequests, fmt.Sprintf("too many viewers at your address (%d); poll services.json, or try again later", maxClientStreams)
	case s.total >= maxStreams:
		return nil, http.StatusServiceUnavailable, fmt.Sprintf("too many viewers (%d); poll services.json, or try again later", maxStreams)
	}
	if s.byClient == nil {
		s.byClient = map[netip.Prefix]int{}
	}
	s.total++
	s.byClient[client]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.total--
		if s.byClient[client]--; s.byClient[client] == 0 {
			delete(s.byClient, client)
		}
	}, http.StatusOK, ""
}

func (s *streams) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// clientOf returns the addresses that belong to one client: an IPv4 address, or an
// IPv6 network of 64 bits, because a single host can use all addresses of its network.
func clientOf(remoteAddr string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remoteAddr)
	if err != nil {
		return netip.Prefix{} // not a TCP connection
	}
	addr, bits := ap.Addr().Unmap().WithZone(""), 64
	if addr.Is4() {
		bits = 32
	}
	client, _ := addr.Prefix(bits) // the length fits the address
	return client
}
