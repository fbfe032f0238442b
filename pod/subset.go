package pod

import "github.com/micro/go-micro/v2/registry"

// Subset is an option of NewRegistry: its clients call at most n instances of each service, so that a client of a service with 1,000
// instances does not connect to all of them. Without the option, and if n is not positive, they call all.
//
//	registry := pod.NewRegistry(kubernetes.NewRegistry, pod.Subset(20))
//
// Each registry takes other instances (gRFC A68: rendezvous hashing, with a random seed for each registry). An instance that becomes not
// ready is replaced by the next in rank, and one that becomes ready takes the place of at most one; all others stay. GetService, Watch and
// Observe return all instances.
//
// Choose n so that n times the number of processes that call the service is at least 20 times the number of its instances. The busiest
// instance then has at most twice as many clients as the mean, and with 40 times about 1.4 times as many. With a smaller product some
// instances get no calls: a third of them with 50 clients of 20 of 1,000 instances. An n below 10 leaves the choice by load little to choose
// from.
//
// Everything else works on the subset: the choice by load and zone, retries, the comparison of errors, and the limit that at most half of
// the instances are ejected. An ejected instance keeps its place, since it usually returns. While none of the subset is available, calls go
// to all instances. Filters are applied first: with selector.FilterVersion a client calls n instances of the version.
func Subset(n int) registry.Option { return setOption(subsetKey, n) }

// IgnoreZones is an option of NewRegistry: its clients call the instances of all zones alike, as they do while their own zone is not known.
func IgnoreZones() registry.Option { return setOption(ignoreZonesKey, true) }
