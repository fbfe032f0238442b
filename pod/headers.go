package pod

import (
	"context"
	"strings"

	"github.com/micro/go-micro/v2/metadata"
	"github.com/micro/go-micro/v2/server"
)

// capitalizeHeaders is a handler wrapper that writes the keys of go-micro's metadata as
// metadata.FromContext returns them, with capitals. gRPC transmits them in lower case. The
// wrappers of micro.NewService call FromContext several times for each call, and it makes a
// new string of each key that has no capital. Handlers see no difference.
func capitalizeHeaders(h server.HandlerFunc) server.HandlerFunc {
	keys, err := keysOfOptions()
	if err != nil {
		return h
	}
	return func(ctx context.Context, req server.Request, rsp interface{}) error {
		if received, ok := ctx.Value(keys.metadata).(metadata.Metadata); ok {
			capitalized := make(metadata.Metadata, len(received))
			for key, value := range received {
				capitalized[capitalize(key)] = value
			}
			ctx = metadata.NewContext(ctx, capitalized)
		}
		return h(ctx, req, rsp)
	}
}

// capitalize is strings.Title, which allocates, with a table of the usual keys.
func capitalize(key string) string {
	if capitalized, ok := capitalizedKeys[key]; ok {
		return capitalized
	}
	return strings.Title(key) //nolint:staticcheck // as go-micro does
}

// lowerCase is strings.ToLower, which allocates, with a table of the usual keys.
func lowerCase(key string) string {
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
