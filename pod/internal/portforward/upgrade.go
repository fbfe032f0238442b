package portforward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/coder/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// tunnelled is the WebSocket subprotocol that carries SPDY frames of portForwardV1 (KEP-4006). API servers offer it by default
// from Kubernetes 1.31 on.
const (
	tunnelled     = "SPDY/3.1+" + portForwardV1
	portForwardV1 = "portforward.k8s.io"
)

// maxRefusal is how much of the answer of a server that refuses is read.
const maxRefusal = 64 << 10

// refusal is the answer of a server, or of a proxy, that does not upgrade a connection.
type refusal struct {
	code int
	*apierrors.StatusError
}

func (r *refusal) Unwrap() error { return r.StatusError }

// upgrade opens a connection for the port-forward to a pod.
func (p *Path) upgrade(ctx context.Context, pod string) (io.ReadWriteCloser, error) {
	target, err := url.JoinPath(p.server.Host, "api/v1/namespaces", p.server.Namespace, "pods", pod, "portforward")
	if err != nil {
		return nil, err
	}
	first, second := p.overWebSocket, p.overSPDY
	useSPDY := p.useSPDY.Load()
	if useSPDY {
		first, second = second, first
	}
	raw, err := first(ctx, target)
	var refused *refusal
	if !errors.As(err, &refused) || !mayHelpToTryOther(refused.code) {
		return raw, err
	}
	raw, secondErr := second(ctx, target)
	switch isRefused := errors.As(secondErr, &refused); {
	case secondErr == nil:
		p.useSPDY.Store(!useSPDY) // not the opposite of what another connection has just stored
		return raw, nil
	case !isRefused:
		return nil, secondErr
	case refused.code == http.StatusBadRequest: // that this protocol is unknown says less than the refusal of the other
		return nil, err
	}
	return nil, secondErr
}

// mayHelpToTryOther reports whether a server that refuses one protocol may accept the other. WebSocket uses the method GET and so the verb
// get, SPDY the method POST and the verb create.
func mayHelpToTryOther(code int) bool {
	switch code {
	case http.StatusUnauthorized, http.StatusNotFound, http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return false
	}
	return true
}

// overWebSocket upgrades a connection to WebSocket.
func (p *Path) overWebSocket(ctx context.Context, target string) (io.ReadWriteCloser, error) {
	conn, _, err := websocket.Dial(ctx, target, &websocket.DialOptions{HTTPClient: &http.Client{Transport: upgradeOnly{p.transport}}, Subprotocols: []string{tunnelled}}) //nolint:bodyclose // the library documents that the body need not be closed
	var refused *refusal
	switch {
	case errors.As(err, &refused):
		return nil, fmt.Errorf("WebSocket: %w", refused)
	case err != nil && ctx.Err() == nil && errors.As(err, new(*url.Error)):
		return nil, errors.Unwrap(errors.Unwrap(err)) // without the two prefixes of the library
	case err != nil:
		return nil, err
	case conn.Subprotocol() != tunnelled:
		_ = conn.CloseNow()
		return nil, newRefusal(http.StatusNotImplemented, nil, fmt.Sprintf("the server does not know the WebSocket protocol %q", tunnelled))
	}
	conn.SetReadLimit(-1) // a tunnel reads a message in parts
	return &webSocket{conn: conn}, nil
}

// overSPDY upgrades a connection to SPDY.
func (p *Path) overSPDY(ctx context.Context, target string) (io.ReadWriteCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, target, http.NoBody)
	if err != nil {
		return nil, err
	}
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {portForwardV1}}
	rsp, err := upgradeOnly{p.transport}.RoundTrip(r) //nolint:bodyclose // the tunnel closes it
	if err != nil {
		return nil, fmt.Errorf("SPDY: %w", err)
	}
	return rsp.Body.(io.ReadWriteCloser), nil
}

// upgradeOnly makes every answer but an upgraded connection an error, with the whole text of the server.
type upgradeOnly struct{ http.RoundTripper }

func (u upgradeOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	rsp, err := u.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	_, isWritable := rsp.Body.(io.ReadWriteCloser)
	if rsp.StatusCode == http.StatusSwitchingProtocols && isWritable {
		return rsp, nil
	}
	defer rsp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(rsp.Body, maxRefusal))
	return nil, newRefusal(rsp.StatusCode, text, fmt.Sprintf("the server answers %s: %.200s", rsp.Status, text))
}

// newRefusal returns the Status of Kubernetes in the answer of a server, or else one with a text.
func newRefusal(code int, answer []byte, text string) *refusal {
	var s metav1.Status
	if err := yaml.Unmarshal(answer, &s); err != nil || s.Status != metav1.StatusFailure {
		e := apierrors.NewGenericServerResponse(code, "", schema.GroupResource{}, "", "", 0, true)
		e.ErrStatus.Message = text
		return &refusal{code, e}
	}
	return &refusal{code, &apierrors.StatusError{ErrStatus: s}}
}

// webSocket is the binary messages of a WebSocket, as a stream.
type webSocket struct {
	conn    *websocket.Conn
	message io.Reader // the rest of the current message; nil before the first and after each
}

func (w *webSocket) Read(b []byte) (int, error) {
	for {
		if w.message == nil {
			var err error
			if _, w.message, err = w.conn.Reader(context.Background()); err != nil {
				return 0, err
			}
		}
		n, err := w.message.Read(b)
		if errors.Is(err, io.EOF) {
			w.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (w *webSocket) Write(b []byte) (int, error) {
	return len(b), w.conn.Write(context.Background(), websocket.MessageBinary, b)
}

// Close does not wait for the server's answer to the end of a WebSocket.
func (w *webSocket) Close() error { return w.conn.CloseNow() }
