package metrics

import (
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/configwatch"
	"github.com/prometheus/client_golang/prometheus"
)

var (
	reloadsDesc   = prometheus.NewDesc("micro_config_reloads_total", "Changes of the ConfigMap that the program has received.", []string{labelConfigMap}, nil)
	configAgeDesc = prometheus.NewDesc("micro_config_age_seconds", "Time since the API server last sent anything to a watch of the ConfigMap.", []string{labelConfigMap}, nil)
)

type configMap struct{ source *configwatch.ConfigMap }

// ConfigMap returns the metrics of a ConfigMap that a program follows, for Serve or a prometheus.Registerer.
func ConfigMap(c *configwatch.ConfigMap) prometheus.Collector { return configMap{c} }

func (c configMap) Describe(ch chan<- *prometheus.Desc) {
	ch <- reloadsDesc
	ch <- configAgeDesc
}

func (c configMap) Collect(ch chan<- prometheus.Metric) {
	s := c.source.Status()
	ch <- prometheus.MustNewConstMetric(reloadsDesc, prometheus.CounterValue, float64(s.Reloads), s.Name)
	if !s.LastContact.IsZero() {
		ch <- prometheus.MustNewConstMetric(configAgeDesc, prometheus.GaugeValue, time.Since(s.LastContact).Seconds(), s.Name)
	}
}
