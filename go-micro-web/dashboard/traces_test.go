package dashboard

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/debugtrace"
	"github.com/jiangjiancc/go_micro_k8s/test/process"
	debug "github.com/micro/go-micro/v2/debug/service/proto"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

const hello = "go-micro-srv.Greeter.Hello"

// ago returns a time before now, which is long enough ago for a trace to be settled.
func ago(d time.Duration) time.Time { return time.Now().Add(-time.Minute - d) }

// spanOf returns a span that begins after the beginning of its trace.
func spanOf(kind debugtrace.Kind, trace, id, parent string, begin time.Time, after, took time.Duration) debugtrace.Span {
	return debugtrace.Span{Trace: trace, ID: id, Parent: parent, Name: hello, Kind: kind, Started: begin.Add(after), Duration: took}
}

// retried are the spans of a call whose first attempt fails: of the caller, of the pod that fails, and of the one that answers.
func retried(trace string, begin time.Time) (caller, fails, answers []debugtrace.Span) {
	attempt := spanOf(debugtrace.Attempt, trace, trace+"-attempt", trace+"-call", begin, time.Millisecond, 4*time.Millisecond)
	attempt.Error, attempt.Address = "500 Internal Server Error", "10.244.0.1:9100"
	failing := spanOf(debugtrace.Handler, trace, trace+"-fails", trace+"-call", begin, 2*time.Millisecond, 2*time.Millisecond)
	failing.Error = "500 Internal Server Error"
	return []debugtrace.Span{attempt, spanOf(debugtrace.Call, trace, trace+"-call", "", begin, 0, 10*time.Millisecond)}, []debugtrace.Span{failing},
		[]debugtrace.Span{spanOf(debugtrace.Handler, trace, trace+"-answers", trace+"-call", begin, 6*time.Millisecond, 3*time.Millisecond)}
}

// keptBy returns a tracedPod of a service.
func keptBy(service, name, address string, spans ...debugtrace.Span) tracedPod {
	return tracedPod{Service: service, Pod: name, Address: address, spans: spans}
}

