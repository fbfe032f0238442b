// Package codec encodes and decodes the messages of calls as go-micro's gRPC client does,
// without copying them.
//
// ByContentType returns the codecs in the form in which grpc-go takes them: a message becomes
// buffers of grpc-go's pool instead of a new slice. The bytes on the wire and the texts of the
// errors are those of go-micro's codecs (client/grpc/codec.go), so that callers and servers see no
// difference. A *bytes.Frame is a message that is encoded already, as go-micro's proxies send it.
//
// ForStream gives an open stream the codec and the response of a stream of go-micro.
package codec

import (
	stdbytes "bytes"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/golang/protobuf/jsonpb" //nolint:staticcheck // go-micro's client encodes JSON with it
	"github.com/golang/protobuf/proto"  //nolint:staticcheck // go-micro's messages are of this API
	"github.com/micro/go-micro/v2/codec/bytes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	protov2 "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

// ByContentType returns the codecs of go-micro's client, with the given codecs of the user added
// or in their place.
func ByContentType(user map[string]encoding.Codec) map[string]encoding.CodecV2 {
	codecs := maps.Clone(goMicros)
	for contentType, c := range user {
		codecs[contentType] = userCodec{c}
	}
	return codecs
}

var goMicros = map[string]encoding.CodecV2{
	"application/json":         jsonCodec{},
	"application/proto":        protoCodec{},
	"application/protobuf":     protoCodec{},
	"application/octet-stream": protoCodec{},
	"application/grpc":         protoCodec{},
	"application/grpc+json":    jsonCodec{},
	"application/grpc+proto":   protoCodec{},
	"application/grpc+bytes":   bytesCodec{},
}

// protoCodec copies no message: it encodes into and decodes from buffers of grpc-go's pool.
type protoCodec struct{}

func (protoCodec) Name() string { return "proto" }

func (protoCodec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*bytes.Frame); ok {
		return mem.BufferSlice{mem.SliceBuffer(f.Data)}, nil
	}
	m, ok := v.(protoadapt.MessageV1)
	if !ok {
		return nil, fmt.Errorf("failed to marshal: %v is not type of *bytes.Frame or proto.Message", v)
	}
	message := protoadapt.MessageV2Of(m)
	size := protov2.Size(message)
	options := protov2.MarshalOptions{UseCachedSize: true}
	if mem.IsBelowBufferPoolingThreshold(size) {
		b, err := options.Marshal(message)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	pool := mem.DefaultBufferPool()
	b := pool.Get(size)
	if _, err := options.MarshalAppend((*b)[:0], message); err != nil {
		pool.Put(b)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(b, pool)}, nil
}

func (protoCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*bytes.Frame); ok {
		f.Data = data.Materialize()
		return nil
	}
	m, ok := v.(protoadapt.MessageV1)
	if !ok {
		return fmt.Errorf("failed to unmarshal: %v is not type of proto.Message", v)
	}
	b := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	return protov2.Unmarshal(b.ReadOnlyData(), protoadapt.MessageV2Of(m))
}

type bytesCodec struct{}

func (bytesCodec) Name() string { return "bytes" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch b := v.(type) {
	case *bytes.Frame:
		return mem.BufferSlice{mem.SliceBuffer(b.Data)}, nil
	case *[]byte:
		return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
	}
	return nil, fmt.Errorf("failed to marshal: %v is not type of *[]byte", v)
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	switch b := v.(type) {
	case *bytes.Frame:
		b.Data = data.Materialize()
		return nil
	case *[]byte:
		*b = data.Materialize()
		return nil
	}
	return fmt.Errorf("failed to unmarshal: %v is not type of *[]byte", v)
}

type jsonCodec struct{}

var jsonMarshaler = &jsonpb.Marshaler{}

func (jsonCodec) Name() string { return "json" }

func (jsonCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *bytes.Frame:
		return mem.BufferSlice{mem.SliceBuffer(m.Data)}, nil
	case proto.Message:
		var b stdbytes.Buffer
		if err := jsonMarshaler.Marshal(&b, m); err != nil {
			return nil, err
		}
		return mem.BufferSlice{mem.SliceBuffer(b.Bytes())}, nil
	}
	b, err := json.Marshal(v)
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

func (jsonCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b := data.Materialize()
	if f, ok := v.(*bytes.Frame); ok {
		f.Data = b
		return nil
	}
	if len(b) == 0 {
		return nil
	}
	if m, ok := v.(proto.Message); ok {
		return jsonpb.Unmarshal(stdbytes.NewReader(b), m)
	}
	return json.NewDecoder(stdbytes.NewReader(b)).Decode(v)
}

// userCodec is a codec that grpcc.Codec has set.
type userCodec struct{ encoding.Codec }

func (c userCodec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*bytes.Frame); ok {
		return mem.BufferSlice{mem.SliceBuffer(f.Data)}, nil
	}
	b, err := c.Codec.Marshal(v)
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

func (c userCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b := data.Materialize()
	if f, ok := v.(*bytes.Frame); ok {
		f.Data = b
		return nil
	}
	return c.Codec.Unmarshal(b, v)
}
