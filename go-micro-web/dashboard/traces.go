package dashboard

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/debugtrace"
	"github.com/micro/go-micro/v2/logger"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	maxTraces      = 100
	maxOldFailures = 20          // older traces that have failed
	maxTracedPods  = 32          // that are asked for their spans
	maxPodSpans    = 256         // as many as go-micro keeps
	maxTraceSpans  = 200         // of a trace
	maxSpanAnswer  = 256 << 10   // bytes, of another pod of this service
	maxSpanDepth   = 8           // of the indentation
	spansTimeout   = time.Second // for all pods, which are asked at once
	tracesInterval = time.Second // for which all viewers share the traces
	traceSettles   = time.Second // after its beginning or end; until then a pod may not have kept all spans of a trace
)

var tracesTemplate = template.Must(template.ParseFS(assets, "assets/traces.html"))

// traces reads the spans that the pods keep, and joins them. It is safe for concurrent use.
type traces struct {
	own   func() ([]debugtrace.Span, error)
	other func(ctx context.Context, p tracedPod) ([]debugtrace.Span, error)    // of a gRPC service
	web   func(ctx context.Context, address string) ([]debugtrace.Span, error) // of another pod of this service

	timeout time.Duration // for all pods

	mu     sync.Mutex
	at     time.Time
	latest *traceList
}

// newTraces returns traces of the pods that a registry finds. It asks gRPC services with the registry's credentials.
func newTraces(r *pod.Registry) *traces {
	other := func(ctx context.Context, p tracedPod) ([]debugtrace.Span, error) {
		if secure := r.Credentials(pod.Callee{Service: p.Service, Address: p.Address, Pod: p.Pod}); secure != nil {
			return debugtrace.Read(ctx, p.Address, grpc.WithTransportCredentials(secure))
		}
		return debugtrace.Read(ctx, p.Address)
	}
	return &traces{own: debugtrace.Own, other: other, web: webSpans, timeout: spansTimeout}
}

// traceList is what the pods kept at one time. It is immutable.
type traceList struct {
	Time    time.Time    `json:"time"`
	Pods    []tracedPod  `json:"pods"`
	Omitted int          `json:"omitted,omitempty"` // instances that were not asked
	Traces  []*callTrace `json:"traces"`            // latest first
}

// tracedPod is an instance that was asked for its spans.
type tracedPod struct {
	Service string `json:"service"`
	Pod     string `json:"pod"`
	Address string `json:"address"`
	Spans   int    `json:"spans"`
	Problem string `json:"problem,omitempty"`
	spans   []debugtrace.Span
}

// callTrace is one call, with the calls that were made for it.
type callTrace struct {
	ID       string       `json:"id"`
	Name     string       `json:"name"` // of the first span
	Started  time.Time    `json:"started"`
	Millis   float64      `json:"ms"`
	Services []string     `json:"services"` // in the order of their first spans
	Pods     int          `json:"pods"`     // that have spans of the trace
	Attempts int          `json:"attempts"` // that have failed
	Error    string       `json:"error,omitempty"`
	Complete bool         `json:"complete"` // the spans that the others name as parents are all there
	Spans    []*shownSpan `json:"spans"`    // parents before their children
	Omitted  int          `json:"omitted,omitempty"`
}

// shownSpan is a span of a trace.
type shownSpan struct {
	Service string          `json:"service"` // of the pod that kept the span
	Pod     string          `json:"pod"`
	Kind    debugtrace.Kind `json:"kind"`
	Name    string          `json:"name"`
	ID      string          `json:"id"`
	Parent  string          `json:"parent,omitempty"`
	Depth   int             `json:"depth"`
	Offset  float64         `json:"offsetMs"` // after the beginning of the trace
	Millis  float64         `json:"ms"`
	Called  string          `json:"called,omitempty"` // the pod, or else the address, that an attempt has called
	Error   string          `json:"error,omitempty"`

	X, Width       float64 `json:"-"` // of its bar, in thousandths of the trace
	started, ended time.Time
}

// current returns the traces that all viewers share for tracesInterval. It asks the pods of the view if they are older.
func (t *traces) current(v *view) *traceList {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.latest == nil || time.Since(t.at) > tracesInterval {
		t.latest = t.read(v)
		t.at = time.Now()
	}
	return t.latest
}