func TestJoin(t *testing.T) {
	begin := ago(0)
	caller, fails, answers := retried("t", begin)
	single := spanOf(debugtrace.Handler, "single", "s", "", ago(time.Second), 0, time.Millisecond)
	orphan := spanOf(debugtrace.Handler, "orphan", "o", "gone", ago(2*time.Second), 0, time.Millisecond)
	all := join([]tracedPod{
		keptBy("go-micro-srv", "srv-1", "10.244.0.1:9100", append(fails, single)...),
		keptBy("go-micro-srv", "srv-2", "10.244.0.2:9100", append(answers, orphan, debugtrace.Span{ID: "without trace"})...),
		keptBy("go-micro-client", "client-1", "10.244.0.3:9300", caller...),
		keptBy("second-service", "client-1", "10.244.0.3:9301", caller...), // of the same pod
	}, time.Now())
	if len(all) != 3 || all[0].ID != "t" || all[1].ID != "single" || all[2].ID != "orphan" {
		t.Fatalf("the traces are %+v", all)
	}
	var got []string
	for _, s := range all[0].Spans {
		got = append(got, fmt.Sprintf("%d %s %s %g+%g %q %s", s.Depth, s.Kind, s.Pod, s.Offset, s.Millis, s.Error, s.Called))
	}
	want := []string{
		`0 call client-1 0+10 "" `,
		`1 attempt client-1 1+4 "500 Internal Server Error" srv-1`,
		`2 handler srv-1 2+2 "500 Internal Server Error" `,
		`1 handler srv-2 6+3 "" `,
	}
	if !slices.Equal(got, want) {
		t.Errorf("the spans are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s := all[0].Spans[3]; s.X < 590 || s.X > 610 || s.Width < 290 || s.Width > 310 {
		t.Errorf("the bar of the last span begins at %g and is %g wide", s.X, s.Width)
	}
	if x := all[0]; !x.Complete || x.Pods != 3 || x.Attempts != 1 || x.Error != "" || x.Name != hello || x.Millis != 10 || !slices.Equal(x.Services, []string{"go-micro-client", "go-micro-srv"}) {
		t.Errorf("the trace is %+v", x)
	}
	if !all[1].Complete || all[2].Complete {
		t.Errorf("complete: %v and %v, want true and false", all[1].Complete, all[2].Complete)
	}
}

// While pods are asked, calls end: one pod may have kept its span, and the other not yet.
func TestCallsInFlightAreNoTraces(t *testing.T) {
	at := time.Now()
	handler := spanOf(debugtrace.Handler, "in flight", "h", "call", at, -10*time.Millisecond, 5*time.Millisecond)
	call := spanOf(debugtrace.Call, "just ended", "c", "", at, -10*time.Millisecond, 12*time.Millisecond)
	ahead := spanOf(debugtrace.Call, "clock ahead", "a", "", at.Add(time.Hour), 0, time.Millisecond)
	before := spanOf(debugtrace.Call, "before", "b", "", at, -10*time.Millisecond, 5*time.Millisecond)
	all := join([]tracedPod{keptBy("s", "p", "", handler, call, ahead, before)}, at)
	if len(all) != 2 || all[0].ID != "clock ahead" || all[1].ID != "before" {
		t.Errorf("the traces are %+v", all)
	}
}

func TestForgedSpans(t *testing.T) {
	var circle, wide, many []debugtrace.Span
	for i := range 3 {
		circle = append(circle, spanOf(debugtrace.Call, "circle", fmt.Sprint(i), fmt.Sprint((i+1)%3), ago(0), 0, -time.Hour))
	}
	circle = append(circle, spanOf(debugtrace.Call, "self", "self", "self", ago(0), 0, 1<<62))
	for i := range maxTraceSpans + 10 { // each the parent of the next
		wide = append(wide, spanOf(debugtrace.Call, "wide", fmt.Sprint(i), fmt.Sprint(i-1), ago(0), time.Duration(i), time.Hour))
	}
	for i := range maxTraces + 10 {
		many = append(many, spanOf(debugtrace.Call, fmt.Sprint("many", i), "x", "", ago(time.Duration(i)*time.Second), 0, 0))
	}
	all := join([]tracedPod{keptBy("s", "p", "", circle...)}, time.Now())
	if len(all) != 2 || all[0].Complete || all[1].Complete || len(all[0].Spans)+len(all[1].Spans) != 4 {
		t.Errorf("spans that are their own ancestors: %+v", all)
	}
	all = join([]tracedPod{keptBy("s", "p", "", wide...)}, time.Now())
	if len(all) != 1 || len(all[0].Spans) != maxTraceSpans || all[0].Omitted != 10 || all[0].Spans[maxTraceSpans-1].Depth != maxSpanDepth {
		t.Errorf("%d traces, %d spans, %d omitted", len(all), len(all[0].Spans), all[0].Omitted)
	}
	all = join([]tracedPod{keptBy("s", "p", "", many...)}, time.Now())
	if len(all) != maxTraces || all[0].ID != "many0" {
		t.Errorf("%d traces, the first is %s", len(all), all[0].ID)
	}
	for i := range maxOldFailures + 1 { // older than the others
		failed := spanOf(debugtrace.Call, fmt.Sprint("failed", i), "x", "", ago(time.Duration(maxTraces+10+i)*time.Second), 0, 0)
		failed.Error = "408 Request Timeout"
		many = append(many, failed)
	}
	all = join([]tracedPod{keptBy("s", "p", "", many...)}, time.Now())
	if len(all) != maxTraces+maxOldFailures || all[maxTraces-1].ID != fmt.Sprint("many", maxTraces-1) || all[maxTraces].ID != "failed0" {
		t.Errorf("%d traces; after the latest comes %s", len(all), all[maxTraces].ID)
	}
}

func TestAskedPods(t *testing.T) {
	v := &view{Pod: "web-1", registryState: registryState{Omitted: 5}}
	for _, name := range []string{"aaa", "go-micro-srv", "go-micro-web"} {
		s := service{Name: name}
		for i := range 40 {
			s.Instances = append(s.Instances, instance{Pod: fmt.Sprintf("%s-%d", strings.TrimPrefix(name, "go-micro-"), i), Address: fmt.Sprintf("10.0.0.%d:1", i)})
		}
		v.Services = append(v.Services, s)
	}
	pods, omitted := askedPods(v)
	byService := map[string]int{}
	for _, p := range pods {
		byService[p.Service]++
	}
	if len(pods) != maxTracedPods || omitted != 120-maxTracedPods+5 || pods[0].Pod != "web-1" || byService["aaa"] != 11 || byService["go-micro-srv"] != 11 || byService["go-micro-web"] != 10 {
		t.Errorf("%v, %d omitted; the first is %+v", byService, omitted, pods[0])
	}
	if pods, _ := askedPods(&view{Pod: "outside"}); len(pods) != 1 || pods[0].Pod != "outside" {
		t.Errorf("without registrations %+v is asked", pods)
	}
}

// serveTraced serves the dashboard with a page of traces.
func serveTraced(t *testing.T, tr *traces, instances ...pod.Instance) *httptest.Server {
	t.Helper()
	process.CheckNoLeak(t)
	c := &fakeCluster{instances: instances, changed: make(chan struct{})}
	d := newDashboard(c, c.callsNow, c.startInformer, c, "go-micro-web-1", "go-micro")
	d.hub.linger, d.traces = 50*time.Millisecond, tr
	srv := httptest.NewServer(d.handler())
	t.Cleanup(srv.Close)
	return srv
}

func webInstance(i int) pod.Instance {
	return pod.Instance{Service: "go-micro-web", Pod: fmt.Sprintf("go-micro-web-%d", i), Address: fmt.Sprintf("10.244.1.%d:9200", i), Created: created, State: pod.Ready}
}

// retriedTraces are the traces of a call whose first attempt fails, of this pod; one pod answers nothing, and another one has
// no traces.
func retriedTraces() *traces {
	caller, fails, answers := retried("retried", ago(0))
	return &traces{
		timeout: time.Minute,
		own:     func() ([]debugtrace.Span, error) { return caller, nil },
		other: func(_ context.Context, p tracedPod) ([]debugtrace.Span, error) {
			switch p.Address {
			case "10.244.0.1:9100":
				return fails, nil
			case "10.244.0.2:9100":
				return answers, nil
			case "10.244.0.3:9100":
				return nil, status.Error(codes.PermissionDenied, "Debug.Trace is off: <script>")
			}
			return nil, fmt.Errorf("asking %s", p.Address)
		},
		web: func(_ context.Context, address string) ([]debugtrace.Span, error) {
			return nil, errors.New("no answer of the web pod at <" + address + ">")
		},
	}
}

func TestTracesPage(t *testing.T) {
	srv := serveTraced(t, retriedTraces(), greeterInstance(1, pod.Ready), greeterInstance(2, pod.Ready), greeterInstance(3, pod.Ready), webInstance(1), webInstance(2))
	_, body := get(t, srv.URL+root+"traces.json")
	var l traceList
	if err := json.Unmarshal([]byte(body), &l); err != nil {
		t.Fatal(err)
	}
	problems := map[string]string{}
	for _, p := range l.Pods {
		problems[p.Pod] = fmt.Sprint(p.Spans, " ", p.Problem)
	}
	for name, want := range map[string]string{"go-micro-web-1": "2 ", "go-micro-web-2": "0 no answer", "go-micro-srv-1": "1 ", "go-micro-srv-2": "1 ", "go-micro-srv-3": "0 off: its pod has not POD_DEBUG_TRACE=on"} {
		if problems[name] != want {
			t.Errorf("of pod %s: %q, want %q", name, problems[name], want)
		}
	}
	if len(l.Traces) != 1 || len(l.Traces[0].Spans) != 4 {
		t.Fatalf("the traces are %s", body)
	}
	rsp, body := get(t, srv.URL+root+"traces")
	for _, text := range []string{"1 trace of 3 pods", `<a href="traces?id=retried">` + hello, "go-micro-web → go-micro-srv", "failed attempts: 1", "go-micro-srv-3", "no answer"} {
		if !strings.Contains(body, text) {
			t.Errorf("the page does not contain %q:\n%s", text, body)
		}
	}
	if strings.Contains(body, "<script") || strings.Contains(body, "&lt;10.") || rsp.Header.Get("Content-Security-Policy") == "" {
		t.Error("the page has a script, the text of an error or no policy")
	}
	_, body = get(t, srv.URL+root+"traces?id=retried")
	for _, text := range []string{`data-kind="attempt" class="failed"`, "of <code>go-micro-srv-1</code>", `<rect x="600.0" y="0" width="300.0"`, `class="depth-2"`, "500 Internal Server Error"} {
		if !strings.Contains(body, text) {
			t.Errorf("the page of the trace does not contain %q:\n%s", text, body)
		}
	}
	if _, body = get(t, srv.URL+root+"traces.json?id=retried"); !strings.HasPrefix(body, `{"id":"retried"`) {
		t.Errorf("the trace as JSON is %s", body)
	}
	for _, path := range []string{"traces?id=other", "traces.json?id=other"} {
		if rsp, body := get(t, srv.URL+root+path); rsp.StatusCode != http.StatusNotFound || !strings.Contains(strings.ToLower(body), "no pod keeps this trace") {
			t.Errorf("%s answers %s", path, rsp.Status)
		}
	}
	if _, body = get(t, srv.URL+root); !strings.Contains(body, `<a href="traces">`) {
		t.Error("the page of the registry has no link to the traces")
	}
}

func TestTracesAreOff(t *testing.T) {
	_, _, srv := serve(t, greeterInstance(1, pod.Ready))
	for _, path := range []string{"traces", "traces.json", "spans.json"} {
		if rsp, _ := get(t, srv.URL+root+path); rsp.StatusCode != http.StatusNotFound {
			t.Errorf("%s answers %s without %s", path, rsp.Status, debugtrace.Variable)
		}
	}
	if _, body := get(t, srv.URL+root); strings.Contains(body, "traces") {
		t.Error("the page has a link to traces that are off")
	}
}

// Another pod of this service gives its spans over HTTP.
func TestWebPods(t *testing.T) {
	caller, _, _ := retried("t", ago(0))
	asked := serveTraced(t, &traces{own: func() ([]debugtrace.Span, error) { return caller, nil }}, webInstance(1))
	if got, err := webSpans(t.Context(), asked.Listener.Addr().String()); err != nil || len(got) != 2 || got[0].ID != caller[0].ID || got[0].Address != caller[0].Address || !got[0].Started.Equal(caller[0].Started) {
		t.Errorf("the spans are %+v, %v", got, err)
	}
	_, _, off := serve(t, webInstance(1))
	if _, err := webSpans(t.Context(), off.Listener.Addr().String()); !errors.Is(err, errTracesOff) {
		t.Errorf("a pod without traces: %v", err)
	}
	hostile := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`[{"name":"`))
		for range 1 << 10 {
			_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<10))
		}
		_, _ = w.Write([]byte(`"}]`))
	}))
	defer hostile.Close()
	if _, err := webSpans(t.Context(), hostile.Listener.Addr().String()); err == nil {
		t.Error("1 MiB of a name is accepted")
	}
	elsewhere := httptest.NewServer(http.RedirectHandler(asked.URL+root+"spans.json", http.StatusFound))
	defer elsewhere.Close()
	if _, err := webSpans(t.Context(), elsewhere.Listener.Addr().String()); err == nil {
		t.Error("a pod sends this one elsewhere")
	}
}

