package alerts

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/template"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// scrapeInterval is that of podmonitor.yaml.
const scrapeInterval = 15 * time.Second

var promQL = parser.NewParser(parser.Options{})

// sample is one value of a series, at a time in milliseconds.
type sample struct {
	t int64
	v float64
}

func (s sample) T() int64                    { return s.t }
func (s sample) F() float64                  { return s.v }
func (sample) ST() int64                     { return 0 }
func (sample) H() *histogram.Histogram       { return nil }
func (sample) FH() *histogram.FloatHistogram { return nil }
func (sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample         { return s }

// recording holds time series that begin at the time 0.
type recording struct {
	labels  map[uint64]labels.Labels
	samples map[uint64][]chunks.Sample
	last    time.Duration // time of the last sample that was scraped
}

func (r *recording) add(l labels.Labels, s sample) {
	r.labels[l.Hash()] = l
	r.samples[l.Hash()] = append(r.samples[l.Hash()], s)
}

// Select returns the series that match.
func (r *recording) Select(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	var found seriesSet
	for hash, l := range r.labels {
		if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(l.Get(m.Name)) }) {
			found.series = append(found.series, storage.NewListSeries(l, r.samples[hash]))
		}
	}
	slices.SortFunc(found.series, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
	return &found
}

type seriesSet struct {
	series []storage.Series
	next   int
}

func (s *seriesSet) Next() bool                      { s.next++; return s.next <= len(s.series) }
func (s *seriesSet) At() storage.Series              { return s.series[s.next-1] }
func (*seriesSet) Err() error                        { return nil }
func (*seriesSet) Warnings() annotations.Annotations { return nil }

// firing is an alert that fires from one evaluation to another.
type firing struct {
	alert       string
	from, until time.Duration // until is -1 if it fires at the end of the recording
	annotations map[string]string
}

func (f firing) String() string {
	if f.until < 0 {
		return fmt.Sprintf("%s from %s to the end", f.alert, f.from)
	}
	return fmt.Sprintf("%s from %s to %s", f.alert, f.from, f.until)
}

// evaluate evaluates the rules at each interval of their group, from the beginning to the end of a recording, and returns
// what has fired.
func (r *recording) evaluate(ctx context.Context, groups []rulefmt.RuleGroup) (fired []firing, err error) {
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e8, Timeout: time.Minute, Parser: promQL, EnableAtModifier: true, EnableNegativeOffset: true})
	defer engine.Close()
	queryable := &storage.MockQueryable{MockQuerier: &storage.MockQuerier{SelectMockFunction: r.Select}}
	for _, g := range groups {
		active := make([]alerts, len(g.Rules))
		for at := time.Duration(0); at <= r.last; at += time.Duration(g.Interval) {
			for i, rule := range g.Rules {
				now := time.UnixMilli(at.Milliseconds())
				q, err := engine.NewInstantQuery(ctx, queryable, nil, rule.Expr, now)
				if err != nil {
					return nil, fmt.Errorf("%s%s: %w", rule.Record, rule.Alert, err)
				}
				result := q.Exec(ctx)
				vector, err := result.Vector()
				if err != nil {
					return nil, fmt.Errorf("%s%s: %w", rule.Record, rule.Alert, err)
				}
				if rule.Record != "" {
					for _, v := range vector {
						r.add(labels.NewBuilder(v.Metric).Set(model.MetricNameLabel, rule.Record).Labels(), sample{at.Milliseconds(), v.F})
					}
				} else {
					ended, err := active[i].update(ctx, rule, at, vector)
					if err != nil {
						return nil, err
					}
					fired = append(fired, ended...)
				}
				q.Close()
			}
		}
		for _, a := range active {
			for _, hash := range slices.Sorted(maps.Keys(a)) {
				if s := a[hash]; s.fires {
					fired = append(fired, firing{s.rule, s.firesSince, -1, s.annotations})
				}
			}
		}
	}
	return fired, nil
}

// alerts are the active alerts of one rule, by their labels.
type alerts map[uint64]*state

type state struct {
	rule                               string
	activeSince, firesSince, keptSince time.Duration
	fires, kept                        bool
	annotations                        map[string]string
}

// update does what Prometheus does after it has evaluated the rule of an alert (rules/alerting.go, Eval). It returns the
// alerts that have ended.
func (a *alerts) update(ctx context.Context, rule rulefmt.Rule, at time.Duration, vector promql.Vector) (ended []firing, err error) {
	if *a == nil {
		*a = alerts{}
	}
	found := map[uint64]bool{}
	for _, v := range vector {
		hash := labels.NewBuilder(v.Metric).Del(model.MetricNameLabel).Labels().Hash()
		if found[hash] {
			return nil, fmt.Errorf("%s: two alerts have the labels %s", rule.Alert, v.Metric)
		}
		found[hash] = true
		s := (*a)[hash]
		if s == nil {
			s = &state{rule: rule.Alert, activeSince: at}
			(*a)[hash] = s
		}
		s.kept = false
		if s.annotations, err = expand(ctx, rule, at, v); err != nil {
			return nil, err
		}
		if !s.fires && at-s.activeSince >= time.Duration(rule.For) {
			s.fires, s.firesSince = true, at
		}
	}
	for hash, s := range *a {
		if found[hash] {
			continue
		}
		if s.fires && !s.kept {
			s.kept, s.keptSince = true, at
		}
		if s.fires && at-s.keptSince < time.Duration(rule.KeepFiringFor) {
			continue
		}
		if s.fires {
			ended = append(ended, firing{rule.Alert, s.firesSince, at, s.annotations})
		}
		delete(*a, hash)
	}
	return ended, nil
}

// expand returns the annotations of an alert. Labels that it does not have are an error.
func expand(ctx context.Context, rule rulefmt.Rule, at time.Duration, v promql.Sample) (map[string]string, error) {
	expanded := map[string]string{}
	data := template.AlertTemplateData(v.Metric.Map(), nil, "", v)
	for name, text := range rule.Annotations {
		const variables = "{{$labels := .Labels}}{{$value := .Value}}"
		var err error
		if expanded[name], err = template.NewTemplateExpander(ctx, variables+text, rule.Alert, data, model.Time(at.Milliseconds()), nil, nil, []string{"missingkey=error"}).Expand(); err != nil {
			return nil, fmt.Errorf("%s: the annotation %s: %w", rule.Alert, name, err)
		}
	}
	return expanded, nil
}