// read asks pods for their spans, all at once.
func (t *traces) read(v *view) *traceList {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout) // not that of a viewer, because others wait for the same
	defer cancel()
	l := &traceList{Time: now(), Traces: []*callTrace{}}
	l.Pods, l.Omitted = askedPods(v)
	ownServices := map[string]bool{}
	for _, p := range l.Pods {
		if p.Pod == v.Pod {
			ownServices[p.Service] = true
		}
	}
	var wait sync.WaitGroup
	for i := range l.Pods {
		p := &l.Pods[i]
		wait.Go(func() {
			var err error
			switch {
			case p.Pod == v.Pod:
				p.spans, err = t.own()
			case ownServices[p.Service]:
				p.spans, err = t.web(ctx, p.Address)
			default:
				p.spans, err = t.other(ctx, *p)
			}
			p.spans = p.spans[:min(len(p.spans), maxPodSpans)]
			p.Spans, p.Problem = len(p.spans), spansProblem(err)
		})
	}
	wait.Wait()
	l.Traces = join(l.Pods, l.Time)
	return l
}

// askedPods returns the instances of a view to ask, and how many are omitted. The first instance of each service comes first, so that
// no service hides the others. The pod of the page is always among them.
func askedPods(v *view) (pods []tracedPod, omitted int) {
	own := slices.IndexFunc(v.Services, func(s service) bool {
		return slices.ContainsFunc(s.Instances, func(i instance) bool { return i.Pod == v.Pod })
	})
	if own < 0 { // not registered
		pods = append(pods, tracedPod{Pod: v.Pod})
	} else {
		pods = append(pods, tracedPod{Service: v.Services[own].Name, Pod: v.Pod})
	}
	for n, more := 0, true; more; n++ {
		more = false
		for _, s := range v.Services {
			if n >= len(s.Instances) {
				continue
			}
			more = true
			switch i := s.Instances[n]; {
			case i.Pod == v.Pod:
			case len(pods) == maxTracedPods:
				omitted++
			default:
				pods = append(pods, tracedPod{Service: s.Name, Pod: i.Pod, Address: i.Address})
			}
		}
	}
	return pods, omitted + v.Omitted
}

// spansProblem says why a pod has no spans. The page does not show the errors of calls, because they can contain anything.
func spansProblem(err error) string {
	switch {
	case err == nil:
		return ""
	case status.Code(err) == codes.PermissionDenied || errors.Is(err, errTracesOff):
		return "off: its pod has not " + debugtrace.Variable + "=on"
	case status.Code(err) == codes.ResourceExhausted:
		return "its answer is too large"
	}
	return "no answer"
}

// join returns the traces whose spans pods have kept, latest first.
func join(pods []tracedPod, at time.Time) []*callTrace {
	byID, podAt := map[string]*callTrace{}, map[string]string{}
	type spanKey struct{ trace, span string }
	seen := map[spanKey]bool{} // an instance of two services is asked twice
	for _, p := range pods {
		podAt[p.Address] = p.Pod
	}
	for _, p := range pods {
		for _, s := range p.spans {
			if key := (spanKey{s.Trace, s.ID}); s.Trace == "" || seen[key] {
				continue
			} else {
				seen[key] = true
			}
			t := byID[s.Trace]
			if t == nil {
				t = &callTrace{ID: clip(s.Trace)}
				byID[s.Trace] = t
			}
			if len(t.Spans) == maxTraceSpans {
				t.Omitted++
				continue
			}
			t.Spans = append(t.Spans, &shownSpan{Service: p.Service, Pod: p.Pod, Kind: s.Kind, Name: clip(s.Name), ID: clip(s.ID), Parent: clip(s.Parent),
				Called: cmp.Or(podAt[s.Address], clip(s.Address)), Error: clip(s.Error), started: s.Started, ended: s.Started.Add(max(0, min(s.Duration, 24*time.Hour)))})
		}
	}
	all := []*callTrace{}
	for _, t := range byID {
		if t.arrange(); t.settled(at) {
			all = append(all, t)
		}
	}
	slices.SortFunc(all, func(a, b *callTrace) int { return cmp.Or(b.Started.Compare(a.Started), cmp.Compare(a.ID, b.ID)) })
	return latest(all)
}

