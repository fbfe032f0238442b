package retry

import (
	"strconv"
	"time"

	"google.golang.org/grpc/metadata"
)

// PushbackTrailer is the trailer with which a server decides when a call that has failed is repeated: after so many
// milliseconds, or not at all if the value is negative or no number (gRFC A6).
const PushbackTrailer = "grpc-retry-pushback-ms"

// Pushback is what a server says about a retry.
type Pushback struct {
	Given bool          // whether it says anything
	Delay time.Duration // before the retry; negative if there should be none
}

// PushbackOf returns what trailers say about a retry. Like grpc-go, it takes several values for a refusal.
func PushbackOf(trailers metadata.MD) Pushback {
	values := trailers[PushbackTrailer]
	if len(values) == 0 {
		return Pushback{}
	}
	ms, err := strconv.ParseInt(values[0], 10, 32)
	if err != nil || ms < 0 || len(values) > 1 {
		return Pushback{Given: true, Delay: -1}
	}
	return Pushback{Given: true, Delay: time.Duration(ms) * time.Millisecond}
}
