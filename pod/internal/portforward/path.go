// Package portforward leads the calls of a process outside of the cluster to pods, through the API server.
//
// For each connection that grpc-go dials, a Path opens one connection to the API server and upgrades it: the subresource
// portforward of the instance's pod. Nothing needs to be installed in the cluster. The user needs the verbs get and create on
// pods/portforward.
//
//	Path.DialContext  path.go      what grpc-go calls instead of a dial
//	Path.upgrade      upgrade.go   HTTP becomes WebSocket, or SPDY where the server or a proxy refuses WebSocket
//	tunnel            tunnel.go    the two SPDY streams of a port-forward, as a net.Conn
//	Path.Judge        judge.go     is the instance to blame for the error of a call, or the path
//	Path.suspect      suspect.go   asks the API server for a sign of life when an answer is late
//
// The inside of both protocols is SPDY/3.1, with one pair of streams: the data, and a text if the pod's port cannot be
// reached. The tunnel reads and writes these frames itself, in the goroutines of its user, and takes nothing but the
// encoding of its first frames from github.com/moby/spdystream/spdy. So a connection needs no goroutine and no queue, what a
// peer sends cannot make it allocate memory, and the state of the header compression, 1 MB, is not kept.
package portforward

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"google.golang.org/grpc"
)

// Path leads to the pods of a namespace through its API server. Make it with New. It is safe for concurrent use.
type Path struct {
	server    *apiserver.Connection
	transport http.RoundTripper
	closeAll  func()
	useSPDY   atomic.Bool           // WebSocket was refused, and SPDY was not
	trouble   atomic.Pointer[error] // why the API server cannot be reached now; nil if it can, as far as the path knows
	first     preambles
	checks    checks
}

// New returns a path through an API server. It makes no call.
func New(server *apiserver.Connection) (*Path, error) {
	p := &Path{server: server}
	var err error
	if p.transport, p.closeAll, err = server.Upgrading(); err != nil {
		return nil, fmt.Errorf("connecting to pods through the API server: %w", err)
	}
	p.checks.context, p.checks.cancel = context.WithCancel(context.Background())
	return p, nil
}

// Close closes all connections, also those in use.
func (p *Path) Close() {
	p.checks.stop()
	p.closeAll()
}

// DialOption makes grpc-go connect to an instance on a pod through the path.
func (p *Path) DialOption(pod string) grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return p.DialContext(ctx, pod, address) })
}

// DialContext connects to a port of a pod. The address is the one that callers within the cluster dial; the path uses only its
// port. DialContext does not wait for the pod: if its port refuses the connection, the first Read returns the reason.
func (p *Path) DialContext(ctx context.Context, pod, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("connecting to pod %q: %w", pod, err)
	}
	open, err := p.first.of(port)
	if err != nil {
		return nil, fmt.Errorf("connecting to pod %q: %w", pod, err)
	}
	late := time.AfterFunc(maxSilence, p.suspect)
	defer late.Stop()
	raw, err := p.upgrade(ctx, pod)
	if err != nil {
		if err, isPath := p.explainUpgrade(ctx, err, pod); isPath {
			if ctx.Err() != context.Canceled {
				p.trouble.Store(&err)
			}
			return nil, err
		}
		p.trouble.Store(nil)
		return nil, p.podError(pod, port, err)
	}
	p.trouble.Store(nil)
	t := newTunnel(p, raw, pod, address)
	if _, err := raw.Write(open); err != nil {
		raw.Close()
		return nil, p.pathError(pod, err)
	}
	return t, nil
}

// preambles are the first bytes of a tunnel, which depend on the port only. It keeps those of the last port.
type preambles struct {
	mu    sync.Mutex
	port  string
	bytes []byte
}

func (f *preambles) of(port string) (open []byte, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.port != port || f.bytes == nil {
		if f.bytes, err = preamble(port); err != nil {
			f.bytes = nil
		}
		f.port = port
	}
	return f.bytes, err
}
