package codec

import (
	"strings"

	"github.com/micro/go-micro/v2/client"
	microcodec "github.com/micro/go-micro/v2/codec"
	"github.com/micro/go-micro/v2/codec/bytes"
	"google.golang.org/grpc"
)

// ForStream returns what go-micro's Stream.Response returns for an open stream, and a codec that
// writes its messages. name is the name of the codec of the messages.
func ForStream(s grpc.ClientStream, name string) (client.Response, microcodec.Writer) {
	c := &streamCodec{stream: s, name: name}
	return &response{stream: s, codec: c}, c
}

// response is the response of a stream.
type response struct {
	stream grpc.ClientStream
	codec  microcodec.Reader
}

func (r *response) Codec() microcodec.Reader { return r.codec }

// Header waits for the headers of the response and returns them.
func (r *response) Header() map[string]string {
	md, err := r.stream.Header()
	if err != nil {
		return map[string]string{}
	}
	return joined(md)
}

func joined(md map[string][]string) map[string]string {
	m := make(map[string]string, len(md))
	for k, v := range md {
		m[k] = strings.Join(v, ",")
	}
	return m
}

// Read returns the next message as it was sent.
func (r *response) Read() ([]byte, error) {
	var f bytes.Frame
	if err := r.codec.ReadBody(&f); err != nil {
		return nil, err
	}
	return f.Data, nil
}

// streamCodec reads and writes the messages of a stream.
type streamCodec struct {
	stream grpc.ClientStream
	name   string
}

var _ microcodec.Codec = (*streamCodec)(nil)

func (c *streamCodec) ReadHeader(m *microcodec.Message, _ microcodec.MessageType) error {
	md, err := c.stream.Header()
	if err != nil {
		return err
	}
	if m == nil {
		return nil
	}
	if m.Header == nil {
		m.Header = make(map[string]string, len(md))
	}
	for k, v := range joined(md) {
		m.Header[k] = v
	}
	m.Id, m.Target, m.Method, m.Endpoint = "", "", "", ""
	return nil
}

func (c *streamCodec) ReadBody(v any) error { return c.stream.RecvMsg(v) }

func (c *streamCodec) Write(m *microcodec.Message, v any) error {
	if v != nil {
		return c.stream.SendMsg(v)
	}
	return c.stream.SendMsg(&bytes.Frame{Data: m.Body})
}

func (c *streamCodec) Close() error   { return c.stream.CloseSend() }
func (c *streamCodec) String() string { return c.name }
