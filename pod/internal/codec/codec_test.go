package codec

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/codec/bytes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	protov2 "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

// data returns the text in two buffers, as grpc-go delivers a long message.
func data(text string) mem.BufferSlice {
	return mem.BufferSlice{mem.SliceBuffer(text[:len(text)/2]), mem.SliceBuffer(text[len(text)/2:])}
}

func encode(t *testing.T, contentType string, v any) (string, error) {
	t.Helper()
	b, err := ByContentType(nil)[contentType].Marshal(v)
	if err != nil {
		return "", err
	}
	defer b.Free()
	return string(b.Materialize()), nil
}

func wire(t *testing.T, m *proto.HelloRequest) string {
	t.Helper()
	b, err := protov2.Marshal(protoadapt.MessageV2Of(m))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestContentTypes(t *testing.T) {
	names := map[string]string{}
	for contentType, c := range ByContentType(nil) {
		names[contentType] = c.Name()
	}
	if want := map[string]string{ // as in go-micro's client/grpc/codec.go
		"application/json": "json", "application/grpc+json": "json", "application/grpc+bytes": "bytes",
		"application/proto": "proto", "application/protobuf": "proto", "application/octet-stream": "proto", "application/grpc": "proto", "application/grpc+proto": "proto",
	}; !maps.Equal(names, want) {
		t.Errorf("the codecs are %v, want %v", names, want)
	}
}

func TestProto(t *testing.T) {
	for _, n := range []int{0, 1, 1000, 1 << 10, 100 << 10} { // grpc-go's pool has no buffers of less than 1 KiB
		want := &proto.HelloRequest{Name: strings.Repeat("x", n)}
		text, err := encode(t, "application/proto", want)
		if err != nil || text != wire(t, want) {
			t.Errorf("%d bytes: encoded as %d bytes, %v", n, len(text), err)
		}
		var got proto.HelloRequest
		if err := (protoCodec{}).Unmarshal(data(text), &got); err != nil || got.Name != want.Name {
			t.Errorf("%d bytes: decoded as %d bytes, %v", n, len(got.Name), err)
		}
	}
	if _, err := encode(t, "application/proto", &proto.HelloRequest{Name: "\xff"}); err == nil {
		t.Error("an invalid string is encoded")
	}
	if _, err := encode(t, "application/proto", &proto.HelloRequest{Name: strings.Repeat("\xff", 2000)}); err == nil {
		t.Error("a long invalid string is encoded")
	}
	if err := (protoCodec{}).Unmarshal(data("\xff\xff"), &proto.HelloRequest{}); err == nil {
		t.Error("what is no message is decoded")
	}
}

func TestJSON(t *testing.T) {
	if text, err := encode(t, "application/json", &proto.HelloRequest{Name: "x"}); err != nil || text != `{"name":"x"}` {
		t.Errorf("a message is encoded as %q, %v", text, err)
	}
	if _, err := encode(t, "application/json", (*proto.HelloRequest)(nil)); err == nil {
		t.Error("a nil message is encoded")
	}
	if text, err := encode(t, "application/json", map[string]int{"a": 1}); err != nil || text != `{"a":1}` {
		t.Errorf("a map is encoded as %q, %v", text, err)
	}
	var m proto.HelloRequest
	if err := (jsonCodec{}).Unmarshal(data(`{"name":"x"}`), &m); err != nil || m.Name != "x" {
		t.Errorf("a message is decoded as %v, %v", m.Name, err)
	}
	var v map[string]int
	if err := (jsonCodec{}).Unmarshal(data(`{"a":1}`), &v); err != nil || v["a"] != 1 {
		t.Errorf("a map is decoded as %v, %v", v, err)
	}
	if err := (jsonCodec{}).Unmarshal(nil, &v); err != nil {
		t.Errorf("an empty answer: %v", err)
	}
	if err := (jsonCodec{}).Unmarshal(data(`{"a`), &v); err == nil {
		t.Error("what is no JSON is decoded")
	}
}

func TestBytes(t *testing.T) {
	b := []byte("abc")
	if text, err := encode(t, "application/grpc+bytes", &b); err != nil || text != "abc" {
		t.Errorf("encoded as %q, %v", text, err)
	}
	var got []byte
	if err := (bytesCodec{}).Unmarshal(data("abc"), &got); err != nil || string(got) != "abc" {
		t.Errorf("decoded as %q, %v", got, err)
	}
}

// reverse is a codec of a user, which refuses empty messages.
type reverse struct{}

func (reverse) Name() string { return "reverse" }

func (reverse) Marshal(v any) ([]byte, error) {
	b := []byte(*v.(*string))
	if len(b) == 0 {
		return nil, errors.New("empty")
	}
	slices.Reverse(b)
	return b, nil
}

func (reverse) Unmarshal(b []byte, v any) error {
	b = slices.Clone(b)
	slices.Reverse(b)
	*v.(*string) = string(b)
	return nil
}

func TestCodecOfTheUser(t *testing.T) {
	all := ByContentType(map[string]encoding.Codec{"text/x": reverse{}, "application/json": reverse{}})
	if name := ByContentType(nil)["application/json"].Name(); name != "json" || len(all) != 9 {
		t.Errorf("another client has the codec %q, and this one has %d", name, len(all))
	}
	for _, contentType := range []string{"text/x", "application/json"} {
		text := "abc"
		b, err := all[contentType].Marshal(&text)
		if err != nil || string(b.Materialize()) != "cba" || all[contentType].Name() != "reverse" {
			t.Errorf("%s: encoded as %q, %v", contentType, b.Materialize(), err)
		}
		if err := all[contentType].Unmarshal(data("fed"), &text); err != nil || text != "def" {
			t.Errorf("%s: decoded as %q, %v", contentType, text, err)
		}
		text = ""
		if _, err := all[contentType].Marshal(&text); err == nil {
			t.Errorf("%s: the codec's error is lost", contentType)
		}
	}
}

func TestFramesPassThrough(t *testing.T) {
	for contentType, c := range ByContentType(map[string]encoding.Codec{"text/x": reverse{}}) {
		b, err := c.Marshal(&bytes.Frame{Data: []byte("abc")})
		if err != nil || string(b.Materialize()) != "abc" {
			t.Errorf("%s: encoded as %q, %v", contentType, b.Materialize(), err)
		}
		var f bytes.Frame
		if err := c.Unmarshal(data("abc"), &f); err != nil || string(f.Data) != "abc" {
			t.Errorf("%s: decoded as %q, %v", contentType, f.Data, err)
		}
	}
}

func TestErrorsAreGoMicros(t *testing.T) {
	for contentType, want := range map[string][2]string{
		"application/proto":      {"failed to marshal: 7 is not type of *bytes.Frame or proto.Message", "failed to unmarshal: 7 is not type of proto.Message"},
		"application/grpc+bytes": {"failed to marshal: 7 is not type of *[]byte", "failed to unmarshal: 7 is not type of *[]byte"},
	} {
		c := ByContentType(nil)[contentType]
		_, err := c.Marshal(7)
		if got := [2]string{fmt.Sprint(err), fmt.Sprint(c.Unmarshal(data("abc"), 7))}; got != want {
			t.Errorf("%s: %q, want %q", contentType, got, want)
		}
	}
}
