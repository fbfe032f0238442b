package gomicro

import (
	"context"
	"strings"
)

// CapitalizeHeaders writes the keys of go-micro's metadata as metadata.FromContext
// returns them, with capitals. gRPC transmits them in lower case. The wrappers of
// micro.NewService call FromContext several times for each call, and it makes a new string of
// each key that has no capital. Handlers see no difference. go-micro's server made the metadata for
// this call alone and no other goroutine reads it yet.
func CapitalizeHeaders(ctx context.Context) {
	headers := Metadata(ctx)
	for key, value := range headers {
		if capitalized := capitalize(key); capitalized != key {
			delete(headers, key)
			headers[capitalized] = value
		}
	}
}

// capitalize is strings.Title, which allocates, with a table of the usual keys.
func capitalize(key string) string {
	if capitalized, ok := capitalizedKeys[key]; ok {
		return capitalized
	}
	return strings.Title(key) //nolint:staticcheck // as go-micro does
}

// LowerCase is strings.ToLower, which allocates, with a table of the usual keys.
func LowerCase(key string) string {
	if lower, ok := lowerCaseKeys[key]; ok {
		return lower
	}
	return strings.ToLower(key)
}

// usualKeys are the keys that gRPC, and go-micro's wrappers and server set.
var usualKeys = []string{"Micro-From-Service", "Micro-Trace-Id", "Micro-Span-Id", "Micro-Namespace", "Micro-Service", "Micro-Endpoint", "Micro-Method",
	"Micro-Id", "Micro-Topic", "Authorization", "Content-Type", "Remote", "Timeout", ":authority", "User-Agent", "Grpc-Accept-Encoding"}

var capitalizedKeys, lowerCaseKeys = func() (capitalized, lower map[string]string) {
	capitalized, lower = map[string]string{}, map[string]string{}
	for _, key := range usualKeys {
		lower[key] = strings.ToLower(key)
		title := strings.Title(key) //nolint:staticcheck // as go-micro does
		capitalized[key], capitalized[lower[key]] = title, title
	}
	return capitalized, lower
}()
