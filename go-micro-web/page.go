package main

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"iter"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
)

const (
	greeterName = "go-micro-srv"

	pagePath   = "/registry/"
	mostLive   = 1000 // live readers; who comes then is told to come again
	coalesce   = 100 * time.Millisecond
	mostBytes  = 50 << 20         // a second, to all live readers together: with many, events come less often
	beat       = 10 * time.Second // between two signs of life; the script gives a silent stream up after 25 s
	dropAfter  = 5 * time.Second  // who takes nothing for so long is gone
	linger     = 10 * time.Second // after the last reader, so that reloads do not LIST all pods each time
	callLimit  = 5 * time.Second
	mostName   = 64 // characters in the name to greet
	mostText   = 200
	mostInForm = 4 << 10 // bytes
)

//go:embed page.html page.css page.js
var files embed.FS

var pageTemplate = template.Must(template.ParseFS(files, "page.html"))

// page shows the registry as it is, to people, to scripts and live:
//
//	GET  /registry/               HTML, whole without a script too
//	GET  /registry/services.json  the same as JSON
//	GET  /registry/events         the same JSON as server-sent events, one now and one after each change
//	POST /registry/               greets: form field name; the page with the answer, or the answer
//	                              alone as JSON when the header Accept asks for it
//
// All readers share one observation of the registry, each view is encoded once,
// and a reader holds no more than the one it is being sent. Without readers
// nothing runs; but who has greeted once has made the selector follow the Greeter,
// until the process ends. Safe for concurrent use.
type page struct {
	observe func(context.Context) iter.Seq2[[]pod.Node, error]
	greeter proto.GreeterService
	host    string // the own pod
	linger  time.Duration
	live    atomic.Int64 // readers of events

	mu      sync.Mutex
	readers int
	stop    context.CancelFunc // of the observation, nil without one
	current *view
	changed chan struct{} // closed when current is another
}

func newPage(r *pod.Registry) http.Handler {
	c := grpcc.NewClient(client.Registry(r), client.Selector(pod.NewSelector(r)))
	return (&page{observe: r.Observe, greeter: proto.NewGreeterService(greeterName, c), host: os.Getenv("HOSTNAME"), linger: linger}).handler()
}

func (p *page) handler() http.Handler {
	p.changed = make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pagePath+"{$}", p.html)
	mux.HandleFunc("POST "+pagePath+"{$}", p.hello)
	mux.HandleFunc("GET "+pagePath+"services.json", p.json)
	mux.HandleFunc("GET "+pagePath+"events", p.events)
	for _, name := range []string{"page.css", "page.js"} {
		mux.HandleFunc("GET "+pagePath+name, func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, name) })
	}
	own := http.NewCrossOriginProtection().Handler(mux) // another site's form greets nobody
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; "+
			"base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin") // no-referrer makes browsers hide a form's origin, which is checked
		h.Set("Cache-Control", "no-store")
		own.ServeHTTP(w, r)
	})
}

// ---- what is shown ----

// view is the registry at one time. It is never changed.
type view struct {
	Pod      string    `json:"pod"`  // whose view it is
	Time     time.Time `json:"time"` // of its making
	Problem  string    `json:"problem,omitempty"`
	Services []service `json:"services"`

	json   []byte
	Answer *answer `json:"-"` // of the form
	Name   string  `json:"-"` // in the form
}

type service struct {
	Name      string     `json:"name"`
	Endpoints []endpoint `json:"endpoints"`
	Nodes     []node     `json:"nodes"`
}

type endpoint struct {
	Name     string `json:"name"`
	Request  string `json:"request,omitempty"` // as in HelloRequest{name string}
	Response string `json:"response,omitempty"`
}

type node struct {
	Pod     string    `json:"pod"`
	Address string    `json:"address"`
	Version string    `json:"version"`
	State   pod.State `json:"state"`
	Created time.Time `json:"created"`
	Age     string    `json:"-"` // at the time of the view
}

func (p *page) newView(nodes []pod.Node, err error) *view {
	v := &view{Pod: p.host, Time: time.Now().UTC().Truncate(time.Millisecond), Services: []service{}}
	if err != nil { // pod/ has logged it
		v.Problem = "The API server cannot be followed now; this is what it said last. The log of " + cmp.Or(p.host, "this pod") + " says why."
	}
	var last *registry.Endpoint // all nodes of a version share theirs: looked at once
	for _, n := range nodes {
		if len(v.Services) == 0 || v.Services[len(v.Services)-1].Name != clip(n.Service) {
			v.Services = append(v.Services, service{Name: clip(n.Service), Endpoints: []endpoint{}})
			last = nil
		}
		s := &v.Services[len(v.Services)-1]
		s.Nodes = append(s.Nodes, node{clip(n.Pod), clip(n.Address), clip(n.Version), n.State, n.Created.UTC(), age(v.Time.Sub(n.Created))})
		if len(n.Endpoints) == 0 || n.Endpoints[0] == last {
			continue
		}
		last = n.Endpoints[0]
		for _, e := range n.Endpoints {
			if e == nil || len(s.Endpoints) == mostText {
				continue
			}
			if shown := (endpoint{clip(e.Name), clip(signature(e.Request, 3)), clip(signature(e.Response, 3))}); !slices.Contains(s.Endpoints, shown) {
				s.Endpoints = append(s.Endpoints, shown)
			}
		}
	}
	v.json, err = json.Marshal(v)
	if err != nil { // of strings and times: cannot be
		logger.Errorf("Encoding the registry: %v", err)
	}
	return v
}

