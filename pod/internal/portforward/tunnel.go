package portforward

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/spdystream/spdy"
)

// The two streams of a port-forward. A client of SPDY/3.1 uses odd numbers.
const (
	errorStream = 1 // carries a text, if the pod's port cannot be reached or breaks off
	dataStream  = 3
)

// The layout of SPDY/3.1 frames: https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/#2.2
const (
	headerSize  = 8
	flagFin     = 0x01
	controlBit  = 0x80000000
	lengthMask  = 1<<24 - 1
	typeRst     = 3
	typePing    = 6
	maxPayload  = 32 << 10 // of the frames that a tunnel sends; grpc-go writes at most 32 KiB at once
	maxPodError = 4 << 10  // of the text of the error stream that a tunnel keeps
)

// preamble returns the frames that open the two streams of a port-forward to a port, as kubectl sends them.
func preamble(port string) ([]byte, error) {
	var b bytes.Buffer
	framer, err := spdy.NewFramer(&b, strings.NewReader(""))
	if err != nil {
		return nil, err
	}
	for _, f := range []spdy.Frame{
		&spdy.SynStreamFrame{StreamId: errorStream, Headers: http.Header{"Streamtype": {"error"}, "Port": {port}, "Requestid": {"0"}}},
		&spdy.DataFrame{StreamId: errorStream, Flags: spdy.DataFlagFin}, // the client writes nothing there
		&spdy.SynStreamFrame{StreamId: dataStream, Headers: http.Header{"Streamtype": {"data"}, "Port": {port}, "Requestid": {"0"}}},
	} {
		if err := framer.WriteFrame(f); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// tunnel is a connection to a port of a pod. One goroutine may read while others write and close. Deadlines have no effect: grpc-go
// ends a Read and a Write by Close.
type tunnel struct {
	path         *Path
	raw          io.ReadWriteCloser
	pod, address string
	closed       atomic.Bool

	in       *bufio.Reader // these belong to Read
	left     int           // bytes of the current data frame
	last     bool          // no data follows the current frame
	podError []byte        // from the error stream

	writing sync.Mutex
	out     []byte // the last frame, whose memory the next one uses

	asked   atomic.Int64 // Unix nanoseconds of the first Write since the last Read that returned data; 0: none
	silence *time.Timer  // calls checkSilence
}

var _ net.Conn = (*tunnel)(nil)

func newTunnel(p *Path, raw io.ReadWriteCloser, pod, address string) *tunnel {
	t := &tunnel{path: p, raw: raw, pod: pod, address: address, in: bufio.NewReaderSize(raw, 4<<10)}
	t.silence = time.AfterFunc(time.Hour, t.checkSilence)
	t.silence.Stop()
	return t
}

func (t *tunnel) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for t.left == 0 {
		if t.last {
			return 0, t.ended()
		}
		if err := t.nextFrame(); err != nil {
			return 0, t.failed(err)
		}
	}
	n, err := t.in.Read(b[:min(len(b), t.left)])
	t.left -= n
	if err != nil {
		return n, t.failed(err)
	}
	return n, nil
}

// nextFrame reads the frame header of the next data, and everything before it.
func (t *tunnel) nextFrame() error {
	var header [headerSize]byte
	if _, err := io.ReadFull(t.in, header[:]); err != nil {
		return err
	}
	t.answered()
	first, second := binary.BigEndian.Uint32(header[:4]), binary.BigEndian.Uint32(header[4:])
	length, fin := int(second&lengthMask), second>>24&flagFin != 0
	switch {
	case first == dataStream:
		t.left, t.last = length, fin
		return nil
	case first == errorStream:
		return t.readPodError(length)
	case first == controlBit|spdy.Version<<16|typePing && length == 4:
		return t.answerPing(header)
	case first == controlBit|spdy.Version<<16|typeRst && length == 8:
		var body [8]byte
		_, err := io.ReadFull(t.in, body[:])
		t.last = t.last || binary.BigEndian.Uint32(body[:4]) == dataStream
		return err
	}
	_, err := t.in.Discard(length) // replies, settings, windows: SPDY servers of Kubernetes have no flow control
	return err
}

// readPodError reads what the error stream says. Then the pod's port cannot be used any longer.
func (t *tunnel) readPodError(length int) error {
	kept := make([]byte, min(length, maxPodError-len(t.podError)))
	if _, err := io.ReadFull(t.in, kept); err != nil {
		return err
	}
	t.podError = append(t.podError, kept...)
	t.last = t.last || len(t.podError) > 0
	_, err := t.in.Discard(length - len(kept))
	return err
}

// answerPing sends back a ping of the server, as SPDY asks.
func (t *tunnel) answerPing(header [headerSize]byte) error {
	frame := append(header[:], 0, 0, 0, 0)
	if _, err := io.ReadFull(t.in, frame[headerSize:]); err != nil {
		return err
	}
	t.writing.Lock()
	defer t.writing.Unlock()
	_, err := t.raw.Write(frame)
	return err
}

// ended returns the error after the last data of the pod.
func (t *tunnel) ended() error {
	if len(t.podError) > 0 {
		_, port, _ := net.SplitHostPort(t.address)
		return t.path.podError(t.pod, port, errors.New(strings.Join(strings.Fields(string(t.podError)), " ")))
	}
	return io.EOF
}

// failed returns the error of a Read or Write.
func (t *tunnel) failed(err error) error {
	if t.closed.Load() {
		return net.ErrClosed
	}
	return t.path.pathError(t.pod, err)
}

func (t *tunnel) Write(b []byte) (n int, err error) {
	t.asking()
	t.writing.Lock()
	defer t.writing.Unlock()
	for part := b; len(part) > 0; part = b[n:] {
		part = part[:min(len(part), maxPayload)]
		t.out = binary.BigEndian.AppendUint32(t.out[:0], dataStream)
		t.out = binary.BigEndian.AppendUint32(t.out, uint32(len(part))) //nolint:gosec // at most maxPayload
		if _, err := t.raw.Write(append(t.out, part...)); err != nil {
			return n, t.failed(err)
		}
		n += len(part)
	}
	return n, nil
}

// Close closes the connection to the API server, which closes that to the pod.
func (t *tunnel) Close() error {
	if t.closed.Swap(true) {
		return nil
	}
	t.silence.Stop()
	return t.raw.Close()
}

func (t *tunnel) LocalAddr() net.Addr              { return address("this process") }
func (t *tunnel) RemoteAddr() net.Addr             { return address(t.address) }
func (t *tunnel) SetDeadline(time.Time) error      { return nil }
func (t *tunnel) SetReadDeadline(time.Time) error  { return nil }
func (t *tunnel) SetWriteDeadline(time.Time) error { return nil }

// address is an address within the cluster.
type address string

func (a address) Network() string { return "portforward" }
func (a address) String() string  { return string(a) }