// debugServer is a gRPC server whose Debug.Trace answers with as many spans as go-micro keeps, or never.
func debugServer(t *testing.T, spans []*debug.Span, opts ...grpc.ServerOption) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(opts, grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if spans == nil {
			<-stream.Context().Done()
			return nil
		}
		if err := stream.RecvMsg(&debug.TraceRequest{}); err != nil {
			return err
		}
		return stream.SendMsg(&debug.TraceResponse{Spans: spans})
	}))...)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(listener)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-served
	})
	return listener.Addr().String()
}

func TestTracesOfTenPodsInTime(t *testing.T) {
	process.CheckNoLeak(t)
	var instances []pod.Instance
	add := func(spans []*debug.Span) {
		i := greeterInstance(len(instances)+1, pod.Ready)
		i.Address = debugServer(t, spans)
		instances = append(instances, i)
	}
	begin := ago(0)
	for p := range 10 {
		var spans []*debug.Span
		for n := range 256 { // each pod has a span of each trace
			parent := ""
			if p > 0 {
				parent = fmt.Sprintf("span-%d-%d", n, p-1)
			}
			spans = append(spans, &debug.Span{Trace: fmt.Sprintf("trace-of-a-call-with-a-long-id-%06d", n), Id: fmt.Sprintf("span-%d-%d", n, p), Parent: parent, Name: hello,
				Started: uint64(begin.Add(time.Duration(n)*time.Second + time.Duration(p)).UnixNano()), Duration: 1000})
		}
		add(spans)
	}
	// view returns the page and how long it takes. The timeout is not that of New, which a busy machine may exceed.
	view := func(timeout time.Duration) (string, time.Duration) {
		srv := serveTraced(t, &traces{own: func() ([]debugtrace.Span, error) { return nil, nil }, other: newTraces(pod.NewRegistry(kubernetes.NewRegistry)).other, timeout: timeout}, instances...)
		defer srv.Close()
		get(t, srv.URL+root) // the registry is read
		started := time.Now()
		_, body := get(t, srv.URL+root+"traces")
		return body, time.Since(started)
	}
	fastest := time.Hour
	for i := 0; i < 5 || i < 50 && fastest > 300*time.Millisecond; i++ {
		body, took := view(time.Minute)
		fastest = min(fastest, took)
		if strings.Count(body, "<a href=\"traces?id=") != 100 || strings.Contains(body, "no longer kept") {
			t.Fatalf("the page has not 100 complete traces:\n%s", body)
		}
	}
	t.Logf("the page of 10 pods took %s", fastest)
	if fastest > 300*time.Millisecond {
		t.Errorf("the page of 10 pods took %s, want 300 ms at most", fastest)
	}
	add(nil) // which does not answer
	if body, took := view(5 * time.Second); strings.Count(body, "<a href=\"traces?id=") != 100 || !strings.Contains(body, "no answer") || took < 5*time.Second || took > 30*time.Second {
		t.Errorf("with a pod that does not answer the page takes %s:\n%s", took, body)
	}
	if newTraces(pod.NewRegistry(kubernetes.NewRegistry)).timeout != spansTimeout {
		t.Error("the page waits for pods without limit")
	}
}

