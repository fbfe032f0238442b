package alerts

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
)

// metric is a row of the table in docs/observability.md. A test in pod/metrics compares the table with what a service exports.
type metric struct {
	kind   string
	labels []string
}

// ofTarget are labels of the scraped pod, which the Prometheus Operator adds.
var ofTarget = []string{"namespace", "pod"}

var rowOfTable = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (counter|gauge|histogram) \\| (.*?) \\| .* \\|$")

// documented returns the page and the metrics of its table, a histogram with each of its three names.
func documented(t *testing.T) (page string, metrics map[string]metric) {
	t.Helper()
	text, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	metrics = map[string]metric{}
	for _, row := range rowOfTable.FindAllStringSubmatch(string(text), -1) {
		m := metric{row[2], slices.Concat(strings.Fields(strings.NewReplacer("`", "", ",", "").Replace(row[3])), ofTarget)}
		if m.kind != "histogram" {
			metrics[row[1]] = m
			continue
		}
		metrics[row[1]+"_count"], metrics[row[1]+"_sum"] = metric{"counter", m.labels}, metric{"counter", m.labels}
		metrics[row[1]+"_bucket"] = metric{"counter", append(m.labels, "le")}
	}
	if len(metrics) < 20 {
		t.Fatalf("the table of docs/observability.md has %d metrics", len(metrics))
	}
	return string(text), metrics
}

// checkNames reports metrics, labels and values in an expression that the page does not have, and a rate of a gauge. It
// returns the labels of the metrics.
func checkNames(t *testing.T, where, expression string) (known []string) {
	t.Helper()
	page, metrics := documented(t)
	codes, err := os.ReadFile("../../pod/metrics/names.go") // the page does not list all codes of gRPC
	if err != nil {
		t.Fatal(err)
	}
	e, err := promQL.ParseExpr(expression)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return nil
	}
	var used []string
	parser.Inspect(e, func(n parser.Node, path []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			m, ok := metrics[n.Name]
			if recorded := strings.HasPrefix(n.Name, "server_address:"); recorded {
				m, ok = metric{"gauge", []string{"namespace", "server_address"}}, true
			}
			if !ok {
				t.Errorf("%s: the metric %q is not documented", where, n.Name)
			}
			known = append(known, m.labels...)
			for _, l := range n.LabelMatchers {
				if l.Name == model.MetricNameLabel {
					continue
				}
				if !slices.Contains(m.labels, l.Name) {
					t.Errorf("%s: %s has no label %q", where, n.Name, l.Name)
				}
				for value := range strings.SplitSeq(l.Value, "|") {
					if strings.HasPrefix(value, "$") || value == "5.." || strings.Contains(page, "`"+value+"`") || strings.Contains(string(codes), `"`+value+`"`) {
						continue
					}
					t.Errorf("%s: the label %q has no value %q", where, l.Name, value)
				}
			}
			for _, p := range path {
				if c, ok := p.(*parser.Call); ok && (c.Func.Name == "rate" || c.Func.Name == "increase") && m.kind != "counter" {
					t.Errorf("%s: %s of %s, which is a %s", where, c.Func.Name, n.Name, m.kind)
				}
			}
		case *parser.AggregateExpr:
			used = append(used, n.Grouping...)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				used = append(used, n.VectorMatching.MatchingLabels...)
			}
		}
		return nil
	})
	for _, l := range used {
		if !slices.Contains(known, l) {
			t.Errorf("%s: no metric has the label %q", where, l)
		}
	}
	return known
}

func TestRulesUseDocumentedMetrics(t *testing.T) {
	page, _ := documented(t)
	for _, g := range readRules(t) {
		for _, r := range g.Rules {
			checkNames(t, r.Record+r.Alert, r.Expr)
			if r.Alert != "" && !strings.Contains(page, "`"+r.Alert+"`") {
				t.Errorf("docs/observability.md does not list %s", r.Alert)
			}
		}
	}
}

var queryOfTable = regexp.MustCompile("(?m)^\\| [^`|]+ \\| `([^`]+)`")

func TestQueriesOfThePage(t *testing.T) {
	page, _ := documented(t)
	_, questions, _ := strings.Cut(page, "\n## Questions\n")
	questions, _, _ = strings.Cut(questions, "\n## ")
	queries := queryOfTable.FindAllStringSubmatch(questions, -1)
	if len(queries) < 5 {
		t.Errorf("the page has the queries %q", queries)
	}
	for _, q := range queries {
		checkNames(t, "docs/observability.md", q[1])
	}
}

var (
	labelOfLegend = regexp.MustCompile(`{{(\w+)}}`)
	labelValues   = regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`)
)

// TestDashboard checks that each panel has a place and a meaning, and that each query can have a result.
func TestDashboard(t *testing.T) {
	var d struct {
		UID, Title string
		Templating struct {
			List []struct {
				Name  string
				Query any
			}
		}
		Panels []struct {
			ID                 int
			Title, Description string
			GridPos            struct{ X, Y, W, H int }
			Datasource         struct{ Type, UID string }
			Targets            []struct{ RefID, Expr, LegendFormat string }
		}
	}
	b, err := os.ReadFile(component + "dashboard.json")
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	if err != nil || d.UID == "" || len(d.Panels) != 9 {
		t.Fatalf("dashboard.json: error %v, uid %q, %d panels", err, d.UID, len(d.Panels))
	}
	for _, v := range d.Templating.List {
		if q, ok := v.Query.(map[string]any); ok {
			m := labelValues.FindStringSubmatch(q["query"].(string))
			if m == nil {
				t.Errorf("the variable %s has the query %v", v.Name, q)
			} else if known := checkNames(t, "the variable "+v.Name, m[1]); !slices.Contains(known, m[2]) {
				t.Errorf("the variable %s: %s has no label %q", v.Name, m[1], m[2])
			}
		}
	}
	places, ids := map[[2]int]string{}, map[int]bool{}
	for _, p := range d.Panels {
		if p.Title == "" || p.Description == "" || len(p.Targets) == 0 || p.Datasource.UID != "${datasource}" || ids[p.ID] {
			t.Errorf("the panel %d %q has no title, description, query, data source or id of its own", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := places[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("the panel %q overlaps %q, or is too wide", p.Title, other)
				}
				places[[2]int{x, y}] = p.Title
			}
		}
		for _, q := range p.Targets {
			where := p.Title + " " + q.RefID
			known := checkNames(t, where, strings.ReplaceAll(q.Expr, "$__rate_interval", "1m"))
			for _, l := range labelOfLegend.FindAllStringSubmatch(q.LegendFormat, -1) {
				if !slices.Contains(known, l[1]) {
					t.Errorf("%s: the legend has the label %q, which no metric has", where, l[1])
				}
			}
		}
	}
}
