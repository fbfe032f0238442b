package discovery

import (
	"testing"
	"unsafe"

	"github.com/micro/go-micro/v2/registry"
)

// A choice among many instances reads one cache line of each instance that it compares.
func TestInstanceBeginsAtACacheLine(t *testing.T) {
	for range 100 {
		i, _ := NewInstance(registry.Node{}, &registry.Service{}, "p-0")
		if at := uintptr(unsafe.Pointer(&i.Calls)); at%64 != 0 {
			t.Fatalf("at %x: the padding makes the size %d, which is no multiple of 64 that is a size class of Go", at, unsafe.Sizeof(*i))
		}
	}
}