// latest returns the first maxTraces of the traces, and maxOldFailures of the others, that have failed or had a failing attempt: at
// many calls a second they would vanish before somebody looks.
func latest(all []*callTrace) []*callTrace {
	if len(all) <= maxTraces {
		return all
	}
	shown := slices.Clone(all[:maxTraces])
	for _, t := range all[maxTraces:] {
		if len(shown) < maxTraces+maxOldFailures && (t.Error != "" || t.Attempts > 0) {
			shown = append(shown, t)
		}
	}
	return shown
}

// settled reports whether the pods have kept all that they will keep of a trace, as seen at a time before they were asked.
func (t *callTrace) settled(at time.Time) bool {
	var ended time.Time
	for _, s := range t.Spans {
		if s.ended.After(ended) {
			ended = s.ended
		}
	}
	endsLater := ended.After(at) && ended.Sub(at) < traceSettles // after one pod was asked, but perhaps before another was
	return !endsLater && (t.Complete || at.Sub(t.Started).Abs() >= traceSettles)
}

// arrange sorts the spans, parents first, and sets everything that follows from them.
func (t *callTrace) arrange() {
	slices.SortFunc(t.Spans, func(a, b *shownSpan) int {
		return cmp.Or(a.started.Compare(b.started), b.ended.Compare(a.ended), cmp.Compare(a.ID, b.ID))
	})
	t.nestInAttempts()
	ids, children := map[string]bool{}, map[string][]*shownSpan{}
	for _, s := range t.Spans {
		ids[s.ID] = true
	}
	var roots []*shownSpan
	for _, s := range t.Spans {
		if ids[s.Parent] && s.Parent != s.ID {
			children[s.Parent] = append(children[s.Parent], s)
		} else {
			roots = append(roots, s)
		}
	}
	t.Complete = t.Omitted == 0 && len(roots) == 1 && roots[0].Parent == ""
	var sorted []*shownSpan
	var add func(spans []*shownSpan, depth int)
	add = func(spans []*shownSpan, depth int) {
		for _, s := range spans {
			s.Depth = min(depth, maxSpanDepth)
			sorted = append(sorted, s)
			add(children[s.ID], depth+1)
		}
	}
	add(roots, 0)
	if len(sorted) < len(t.Spans) { // spans that name each other as parents, which only a forger makes
		t.Complete = false
		for _, s := range t.Spans {
			if !slices.Contains(sorted, s) {
				sorted = append(sorted, s)
			}
		}
	}
	begin, end := t.Spans[0].started, t.Spans[0].ended
	for _, s := range t.Spans {
		if s.ended.After(end) {
			end = s.ended
		}
	}
	t.Spans, t.Name, t.Error, t.Started, t.Millis = sorted, sorted[0].Name, sorted[0].Error, begin, millis(end.Sub(begin))
	pods := map[string]bool{}
	for _, s := range t.Spans {
		s.Offset, s.Millis = millis(s.started.Sub(begin)), millis(s.ended.Sub(s.started))
		if total := end.Sub(begin); total > 0 {
			s.X, s.Width = 1000*float64(s.started.Sub(begin))/float64(total), 1000*float64(s.ended.Sub(s.started))/float64(total)
		}
		s.Width = max(s.Width, 2) // to be seen
		s.X = min(s.X, 1000-s.Width)
		pods[s.Pod] = true
		if s.Kind == debugtrace.Attempt {
			t.Attempts++
		}
		if !slices.Contains(t.Services, s.Service) {
			t.Services = append(t.Services, s.Service)
		}
	}
	t.Pods = len(pods)
}

