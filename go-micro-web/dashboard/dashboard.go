// Package dashboard serves the live page of the registry: every service, its
// endpoints and its instances in every state. Mount it at /registry/:
//
//	service.Handle("/registry/", dashboard.New(registry))
//
// It answers
//
//	GET  /registry/               the page; it is complete without JavaScript
//	GET  /registry/services.json  the services and their instances as JSON
//	GET  /registry/changes.json   the last 50 changes, latest first
//	GET  /registry/calls.json     the numbers of the calls that somebody keeps making with this pod
//	GET  /registry/events         server-sent events: services.json at once and after each change, and
//	                              "changes" events with the changes since the last one
//	POST /registry/events         the same, and calls Greeter.Hello as often each second as the form field
//	                              "rate" says, until the stream ends; "calls" events have their numbers
//	GET  /registry/traces         the last traces as a page, with id=ID one of them; traces.json is the
//	                              same as JSON, and spans.json are the spans that this pod keeps; only
//	                              with POD_DEBUG_TRACE=on
//	POST /registry/               calls Greeter.Hello with the form field "name"; the answer is the page,
//	                              or JSON if the Accept header contains application/json
//
// Later versions may add keys to the JSON, and do not rename or remove any.
//
// The hub observes the registry while the page has viewers. It builds a view after
// each change and encodes the view once for all viewers. A handler of each viewer
// writes the latest view.
//
// # Hosts
//
// The dashboard answers requests whose Host header is an IP address, localhost, a name of
// the Service go-micro-web in the namespace of the pod, or one of the names that
// the environment variable DASHBOARD_HOSTS lists, separated by commas: list the
// host of an Ingress, and the host of the API server if it is a name and the page is
// viewed through its proxy. The answer to all other requests is 421 Misdirected Request.
//
// # Limits
//
// A pod serves at most 1,000 event streams, 100 of them to one client address. A page
// whose stream is refused polls services.json every 10 s. A view has at most 5,000 instances,
// 1,000 of a service and 32 of a pod, and says how many it omits. A viewer has 5 s
// to receive an event or to send the form, and 30 s to receive the page.
//
// A pod makes at most 50 calls a second for all viewers together: the highest rate that a
// viewer has chosen. The calls are counted by try: the numbers of an instance include failed
// tries that another instance then answered, and the numbers of the calls do not. The calls
// end with the last stream that asked for them, and each of these streams ends after
// 5 minutes, so that a viewer whose machine vanished does not cause calls forever; the page
// connects again.
//
// # Changes
//
// A pod sees changes while it has viewers, and for 10 s after them. The time of a change is
// when the pod saw it; the page adds the date if that was not today, in UTC. Ejections are those by this pod; other pods may judge otherwise. At
// most 10 of the 50 changes are of the same pod. The page names the kind of the error that
// caused an ejection; only the log has its text.
//
// # Traces
//
// The page of traces joins the spans that the pods of the registry keep (package debugtrace). A pod asks 32
// instances for 1 s, one of each service first, at most once a second for all viewers, and takes at most 256 spans
// and 256 KiB from each. A trace appears when it is a second old, or complete, and shows 200 spans. After the last 100 traces the page lists 20 older ones with failures.
//
// There is no authentication: everybody who reaches the port sees the registry.
package dashboard

import (
	"cmp"
	"context"
	"embed"
	"html/template"
	"net/http"
	"os"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/debugtrace"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
)

// root is the path that the handler is mounted at.
const root = "/registry/"

//go:embed assets
var assets embed.FS

// scripts run in this order.
var scripts = []string{"page.js", "changes.js", "calls.js", "stream.js"}

var pageTemplate = template.Must(template.ParseFS(assets, "assets/page.html"))

// dashboard answers the requests. It is safe for concurrent use.
type dashboard struct {
	hub       *hub
	traffic   *traffic
	traces    *traces // nil if they are off
	shared    sharedStatistics
	greeter   proto.GreeterService
	podName   string // the pod that serves the page
	namespace string // of the pod; "" if unknown

	formTimeout time.Duration // to receive the form
	pageTimeout time.Duration // to send the page or JSON
	maxCalling  time.Duration // of a stream that calls
	heartbeat   time.Duration
}

