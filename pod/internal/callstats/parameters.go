package callstats

import "time"

// The parameters of the choice and of the ejection of instances. Where a sentence is
// quoted, the parameter departs from it.
const (
	// decayTime is the time constant of the average slowness: after a peak, the peak counts
	// half after 7 s. It is also how long a choice remembers the latencies and the server
	// errors of an instance that gets no calls; then one call tries the instance. Finagle
	// (PeakEwma.scala), linkerd2-proxy and go-zero have 10 s, too, and their estimates also
	// decay without calls; kratos has 0.6 s.
	decayTime = 10 * time.Second

	// Estimates of the slowness that differ by less than latencyTolerance are equal to a choice.
	// Peaks of equal instances differ as much. latencyFloor is added to each duration, because a
	// scheduler's hiccup of a millisecond says nothing. kratos adds 5 ms.
	latencyTolerance = 2
	latencyFloor     = time.Millisecond

	// maxRise is by how much one answer may raise the slowness of an instance. Only the fourth long
	// call in a row makes it clearly slower than the others.
	maxRise = 1.25

	// A refused call counts as one that is refusalSlowness times as long as usual. Linkerd's load biaser
	// takes 5 s instead (linkerd.io, Load Balancing). That is for ever beside calls of 10 ms: the instance would stay
	// without calls although it refuses only a part of them. Instances that all refuse calls are alike.
	refusalSlowness = 4

	// An instance is ejected for baseEjectionTime, and four times as long for each further
	// ejection in a row, up to maxEjectionTime. Calls that fail together, within
	// baseEjectionTime, are one failure.
	//
	// gRFC A50, base_ejection_time: "The real time is equal to the base time multiplied by the
	// number of times the host has been ejected [...]. Defaults to 30s." A shorter first
	// ejection is enough for a container that restarts. After server errors one call, not the
	// whole share, then tries the instance; so the time may grow faster. max_ejection_time
	// there is 300 s. After no answer the first answer ends the ejection; the time only
	// spaces the reports of a lasting failure.
	baseEjectionTime = 5 * time.Second
	ejectionGrowth   = 4
	maxEjectionTime  = 80 * time.Second

	// For trialGrace after the end of an ejection for server errors only a call that can be
	// retried in time becomes the trial. Then any call does, because callers without retries
	// have to notice, too, that the instance has recovered.
	trialGrace   = 5 * time.Second
	maxTrialTime = 10 * time.Second

	// ProbeInterval is the time from one probe of an unresponsive instance to the next. It
	// equals gRPC's shortest delay between two attempts to connect (connection-backoff.md,
	// INITIAL_BACKOFF).
	ProbeInterval = time.Second

	// MinInstancesPerEjection is how many instances a service needs for each that is
	// ejected, so that at most half of them are.
	//
	// gRFC A50, max_ejection_percent: "The maximum % of an upstream cluster that can be ejected
	// due to outlier detection. Defaults to 10% but will eject at least one host regardless of
	// the value." With 10 %, only one of four instances could be ejected. Beyond half
	// of them it is better to call an instance that may fail than to overload the instances that
	// work: Envoy's panic threshold is 50 %, too.
	MinInstancesPerEjection = 2

	// An instance is stalled when a call that began after its last answer has waited for
	// stallTime and for stallFactor times the usual interval between answers, which is the
	// usual duration divided by the calls in flight. A stalled instance gets no more calls
	// while there are others, so that only one or two calls of this process, not one of each
	// goroutine, wait for a frozen pod until they time out.
	stallTime   = 10 * time.Millisecond
	stallFactor = 8

	// A timeout is the instance's fault only if the instance had time to answer: if
	// it had calls in flight and answered none of them for stallTime and for
	// answerFactor times its usual interval. An instance that has never answered gets
	// firstAnswerTime, because the connection to it may be new.
	answerFactor    = 2
	firstAnswerTime = 50 * time.Millisecond

	// maxAnswerInterval bounds the usual interval between answers, so that an instance that
	// had no calls for long is soon known to have stalled.
	maxAnswerInterval = time.Second

	// Answers within minAnswerInterval count as one, so that calls to a busy instance rarely write what all of them
	// share. It is short beside stallTime, which a timeout has to exceed anyway.
	minAnswerInterval = 100 * time.Microsecond

	// An instance is suspected of giving more server errors than the others after
	// errorsInARow of them (Envoy, consecutive_5xx: "Defaults to 5."), or when
	// minErrorShare of its last 63 answers were server errors.
	//
	// gRFC A50 has an interval of 10 s and request_volume: "the minimum number of total requests
	// that must be collected in one interval [...]. Defaults to 100." The last 63 answers give a
	// verdict within a second, and when the whole service begins to fail, as with its database,
	// the histories of all instances show it at once.
	errorsInARow  = 5
	minErrorShare = 0.2

	// A suspect is ejected if an instance as good as the others would produce this run of
	// server errors at most once in ten million calls.
	chanceOfRun = 1e-7

	// It is also ejected if its share of server errors is successRateStdevs standard
	// deviations above the other instances' mean, and binomialStdevs standard deviations above
	// what 63 answers give by chance.
	//
	// gRFC A50, success_rate_stdev_factor: "The ejection threshold is the difference between the
	// mean success rate, and the product of this factor and the standard deviation of the mean
	// success rate [...]. Defaults to 1900.", which is 1.9. minimum_hosts there is 5; the second
	// condition takes its place, so that services with two instances are served, too.
	successRateStdevs = 1.9
	binomialStdevs    = 5

	// MaxCompared is how many other instances are looked at, because the time must not grow
	// with their number.
	MaxCompared = 64
)
