package metrics

import (
	"strings"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/prometheus/client_golang/prometheus"
)

var (
	ageDesc         = prometheus.NewDesc("micro_registry_snapshot_age_seconds", "Time since the API server last sent anything to the registry.", nil, nil)
	instancesDesc   = prometheus.NewDesc("micro_registry_instances", "Instances of the services that this process has looked up, by state.", []string{labelServer, labelState}, nil)
	registeredDesc  = prometheus.NewDesc("micro_registry_registered", "1 if the API server has confirmed the registration of the service, otherwise 0; absent if the service uses another registry.", []string{labelService}, nil)
	stateDesc       = prometheus.NewDesc("micro_lifecycle_state", "1 for the state of the service, otherwise 0.", []string{labelService, labelState}, nil)
	ownInFlightDesc = prometheus.NewDesc("micro_lifecycle_in_flight", "Calls, streams, messages or requests that the service is serving.", []string{labelService}, nil)
	drainDesc       = prometheus.NewDesc("micro_lifecycle_drain_seconds", "Time since the signal to stop; absent before.", []string{labelService}, nil)
	drainLeftDesc   = prometheus.NewDesc("micro_lifecycle_drain_left_seconds", "Time until calls in flight are cut off; absent before the signal to stop.", []string{labelService}, nil)
	lifecycleStates = [...]pod.LifecycleState{pod.LifecycleNotReady, pod.LifecycleReady, pod.LifecycleDraining}
	statusDescs     = [...]*prometheus.Desc{ageDesc, instancesDesc, registeredDesc, stateDesc, ownInFlightDesc, drainDesc, drainLeftDesc}
)

// collectStatus sends what the registry and the services of this process are now.
func collectStatus(s pod.Status, ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	if !s.LastContact.IsZero() {
		gauge(ageDesc, time.Since(s.LastContact).Seconds())
	}
	for _, called := range s.Called {
		for state, n := range called.Instances {
			gauge(instancesDesc, float64(n), called.Name, labelOf(state))
		}
	}
	for _, own := range s.Services {
		if own.State == pod.LifecycleStopped {
			continue
		}
		if !own.OtherRegistry {
			gauge(registeredDesc, oneIf(own.Registered), own.Name)
		}
		gauge(ownInFlightDesc, float64(own.InFlight), own.Name)
		if own.State == pod.LifecycleDraining {
			gauge(drainDesc, time.Since(own.StopBegan).Seconds(), own.Name)
			gauge(drainLeftDesc, time.Until(own.DrainEnds).Seconds(), own.Name)
		}
		for _, state := range lifecycleStates {
			gauge(stateDesc, oneIf(own.State == state), own.Name, labelOf(state))
		}
	}
}

func labelOf[S ~string](state S) string { return strings.ReplaceAll(string(state), " ", "_") }

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