// New returns the handler of all paths below /registry/. It adds callbacks to the registry's
// Events, so call it before the registry is used. It observes the registry
// only while somebody views the page. The first viewer starts an informer of
// go-micro-srv too, which runs until the registry is closed. With it a greeting
// finds the instances that the page shows, even when the API server does not answer.
func New(registry *pod.Registry) http.Handler {
	podName := ownPodName()
	c := pod.NewClient(registry, grpcc.NewClient())
	startInformer := func() { _, _ = registry.GetService(greeterName) } // package pod logs the error and retries
	d := newDashboard(registry, func() map[callTarget]targetCalls { return callsOf(c.Instances(greeterName)) }, startInformer, proto.NewGreeterService(greeterName, debugtrace.Client(serviceName, c)), podName, ownNamespace())
	if debugtrace.On() {
		d.traces = newTraces(registry)
	}
	_ = registry.Init(pod.WithEvents(d.hub.changes.events()), pod.WithEvents(d.traffic.events())) // Init of a registry returns no error
	return d.handler()
}

// ownPodName returns the name of the pod. Under hostNetwork HOSTNAME is the name of the Kubernetes node.
func ownPodName() string { return cmp.Or(os.Getenv("POD_NAME"), os.Getenv("HOSTNAME")) }

func newDashboard(s source, currentCalls func() map[callTarget]targetCalls, onStart func(), greeter proto.GreeterService, podName, namespace string) *dashboard {
	d := &dashboard{hub: newHub(s, currentCalls, onStart, podName, namespace), greeter: greeter, podName: podName, namespace: namespace,
		formTimeout: 5 * time.Second, pageTimeout: 30 * time.Second, maxCalling: maxCalling, heartbeat: heartbeat}
	// With the first view the pods at the addresses are known; without one the calls begin after 10 s.
	d.traffic = newTraffic(func(ctx context.Context) { _, _ = d.hub.wait(ctx) }, d.callRepeatedly)
	return d
}

// callsOf returns the calls in flight to each instance, its ejection and its certificate.
func callsOf(instances []pod.InstanceCalls) map[callTarget]targetCalls {
	byTarget := map[callTarget]targetCalls{}
	for _, i := range instances {
		target := targetCalls{InFlight: i.InFlight}
		if i.EjectedFor > 0 {
			target.EjectedUntil = time.Now().Add(i.EjectedFor).UTC().Round(time.Second)
		}
		if c := i.Certificate; c != nil {
			target.Certificate = certificate{clip(c.Issuer.CommonName), c.NotAfter.UTC()}
			if c.Issuer.CommonName == "" {
				target.Certificate.Signer = clip(c.Issuer.String())
			}
		}
		byTarget[callTarget{i.Pod, i.Address}] = target
	}
	return byTarget
}

func (d *dashboard) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+root+"{$}", d.servePage)
	mux.HandleFunc("POST "+root+"{$}", d.serveGreeting)
	mux.HandleFunc("GET "+root+"services.json", d.serveView(func(v *view) [][]byte { return v.encode(d.hub.times()) }))
	mux.HandleFunc("GET "+root+"changes.json", d.serveView(func(v *view) [][]byte { return [][]byte{v.recent.encode(0)} }))
	mux.HandleFunc("GET "+root+"calls.json", d.serveView(func(*view) [][]byte { return [][]byte{d.statistics()} }))
	mux.HandleFunc("GET "+root+"events", d.serveEvents)
	mux.HandleFunc("POST "+root+"events", d.serveCalling)
	if d.traces != nil {
		mux.HandleFunc("GET "+root+"traces", d.serveTraces)
		mux.HandleFunc("GET "+root+"traces.json", d.serveTracesJSON)
		mux.HandleFunc("GET "+root+"spans.json", d.serveSpans)
	}
	for _, name := range append([]string{"page.css"}, scripts...) {
		mux.HandleFunc("GET "+root+name, func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, assets, "assets/"+name) })
	}
	return secure(checkHost(d.namespace, mux))
}

// secure sets the security headers and refuses forms that other web sites send.
func secure(next http.Handler) http.Handler {
	sameOrigin := http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; "+
			"base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'")
		h.Set("X-Content-Type-Options", "nosniff")
		// With no-referrer, browsers send the page's own form with "Origin: null", which is refused.
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		sameOrigin.ServeHTTP(w, r)
	})
}
