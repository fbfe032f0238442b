// Package subset chooses the instances of a service that a client calls, when it should not call all of
// them.
//
// It is gRFC A68, "Random subsetting with rendezvous hashing": each client has a seed of its own and
// takes the instances whose addresses have the highest hashes with this seed. So no client has to know
// of the others; an instance that leaves is replaced by the next in rank, and the others stay; and an
// instance that comes takes the place of at most one other in each client.
//
// The clients are spread over the instances as by chance. With 200 clients of 20 of 100 instances each
// instance has 40 clients, and the busiest one about 1.36 times as many. With 50 clients of 20 of
// 1,000 instances each has one client on average, and a third of them have none: take more instances,
// or all, unless clients times size is at least 20 times the number of instances. A deterministic
// aperture (Finagle) is even in this case too, but each client has to know how many others there are
// and which number it has; its subset moves whenever another client comes or goes.
package subset

import (
	"math/rand/v2"
	"slices"
)

// Subset always chooses the same elements of the same list. Its zero value chooses all. It is immutable.
type Subset struct {
	Size int    // number of instances to choose; 0 for all
	Seed uint64 // of the client
}

// New returns a subset of a size, with a random seed.
func New(size int) Subset { return Subset{Size: max(0, size), Seed: rand.Uint64()} }

// Choose returns the elements with the highest ranks, the highest first: all of them, as they are, if
// there are no more than the size. address returns the address of an element.
func Choose[T any](s Subset, all []T, address func(T) string) []T {
	if s.Size == 0 || len(all) <= s.Size {
		return all
	}
	chosen, ranks := make([]T, 0, s.Size), make([]uint64, 0, s.Size)
	seed := mix(s.Seed)
	for _, e := range all {
		r := mix(hash(address(e)) ^ seed)
		full := len(ranks) == s.Size
		if full && r <= ranks[s.Size-1] {
			continue // most elements
		}
		at, _ := slices.BinarySearchFunc(ranks, r, func(a, b uint64) int {
			if a >= b {
				return -1
			}
			return 1
		})
		if full {
			chosen, ranks = chosen[:s.Size-1], ranks[:s.Size-1]
		}
		chosen, ranks = slices.Insert(chosen, at, e), slices.Insert(ranks, at, r)
	}
	return chosen
}

// hash is FNV-1a.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// mix spreads the difference of two numbers over all bits: the finalizer of SplitMix64 (Steele, Lea and
// Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
