package hedge

import (
	"math/bits"
	"time"
)

// histogram counts the latencies of a method. A bucket is at most an eighth of its latency wide. After
// maxTotal latencies all counts are halved, so that later latencies count more. The zero value is empty.
// It is not safe for concurrent use.
type histogram struct {
	buckets [nBuckets]uint32
	total   uint32

	quantile time.Duration // result of at, kept for updateEvery latencies
	next     uint32        // latencies until it is computed again
}

const (
	maxTotal    = 2048
	updateEvery = 64
	nBuckets    = 16 + (maxBits-4)*8
	maxBits     = 36 // 19 hours in microseconds
)

func bucketOf(d time.Duration) int {
	v := min(uint64(max(0, d.Microseconds())), 1<<maxBits-1)
	if v < 16 {
		return int(v)
	}
	n := bits.Len64(v)
	return 16 + (n-5)*8 + int(v>>(n-4)&7)
}

// upper returns the end of a bucket.
func upper(bucket int) time.Duration {
	if bucket < 16 {
		return time.Duration(bucket+1) * time.Microsecond
	}
	n := (bucket-16)/8 + 5
	return time.Duration((bucket-16)%8+9) << (n - 4) * time.Microsecond
}

func (h *histogram) add(d time.Duration) {
	h.buckets[bucketOf(d)]++
	h.total++
	if h.next > 0 {
		h.next--
	}
	if h.total < maxTotal {
		return
	}
	h.total = 0
	for i := range h.buckets {
		h.buckets[i] /= 2
		h.total += h.buckets[i]
	}
}

// at returns the end of the bucket of a quantile, as it was at most updateEvery latencies ago.
func (h *histogram) at(quantile float64) time.Duration {
	if h.next > 0 || h.total < minCalls {
		return h.quantile
	}
	h.next = updateEvery
	left := quantile * float64(h.total)
	for i, n := range h.buckets {
		if left -= float64(n); left <= 0 && n > 0 {
			h.quantile = upper(i)
			break
		}
	}
	return h.quantile
}