// clip bounds what others have written into the registry.
func clip(s string) string {
	if utf8.RuneCountInString(s) <= mostText {
		return s
	}
	return string([]rune(s)[:mostText]) + "…"
}

// signature is a message as the annotation has it: its type, and its fields to some depth.
func signature(v *registry.Value, depth int) string {
	if v == nil {
		return ""
	}
	var fields []string
	for _, f := range v.Values {
		switch {
		case f == nil || slices.Contains(plumbing, f.Name+" "+f.Type):
		case depth == 1 || len(f.Values) == 0:
			fields = append(fields, f.Name+" "+f.Type)
		default:
			fields = append(fields, f.Name+" "+signature(f, depth-1))
		}
		if len(fields) == mostText {
			break
		}
	}
	return v.Type + "{" + strings.Join(fields, ", ") + "}"
}

// plumbing is what go-micro finds in the Go code of every protobuf message besides its fields.
var plumbing = []string{"MessageState MessageState", "unknownFields []uint8", "int32 int32"}

// Summary counts services and nodes in words; the script says the same.
func (v *view) Summary() string {
	var all []node
	for _, s := range v.Services {
		all = append(all, s.Nodes...)
	}
	return fmt.Sprintf("%s, %s: %s", count(len(v.Services), "service"), count(len(all), "node"), states(all))
}

// States counts the service's nodes by state.
func (s service) States() string { return states(s.Nodes) }

func states(nodes []node) string {
	n := map[pod.State]int{}
	for _, node := range nodes {
		n[node.State]++
	}
	var all []string
	for _, s := range []pod.State{pod.Ready, pod.NotReady, pod.Stopping, pod.Unheard} {
		if n[s] > 0 {
			all = append(all, fmt.Sprintf("%d %s", n[s], s))
		}
	}
	return cmp.Or(strings.Join(all, ", "), "none")
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// age is a pod's as kubectl shows it, but for minutes with seconds.
func age(d time.Duration) string {
	switch s := int(d.Seconds()); {
	case s < 120:
		return fmt.Sprintf("%ds", max(0, s))
	case s < 2*3600:
		return fmt.Sprintf("%dm", s/60)
	case s < 48*3600:
		return fmt.Sprintf("%dh", s/3600)
	default:
		return fmt.Sprintf("%dd", s/86400)
	}
}

// Empty and EmptyAnswer are what the script makes new sections, rows and answers from.
func (*view) Empty() service { return service{Nodes: []node{{}}} }

func (*view) EmptyAnswer() answer { return answer{} }

// ---- observing, as long as there are readers ----

// join makes the caller a reader until he calls leave.
func (p *page) join() (leave func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readers++
	if p.stop == nil {
		ctx, stop := context.WithCancel(context.Background())
		p.stop = stop
		go p.follow(ctx)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.readers--; p.readers == 0 {
			time.AfterFunc(p.linger, p.rest)
		}
	}
}

// rest ends the observation when nobody reads.
func (p *page) rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readers == 0 && p.stop != nil {
		p.stop()
		p.stop, p.current = nil, nil
	}
}

// follow makes a view of each change; what changes while it rests is one.
func (p *page) follow(ctx context.Context) {
	wait := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	for ; ctx.Err() == nil; wait(time.Second) { // it ends by itself when the registry cannot be used
		for nodes, err := range p.observe(ctx) {
			v := p.newView(nodes, err)
			p.publish(ctx, v)
			wait(max(coalesce, time.Duration(p.live.Load()*int64(len(v.json))*1000/mostBytes)*time.Millisecond))
		}
	}
}

func (p *page) publish(ctx context.Context, v *view) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() == nil { // else another observation may have begun
		p.current = v
		close(p.changed)
		p.changed = make(chan struct{})
	}
}

// now returns the view, nil when there is none yet, and what is closed when there is another.
func (p *page) now() (*view, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current, p.changed
}

// first waits for a view.
func (p *page) first(ctx context.Context) (*view, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*callLimit) // the registry says after one what is wrong
	defer cancel()
	for {
		v, changed := p.now()
		if v != nil {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errors.New("the registry has not been read yet: try again")
		}
	}
}

// ---- the handlers ----

func (p *page) html(w http.ResponseWriter, r *http.Request) { p.render(w, r, http.StatusOK, nil, "") }

