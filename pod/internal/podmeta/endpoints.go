package podmeta

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/micro/go-micro/v2/registry"
)

// MaxPodBytes is how many bytes the keys and values of all annotations of a pod may have:
// TotalAnnotationSizeLimitB of Kubernetes.
const MaxPodBytes = 256 << 10

// maxEndpointObjects is how many JSON objects and arrays the endpoints of one registration may
// have. The endpoints of protobuf messages have one for each 40 bytes, so that MaxPodBytes of
// them have 6,500. Each takes 100 bytes when it is decoded.
const maxEndpointObjects = 8192

// CutEndpoints returns a registration with a number in the place of its endpoints. number receives
// the endpoints as JSON. A method with messages of 12 fields takes 3.3 kB of a registration, and
// almost all of that is the description of its messages, which routing does not need. So
// CutEndpoints reads a registration much faster than a decoder of JSON, and does not check
// what it cuts out. A registration without endpoints is returned as it is, and so is the
// result of CutEndpoints.
func CutEndpoints(annotation string, number func(endpoints string) uint64) string {
	depth := 0
	for i := 0; i < len(annotation); i++ {
		switch annotation[i] {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case '"':
			end := endOfString(annotation, i)
			if depth == 1 && annotation[i:end] == `"endpoints"` {
				begin := skipSpace(annotation, end)
				if begin < len(annotation) && annotation[begin] == ':' { // a key, not a value
					begin = skipSpace(annotation, begin+1)
					if end := endOfArray(annotation, begin); end > begin {
						return annotation[:begin] + strconv.FormatUint(number(annotation[begin:end]), 10) + annotation[end:]
					}
					return annotation
				}
			}
			i = end - 1
		}
	}
	return annotation
}

// endOfString returns the index after the JSON string that begins at i.
func endOfString(s string, i int) int {
	for i++; i < len(s); i++ {
		switch s[i] {
		case '"':
			return i + 1
		case '\\':
			i++
		}
	}
	return len(s)
}

func skipSpace(s string, i int) int {
	for i < len(s) && strings.IndexByte(" \t\r\n", s[i]) >= 0 {
		i++
	}
	return i
}

// endOfArray returns the index after the JSON array that begins at i, and i if none begins or
// ends there.
func endOfArray(s string, i int) int {
	if i >= len(s) || s[i] != '[' {
		return i
	}
	depth := 0
	for j := i; j < len(s); j++ {
		switch s[j] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return j + 1
			}
		case '"':
			j = endOfString(s, j) - 1
		}
	}
	return i
}

// DecodeEndpoints decodes endpoints that CutEndpoints has cut out. No input makes it panic. It
// removes each null, so that go-micro does not panic when it reads the result.
func DecodeEndpoints(text string) ([]*registry.Endpoint, error) {
	if n := strings.Count(text, "{") + strings.Count(text, "["); n > maxEndpointObjects {
		return nil, fmt.Errorf("they have %d JSON objects and arrays, more than %d", n, maxEndpointObjects)
	}
	var all []*registry.Endpoint
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(e *registry.Endpoint) bool { return e == nil })
	for _, e := range all {
		dropNulls(e.Request)
		dropNulls(e.Response)
	}
	return all, nil
}

func dropNulls(v *registry.Value) {
	if v == nil {
		return
	}
	v.Values = slices.DeleteFunc(v.Values, func(w *registry.Value) bool { return w == nil })
	for _, w := range v.Values {
		dropNulls(w)
	}
}
