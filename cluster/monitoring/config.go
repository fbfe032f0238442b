package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

const (
	namespace      = "go-micro"
	faults         = "go-micro-faults" // of make faults
	scrapeInterval = "2s"
)

// apiServer is the API server of a cluster, and the client certificate for it.
type apiServer struct{ url, ca, cert, key string }

// apiServer reads the kubeconfig.
func (k kubectl) apiServer(ctx context.Context) (a apiServer, err error) {
	out, err := k.output(ctx, "config", "view", "--raw", "--flatten", "--minify", "-o", "json")
	if err != nil {
		return a, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	var c struct {
		Clusters []struct {
			Cluster struct {
				Server string
				CA     []byte `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Cert []byte `json:"client-certificate-data"`
				Key  []byte `json:"client-key-data"`
			}
		}
	}
	if err := json.Unmarshal(out, &c); err != nil || len(c.Clusters) != 1 || len(c.Users) != 1 {
		return a, fmt.Errorf("reading the kubeconfig: want one cluster and one user: %w", err)
	}
	return apiServer{c.Clusters[0].Cluster.Server, string(c.Clusters[0].Cluster.CA), string(c.Users[0].User.Cert), string(c.Users[0].User.Key)}, nil
}

type object = map[string]any

// scrapeConfig returns the configuration of scrapes, as JSON, which is also YAML. The addresses of pods are those of the node's network, so
// the API server passes the scrapes on.
func scrapeConfig(a apiServer) []byte {
	tls := object{"ca": a.ca, "cert": a.cert, "key": a.key}
	const meta, port = "__meta_kubernetes_pod_", "__meta_kubernetes_pod_annotation_prometheus_io_port"
	scheme, host, _ := strings.Cut(a.url, "://")
	set := func(label, value string, from ...string) object {
		rule := object{"target_label": label, "replacement": value}
		if len(from) > 0 {
			rule["source_labels"], rule["separator"], rule["regex"] = from, ";", "(.+)"+strings.Repeat(";(.+)", len(from)-1)
		}
		return rule
	}
	b, _ := json.MarshalIndent(object{ // cannot fail
		"global": object{"scrape_interval": scrapeInterval},
		"scrape_configs": []object{{
			"job_name": namespace,
			"kubernetes_sd_configs": []object{{
				"role": "pod", "api_server": a.url, "namespaces": object{"names": []string{namespace, faults}}, "tls_config": tls}},
			"scheme": scheme, "tls_config": tls,
			"relabel_configs": []object{
				{"action": "keep", "source_labels": []string{meta + "annotation_prometheus_io_scrape"}, "regex": "true"},
				{"action": "keep_if_equal", "source_labels": []string{port, meta + "container_port_number"}}, // a pod has a target for each of its ports
				{"action": "keep", "source_labels": []string{meta + "phase"}, "regex": "Running"},
				set("__address__", host),
				set("__metrics_path__", "/api/v1/namespaces/$1/pods/$2:$3/proxy$4", "__meta_kubernetes_namespace", meta+"name", port, meta+"annotation_prometheus_io_path"),
				set("namespace", "$1", "__meta_kubernetes_namespace"),
				set("pod", "$1", meta+"name"),
				set("instance", "$1", meta+"name"),
				set("job", "$1", meta+"label_app"),
			},
		}},
	}, "", "  ")
	return b
}

// dashboardOf returns a dashboard for Grafana as one of VictoriaMetrics' UI, which has neither variables nor stacked panels.
func dashboardOf(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var grafana struct {
		Title  string
		Panels []struct {
			Title, Description string
			FieldConfig        struct{ Defaults struct{ Unit string } }
			Targets            []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(b, &grafana); err != nil {
		return nil, fmt.Errorf("reading %q: %w", path, err)
	}
	units := map[string]string{"s": "s", "reqps": "1/s"}
	simple := strings.NewReplacer(`{namespace=~"$namespace"}`, "", `namespace=~"$namespace",`, "", "$__rate_interval", "1m")
	var panels []object
	for _, p := range grafana.Panels {
		var exprs, aliases []string
		for _, t := range p.Targets {
			exprs, aliases = append(exprs, simple.Replace(t.Expr)), append(aliases, t.LegendFormat)
		}
		panels = append(panels, object{"title": p.Title, "description": p.Description, "unit": units[p.FieldConfig.Defaults.Unit], "expr": exprs, "alias": aliases, "showLegend": true, "width": 6})
	}
	rows := []object{{"title": grafana.Title, "panels": panels}} // the UI hides all rows but the first until somebody opens them
	return json.MarshalIndent(object{"title": grafana.Title, "rows": rows}, "", "  ")
}
