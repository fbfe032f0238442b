package metrics

import (
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/prometheus/client_golang/prometheus"
)

// keepGone is how long the series of a pod stay after its last call and its departure: one scrape more at the usual intervals
// of 15 and 30 s, and gone within 60 s.
const keepGone = 30 * time.Second

// calledPod is a pod that was called. There are no series of pods that were not. Attempts that say nothing about the pod
// are counted together, without its name.
type calledPod struct{ service, pod string }

const inconclusive = "inconclusive" // the outcome of an attempt that says nothing about the pod

var outcomes = [...]string{"answered", "server_error", "refused", "timed_out", "lost_connection", inconclusive}

// podAttempts are the attempts that went to a pod, by their outcome.
type podAttempts struct {
	counts [len(outcomes)]atomic.Uint64
	last   atomic.Int64 // second in which the pod was called last, or was routable
}

func (p *podAttempts) count(outcome string) {
	for i, name := range outcomes {
		if name == outcome {
			p.counts[i].Add(1)
		}
	}
	if now := secondsNow(); p.last.Load() != now {
		p.last.Store(now)
	}
}

// attempts counts the attempts of all clients of a registry by pod.
type attempts struct {
	byPod   series[calledPod, *podAttempts]
	called  func() []pod.CalledService
	cleaned atomic.Int64 // second
}

func (a *attempts) ended(e pod.Attempt) {
	k := calledPod{e.Service, e.Pod}
	if e.Outcome == inconclusive {
		k.pod = ""
	}
	p, known := a.byPod.all()[k]
	if !known {
		p = a.byPod.get(k)
		if secondsNow()-a.cleaned.Load() > int64(keepGone/time.Second) { // nobody scrapes
			a.clean(a.called())
		}
	}
	p.count(e.Outcome)
}

// clean forgets pods that have gone.
func (a *attempts) clean(called []pod.CalledService) {
	now := secondsNow()
	a.cleaned.Store(now)
	all := a.byPod.all()
	keep := func(k calledPod) {
		if p := all[k]; p != nil {
			p.last.Store(now)
		}
	}
	for _, s := range called {
		keep(calledPod{service: s.Name})
		for _, i := range s.Calls {
			keep(calledPod{s.Name, i.Pod})
		}
	}
	a.byPod.remove(func(_ calledPod, p *podAttempts) bool { return now-p.last.Load() > int64(keepGone/time.Second) })
}

var (
	attemptsDesc = prometheus.NewDesc("micro_client_attempts_total", "Attempts of calls, and streams, that have ended, by outcome and called pod, which is empty if the outcome is inconclusive.", []string{labelServer, labelServerPod, labelOutcome}, nil)
	inFlightDesc = prometheus.NewDesc("micro_client_in_flight", "Calls and streams in flight, by called pod.", []string{labelServer, labelServerPod}, nil)
	ejectedDesc  = prometheus.NewDesc("micro_client_ejected", "Routable instances that are ejected now.", []string{labelServer}, nil)
)

// collect sends at most six series for each called pod.
func (a *attempts) collect(called []pod.CalledService, ch chan<- prometheus.Metric) {
	a.clean(called)
	all := a.byPod.all()
	for k, p := range all {
		for i, name := range outcomes {
			if n := p.counts[i].Load(); n > 0 || i == 0 && k.pod != "" {
				ch <- prometheus.MustNewConstMetric(attemptsDesc, prometheus.CounterValue, float64(n), k.service, k.pod, name)
			}
		}
	}
	for _, s := range called {
		if s.Calls == nil {
			continue
		}
		ejected, inFlight := 0, map[string]int{} // a pod may have several instances
		for _, i := range s.Calls {
			if i.EjectedFor > 0 {
				ejected++
			}
			if all[calledPod{s.Name, i.Pod}] != nil {
				inFlight[i.Pod] += i.InFlight
			}
		}
		for name, n := range inFlight {
			ch <- prometheus.MustNewConstMetric(inFlightDesc, prometheus.GaugeValue, float64(n), s.Name, name)
		}
		ch <- prometheus.MustNewConstMetric(ejectedDesc, prometheus.GaugeValue, float64(ejected), s.Name)
	}
}
