// Package zone keeps the calls of a client in the client's own zone, as long as the zone answers as fast
// as the others.
//
// It is two decisions. Split says which instances are in the own zone, and whether there are enough of
// them. Spill says which share of the calls may leave the zone: it compares how long the answers of the
// own zone and those of the other zones take, because a client sees neither the calls of other clients
// nor the load of an instance. The package knows no pods, no services and no instances.
//
// Kubernetes (trafficDistribution: PreferSameZone) and kube-proxy look at the number of endpoints only.
// Linkerd's HAZL adds and removes endpoints of other zones by the load that one client sees: it needs
// clients with many calls in flight. With 60 clients of 12 instances that are half busy, a client has 0.4
// calls in flight, but hundreds of answers a minute.
package zone

// The limits of Split.
const (
	// Envoy, zone_aware_lb_config.min_cluster_size: "If upstream cluster size is less than specified, zone aware
	// routing is not performed even if zone aware routing is configured. If not specified, the default is 6."
	minInstances = 6

	// A zone has enough instances down to 72 % of its fair share, which is the number of instances divided by
	// that of the zones. Envoy's overprovisioning factor of 140 % leaves a locality all of its calls down to
	// 72 % of its hosts, too.
	minShare = 0.72

	// A choice takes the better of two instances.
	minLocal = 2
)

// Split returns the instances with those of the own zone first, and the number of these. The number is 0,
// and the instances are as they were, if calls should go to all zones alike: if the own zone is not known
// (""), has too few instances or all of them, or if there are too few in all zones. An instance whose zone
// is not known counts as one of another zone.
func Split[T any](all []T, own string, zoneOf func(T) string) (ordered []T, local int) {
	if own == "" || len(all) < minInstances {
		return all, 0
	}
	sizes := map[string]int{}
	for _, i := range all {
		sizes[zoneOf(i)]++
	}
	delete(sizes, "")
	local = sizes[own]
	if local < minLocal || local == len(all) || float64(local) < minShare*float64(len(all))/float64(len(sizes)) {
		return all, 0
	}
	ordered = make([]T, len(all))
	first, other := 0, local
	for _, i := range all {
		if zoneOf(i) == own {
			ordered[first] = i
			first++
		} else {
			ordered[other] = i
			other++
		}
	}
	return ordered, local
}
