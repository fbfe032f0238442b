package discovery

import (
	"hash/maphash"
	"strings"
	"sync"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
)

// maxEndpointBytes bounds the endpoints that an informer keeps, as JSON. Pods of one version share
// one copy, so that 16 MiB hold 160 versions with 30 methods of protobuf messages each. Endpoints
// beyond are not kept: their instances receive calls, and GetService returns them without endpoints.
const maxEndpointBytes = 16 << 20

// endpointTexts are the endpoints of all registrations that a table holds, equal ones once. The
// owner of the table locks it.
type endpointTexts struct {
	byNumber map[uint64]*endpointText
	bytes    int
	unused   []uint64 // numbers that no version uses yet, or any more; some are in use again
	full     bool     // the log has said that endpoints are not kept
}

// endpointText is the endpoints of registrations as JSON. It decodes them when somebody asks for
// them.
type endpointText struct {
	json   string
	uses   int // versions; guarded by the lock of the table
	decode sync.Once
	result []*registry.Endpoint
}

// reduce returns a registration with a number in the place of its endpoints, and keeps the endpoints.
// Equal endpoints have equal numbers.
func (x *endpointTexts) reduce(annotation string) string {
	return podmeta.CutEndpoints(annotation, x.keep)
}

// keep keeps endpoints as JSON, and returns their number.
func (x *endpointTexts) keep(endpoints string) uint64 {
	number := maphash.String(seed, endpoints)
	switch fits := x.bytes+len(endpoints) <= maxEndpointBytes; {
	case x.byNumber[number] != nil:
	case fits:
		x.byNumber[number] = &endpointText{json: strings.Clone(endpoints)}
		x.bytes += len(endpoints)
		x.unused = append(x.unused, number)
	case !x.full:
		x.full = true
		logger.Warnf("Registry [kubernetes] The pods have registered more than %d MiB of different endpoints; GetService returns some services without endpoints, and calls are not concerned", maxEndpointBytes>>20)
	}
	return number
}

// use returns the endpoints with a number for one more version, nil if they are not kept.
func (x *endpointTexts) use(number uint64) *endpointText {
	t := x.byNumber[number]
	if t != nil {
		t.uses++
	}
	return t
}

// release says that a version does not use the endpoints with a number any more. They stay until
// dropUnused, because a pod that reduce has seen may have the same.
func (x *endpointTexts) release(number uint64) {
	if t := x.byNumber[number]; t != nil {
		if t.uses--; t.uses == 0 {
			x.unused = append(x.unused, number)
		}
	}
}

// dropUnused drops the endpoints that no version uses.
func (x *endpointTexts) dropUnused() {
	for _, number := range x.unused {
		if t := x.byNumber[number]; t != nil && t.uses == 0 {
			x.bytes -= len(t.json)
			delete(x.byNumber, number)
		}
	}
	x.unused = x.unused[:0]
}

// endpoints returns the decoded endpoints, which all callers share. A nil text and one that is
// invalid have none.
func (t *endpointText) endpoints() []*registry.Endpoint {
	if t == nil {
		return nil
	}
	t.decode.Do(func() { t.result, _ = podmeta.DecodeEndpoints(t.json) })
	return t.result
}