// identities are credentials of a registry that remember for whom they were.
type identities struct {
	config  *tls.Config
	callees []pod.Callee
}

func (i *identities) Client(to pod.Callee) credentials.TransportCredentials {
	i.callees = append(i.callees, to)
	return credentials.NewTLS(i.config)
}

func (i *identities) Server() []grpc.ServerOption { return nil }

// The page asks services that speak only TLS with the credentials of its registry.
func TestTracesOverTLS(t *testing.T) {
	https := httptest.NewTLSServer(http.NotFoundHandler())
	defer https.Close()
	server := &tls.Config{Certificates: https.TLS.Certificates}
	address := debugServer(t, []*debug.Span{{Trace: "a", Id: "b", Name: hello}}, grpc.Creds(credentials.NewTLS(server)))
	roots := x509.NewCertPool()
	roots.AddCert(https.Certificate())
	secure := &identities{config: &tls.Config{RootCAs: roots, ServerName: "example.com"}}
	r := pod.NewRegistry(kubernetes.NewRegistry, pod.WithCredentials(secure))
	asked := tracedPod{Service: "go-micro-srv", Pod: "go-micro-srv-1", Address: address}
	if spans, err := newTraces(r).other(t.Context(), asked); err != nil || len(spans) != 1 {
		t.Errorf("%d spans, %v", len(spans), err)
	}
	if len(secure.callees) != 1 || secure.callees[0].Service != asked.Service || secure.callees[0].Pod != asked.Pod || secure.callees[0].Address != address {
		t.Errorf("the credentials are for %+v", secure.callees)
	}
	if _, err := newTraces(pod.NewRegistry(kubernetes.NewRegistry)).other(t.Context(), asked); err == nil {
		t.Error("the server also answers in plaintext")
	}
}

// All viewers share the answers of the pods.
func TestViewersShareTheTraces(t *testing.T) {
	asked := make(chan struct{}, 100)
	srv := serveTraced(t, &traces{own: func() ([]debugtrace.Span, error) { asked <- struct{}{}; return nil, nil }}, webInstance(1))
	begin := time.Now()
	for range 20 {
		get(t, srv.URL+root+"traces")
	}
	if n := len(asked); n < 1 || n > 1+int(time.Since(begin)/tracesInterval) {
		t.Errorf("20 viewers asked the pods %d times in %s", n, time.Since(begin))
	}
}
