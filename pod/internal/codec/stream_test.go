package codec

import (
	"io"
	"testing"

	microcodec "github.com/micro/go-micro/v2/codec"
	"google.golang.org/grpc"
	grpcmetadata "google.golang.org/grpc/metadata"
)

// fakeStream is a stream of grpc-go that was open and has ended.
type fakeStream struct {
	grpc.ClientStream
	header grpcmetadata.MD
	err    error
}

func (s *fakeStream) Header() (grpcmetadata.MD, error) { return s.header, s.err }
func (s *fakeStream) RecvMsg(any) error                { return s.err }

func TestStreamHeaders(t *testing.T) {
	ok := &fakeStream{header: grpcmetadata.MD{"a": {"1", "2"}, "b": {"3"}}}
	broken := &fakeStream{err: io.ErrUnexpectedEOF}
	if got := (&response{stream: ok}).Header(); len(got) != 2 || got["a"] != "1,2" || got["b"] != "3" {
		t.Errorf("%v", got)
	}
	if got := (&response{stream: broken}).Header(); got == nil || len(got) != 0 {
		t.Errorf("without headers: %v, want an empty map", got)
	}
	for _, header := range []map[string]string{nil, {"c": "4"}} {
		m := &microcodec.Message{Id: "1", Target: "x", Method: "x", Endpoint: "x", Header: header}
		if err := (&streamCodec{stream: ok}).ReadHeader(m, microcodec.Response); err != nil || m.Header["a"] != "1,2" || header != nil && m.Header["c"] != "4" || m.Id+m.Target+m.Method+m.Endpoint != "" {
			t.Errorf("%+v, %v", m, err)
		}
	}
	if err := (&streamCodec{stream: ok}).ReadHeader(nil, microcodec.Response); err != nil {
		t.Error(err)
	}
	if err := (&streamCodec{stream: broken}).ReadHeader(nil, microcodec.Response); err != io.ErrUnexpectedEOF {
		t.Errorf("the error of the stream: %v", err)
	}
	if _, err := (&response{stream: broken, codec: &streamCodec{stream: broken}}).Read(); err != io.ErrUnexpectedEOF {
		t.Errorf("the error of the stream: %v", err)
	}
	if got := (&streamCodec{name: "proto"}).String(); got != "proto" {
		t.Errorf("%q", got)
	}
}
