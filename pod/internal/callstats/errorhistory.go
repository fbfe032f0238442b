package callstats

import (
	"math/bits"
	"sync/atomic"
)

// errorHistory is the last 63 answers of an instance, the last one in the lowest bit: 1 for
// a server error, 0 for any other answer. The highest bit that is set marks their number.
// Its zero value is an empty history. It is safe for concurrent use.
type errorHistory struct{ word atomic.Uint64 }

const (
	maxAnswers  = 63
	fullHistory = 1 << maxAnswers
)

func (h *errorHistory) add(isError bool) {
	for {
		word := h.word.Load()
		next := max(word, 1)<<1 | word&fullHistory
		if isError {
			next++
		}
		if word == next || h.word.CompareAndSwap(word, next) { // equal: 63 good answers, or 63 server errors
			return
		}
	}
}

func (h *errorHistory) clear() { h.word.Store(0) }

// last returns how many of the last n answers are known and how many of them were server
// errors.
func (h *errorHistory) last(n int) (answers, errors int) {
	word := h.word.Load()
	answers = min(max(0, bits.Len64(word)-1), n)
	return answers, bits.OnesCount64(word & (1<<answers - 1))
}

// lastIsError reports whether the last answer was a server error. The lowest bit of an empty history
// is 0, and that of one with a single bit marks the length.
func (h *errorHistory) lastIsError() bool {
	word := h.word.Load()
	return word&1 != 0 && word != 1
}

// inARow returns the number of server errors since the last good answer, at most 63.
func (h *errorHistory) inARow() int {
	word := h.word.Load()
	return min(bits.TrailingZeros64(^word), max(0, bits.Len64(word)-1))
}

// share returns the share of server errors in the last 63 answers. Answers that are not
// known count as good.
func (h *errorHistory) share() float64 {
	_, errors := h.last(maxAnswers)
	return float64(errors) / maxAnswers
}

func (h *errorHistory) suspicious() bool {
	return h.inARow() >= errorsInARow || h.share() >= minErrorShare
}