// render answers with the page, and in it what the form's sender is to see.
func (p *page) render(w http.ResponseWriter, r *http.Request, code int, a *answer, name string) {
	defer p.join()()
	v, err := p.first(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	shown := *v
	shown.Answer, shown.Name = a, name
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	if err := pageTemplate.Execute(w, &shown); err != nil && r.Context().Err() == nil {
		logger.Errorf("Rendering the page: %v", err)
	}
}

func (p *page) json(w http.ResponseWriter, r *http.Request) {
	defer p.join()()
	v, err := p.first(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(slices.Clip(v.json), '\n'))
}

// events sends what is, and then what has changed, until the reader or this pod goes.
func (p *page) events(w http.ResponseWriter, r *http.Request) {
	defer p.live.Add(-1)
	if p.live.Add(1) > mostLive {
		w.Header().Set("Retry-After", "5")
		http.Error(w, fmt.Sprintf("%d look already: try again", mostLive), http.StatusServiceUnavailable)
		return
	}
	defer p.join()()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Connection", "close") // the next connection finds a pod that stays
	rc := http.NewResponseController(w)
	send := func(parts ...[]byte) bool {
		_ = rc.SetWriteDeadline(time.Now().Add(dropAfter))
		for _, b := range parts {
			if _, err := w.Write(b); err != nil {
				return false
			}
		}
		return rc.Flush() == nil
	}
	alive := time.NewTicker(beat)
	defer alive.Stop()
	var sent *view
	for ok := send([]byte("retry: 1000\n\n")); ok; {
		v, changed := p.now()
		if v != nil && v != sent {
			if ok = send([]byte("data: "), v.json, []byte("\n\n")); !ok {
				return
			}
			sent = v
		}
		select {
		case <-changed:
		case <-alive.C:
			ok = send([]byte("event: beat\ndata:\n\n"))
		case <-pod.Draining(r.Context()):
			_ = rc.SetWriteDeadline(time.Now().Add(dropAfter)) // the last one's may be over: let it end well
			return
		case <-r.Context().Done():
			return
		}
	}
}

// answer is how a greeting went.
type answer struct {
	Greeting string  `json:"greeting,omitempty"`
	Pod      string  `json:"pod,omitempty"` // who answered, or did not
	Address  string  `json:"address,omitempty"`
	Millis   float64 `json:"ms"`
	Problem  string  `json:"problem,omitempty"`
}

func (p *page) hello(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, mostInForm)
	name, a, code := "", answer{}, http.StatusBadRequest
	if err := r.ParseForm(); err != nil {
		a.Problem = "This form cannot be read."
	} else if name = strings.TrimSpace(r.PostForm.Get("name")); name == "" || utf8.RuneCountInString(name) > mostName || !utf8.ValidString(name) {
		name, a.Problem = clip(strings.ToValidUTF8(name, "")), fmt.Sprintf("Write a name of 1 to %d characters.", mostName)
	} else {
		a, code = p.greet(r.Context(), name)
	}
	if !strings.Contains(r.Header.Get("Accept"), "application/json") {
		p.render(w, r, code, &a, name)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(a)
}

// greet calls the Greeter. Who answered is the selector's choice: a wrapper of the
// call sees the node's address, and the view knows whose that is. So the server
// need say nothing of itself, in its proto or in metadata.
func (p *page) greet(ctx context.Context, name string) (answer, int) {
	defer p.join()()
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var tried atomic.Pointer[registry.Node] // the last, where the client has tried another; it may go on when its time is over
	watch := func(call client.CallFunc) client.CallFunc {
		return func(ctx context.Context, n *registry.Node, req client.Request, rsp any, o client.CallOptions) error {
			tried.Store(n)
			return call(ctx, n, req, rsp, o)
		}
	}
	begin := time.Now()
	rsp, err := p.greeter.Hello(ctx, &proto.HelloRequest{Name: name}, client.WithCallWrapper(watch))
	a := answer{Millis: float64(time.Since(begin).Microseconds()) / 1000}
	if n := tried.Load(); n != nil {
		a.Address = n.Address
		if v, err := p.first(ctx); err == nil {
			a.Pod = v.pod(greeterName, n.Address)
		}
	}
	if err == nil {
		a.Greeting = rsp.Greeting
		return a, http.StatusOK
	}
	logger.Warnf("Calling %q on %q: %v", "Greeter.Hello", cmp.Or(a.Address, greeterName), err)
	var e *microerrors.Error
	switch errors.As(err, &e); {
	case e != nil && e.Code == http.StatusRequestTimeout:
		a.Problem = fmt.Sprintf("No answer within %s.", callLimit)
		return a, http.StatusGatewayTimeout
	case a.Address == "":
		a.Problem = fmt.Sprintf("No pod of %s can answer now.", greeterName)
		return a, http.StatusServiceUnavailable
	}
	a.Problem = "The call failed; the log of " + cmp.Or(p.host, "this pod") + " says why."
	return a, http.StatusBadGateway
}

// pod is the name of the youngest at an address, "" when nobody is known there.
func (v *view) pod(service, address string) (name string) {
	for _, s := range v.Services {
		for _, n := range s.Nodes {
			if s.Name == service && n.Address == address {
				name = n.Pod
			}
		}
	}
	return name
}