// nestInAttempts makes the span of a handler a child of the attempt that called it. In go-micro's headers it is one of the call, as the
// handlers of the call's other attempts.
func (t *callTrace) nestInAttempts() {
	for _, attempt := range t.Spans {
		if attempt.Kind != debugtrace.Attempt {
			continue
		}
		for _, s := range t.Spans {
			if s.Kind == debugtrace.Handler && s.Parent == attempt.Parent && s.Pod == attempt.Called && !s.started.Before(attempt.started) && s.started.Before(attempt.ended) {
				s.Parent = attempt.ID
				break
			}
		}
	}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// ---- other pods of this service ----

var errTracesOff = errors.New("the pod has no traces")

// spansClient asks other pods of this service. It uses neither a proxy nor a connection for long.
var spansClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// webSpans returns the spans that another pod of this service keeps.
func webSpans(ctx context.Context, address string) (spans []debugtrace.Span, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+root+"spans.json", http.NoBody)
	if err != nil {
		return nil, err
	}
	rsp, err := spansClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer rsp.Body.Close()
	switch rsp.StatusCode {
	case http.StatusOK:
		return spans, json.NewDecoder(io.LimitReader(rsp.Body, maxSpanAnswer)).Decode(&spans)
	case http.StatusNotFound:
		return nil, errTracesOff
	}
	return nil, fmt.Errorf("status %s", rsp.Status)
}

// ---- HTTP ----

// serveSpans answers other pods of this service with the spans of this one.
func (d *dashboard) serveSpans(w http.ResponseWriter, _ *http.Request) {
	spans, err := d.traces.own()
	if err != nil {
		http.Error(w, "the spans cannot be read", http.StatusInternalServerError)
		return
	}
	d.writeJSON(w, spans)
}

func (d *dashboard) writeJSON(w http.ResponseWriter, v any) {
	defer limitWrite(w, d.pageTimeout)()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// tracesPage is the data of the template: all traces, or one.
type tracesPage struct {
	*traceList
	Trace *callTrace // nil on the page of all
	Gone  bool       // the trace that was asked for is not there
}

// serveTraces answers with the page of all traces, or of the one that the parameter id names.
func (d *dashboard) serveTraces(w http.ResponseWriter, r *http.Request) {
	d.withTraces(w, r, d.writeTraces)
}

func (d *dashboard) serveTracesJSON(w http.ResponseWriter, r *http.Request) {
	d.withTraces(w, r, func(w http.ResponseWriter, _ *http.Request, p tracesPage) {
		switch {
		case p.Gone:
			http.Error(w, "no pod keeps this trace", http.StatusNotFound)
		case p.Trace != nil:
			d.writeJSON(w, p.Trace)
		default:
			d.writeJSON(w, p.traceList)
		}
	})
}

func (d *dashboard) withTraces(w http.ResponseWriter, r *http.Request, write func(http.ResponseWriter, *http.Request, tracesPage)) {
	defer d.hub.join()()
	v, err := d.hub.wait(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	p := tracesPage{traceList: d.traces.current(v)}
	if id := r.URL.Query().Get("id"); id != "" {
		i := slices.IndexFunc(p.Traces, func(t *callTrace) bool { return t.ID == id })
		if p.Gone = i < 0; !p.Gone {
			p.Trace = p.Traces[i]
		}
	}
	write(w, r, p)
}

func (d *dashboard) writeTraces(w http.ResponseWriter, r *http.Request, p tracesPage) {
	defer limitWrite(w, d.pageTimeout)()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if p.Gone {
		w.WriteHeader(http.StatusNotFound)
	}
	if err := tracesTemplate.Execute(w, p); err != nil && r.Context().Err() == nil {
		logger.Errorf("Rendering the page of traces: %v", err)
	}
}

// Clock formats the time of a trace.
func (p tracesPage) Clock(t time.Time) string { return clock(t, p.Time) }

// Asked counts the pods that have answered.
func (p tracesPage) Asked() string {
	answered := 0
	for _, pod := range p.Pods {
		if pod.Problem == "" {
			answered++
		}
	}
	text := fmt.Sprintf("%s of %s", count(len(p.Traces), "trace"), count(answered, "pod"))
	if p.Omitted > 0 {
		text += fmt.Sprintf("; %d more not asked", p.Omitted)
	}
	return text
}

// Silent returns the pods without spans that have a reason for it.
func (p tracesPage) Silent() (all []tracedPod) {
	for _, pod := range p.Pods {
		if pod.Problem != "" {
			all = append(all, pod)
		}
	}
	return all
}
