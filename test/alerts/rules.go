package alerts

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

const component = "../../k8s/components/monitoring-operator/"

func decode(component, file string, into any) error {
	b, err := os.ReadFile(filepath.Join(component, file))
	if err == nil {
		err = yaml.UnmarshalStrict(b, into)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// rulesOf returns the rules of a component as Prometheus reads them.
func rulesOf(component string) ([]rulefmt.RuleGroup, error) {
	var r monitoring.PrometheusRule
	if err := decode(component, "rules.yaml", &r); err != nil {
		return nil, err
	}
	if r.APIVersion != "monitoring.coreos.com/v1" || r.Kind != monitoring.PrometheusRuleKind {
		return nil, fmt.Errorf("rules.yaml has the kind %s of %s", r.Kind, r.APIVersion)
	}
	spec, err := yaml.Marshal(r.Spec)
	if err != nil {
		return nil, err
	}
	groups, errs := rulefmt.Parse(spec, false, model.UTF8Validation, promQL, slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		return nil, fmt.Errorf("rules.yaml: %w", errors.Join(errs...))
	}
	return groups.Groups, nil
}

// faster divides all durations of rules, but no threshold: ranges, for, keep_firing_for and the intervals, which become 1 s at least.
func faster(groups []rulefmt.RuleGroup, divisor int) error {
	divide := func(d model.Duration) model.Duration { return d / model.Duration(divisor) }
	for i := range groups {
		g := &groups[i]
		g.Interval = max(divide(g.Interval), model.Duration(time.Second))
		for k := range g.Rules {
			r := &g.Rules[k]
			r.For, r.KeepFiringFor = divide(r.For), divide(r.KeepFiringFor)
			e, err := promQL.ParseExpr(r.Expr)
			if err != nil {
				return fmt.Errorf("%s%s: %w", r.Record, r.Alert, err)
			}
			parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
				if m, ok := n.(*parser.MatrixSelector); ok {
					m.Range = max(m.Range/time.Duration(divisor), 3*time.Second) // of three scrapes at least
				}
				return nil
			})
			r.Expr = e.String()
		}
	}
	return nil
}
