package dashboard

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
)

// Other pods write the data that the page shows, so the size of a view is limited. The
// page says how many instances it omits.
const (
	maxText           = 200  // characters of a text
	maxEndpoints      = 200  // endpoints of a service
	maxFields         = 200  // fields of a message
	maxPodRows        = 32   // instances of a pod, in all services
	maxServiceRows    = 1000 // instances of a service
	maxRows           = 5000 // instances
	maxMessageNesting = 3
	maxVersions       = 4  // versions of a service that its heading names
	maxOpenRows       = 20 // instances on the page up to which all of them are shown at first
)

// times are those of an answer, not of the view, which may be hours old if nothing has changed.
// They tell a viewer how old the view can be.
type times struct {
	Time        time.Time  `json:"time"`                  // of the clock of the pod that serves the page
	LastContact *time.Time `json:"lastContact,omitempty"` // when the API server last sent anything; absent before the first time
}

// now returns the time to the millisecond, which is all that the page needs.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// milliseconds truncates a time; the zero time becomes nil.
func milliseconds(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Truncate(time.Millisecond)
	return &t
}

// view is the state of the registry that the page shows at one time. It is immutable.
type view struct {
	Pod       string `json:"pod"`                 // the pod that serves the page
	Namespace string `json:"namespace,omitempty"` // of all pods; absent if it is not known
	registryState

	zone   string                     // of the pod; "" if it is not known
	json   []byte                     // the registryState, encoded once for all viewers
	calls  map[callTarget]targetCalls // of this pod, as the instances show them
	recent recentChanges
}

// registryState is what changes of a view, and most of its size.
type registryState struct {
	Problem  string    `json:"problem,omitempty"` // why the view may be out of date
	Services []service `json:"services"`
	Omitted  int       `json:"omitted,omitempty"` // instances, in all services
}

// encode returns the view as JSON, in two parts, because a copy for each viewer would cost memory.
func (v *view) encode(t times) [][]byte {
	b, err := json.Marshal(struct {
		Pod       string `json:"pod"`
		Namespace string `json:"namespace,omitempty"`
		times
	}{v.Pod, v.Namespace, t})
	if err != nil { // impossible for strings and times
		logger.Errorf("Encoding the registry: %v", err)
	}
	return [][]byte{append(bytes.TrimSuffix(b, []byte("}")), ','), bytes.TrimPrefix(v.json, []byte("{"))}
}

type service struct {
	Name      string            `json:"name"`
	States    map[pod.State]int `json:"states"`   // number of instances by state
	Versions  map[string]int    `json:"versions"` // number of instances by version
	Endpoints []endpoint        `json:"endpoints"`
	Instances []instance        `json:"instances"`
	Omitted   int               `json:"omitted,omitempty"` // instances

	described map[*registry.Endpoint]bool // contains the first endpoint of each version whose endpoints are already listed
}

type endpoint struct {
	Name     string `json:"name"`
	Request  string `json:"request,omitempty"` // as in HelloRequest{name string}
	Response string `json:"response,omitempty"`
}

type instance struct {
	Pod     string       `json:"pod"`
	Address string       `json:"address"`
	Version string       `json:"version"`
	Zone    string       `json:"zone,omitempty"` // absent if it is not known
	State   pod.State    `json:"state"`
	Reason  string       `json:"reason,omitempty"` // why the instance cannot receive calls; absent if it is not known
	Created time.Time    `json:"created"`
	Age     string       `json:"-"`               // when the page is rendered; the script computes it itself
	Calls   *targetCalls `json:"calls,omitempty"` // absent if the pod that serves the page does not call the service
}

// targetCalls describes the calls to an instance by the pod that serves the page.
type targetCalls struct {
	InFlight     int       `json:"inFlight"`
	EjectedUntil time.Time `json:"ejectedUntil,omitzero"` // to the second; absent if the instance is not ejected

	Certificate certificate `json:"certificate,omitzero"` // of the instance; absent if the pod has no connection to it with mutual TLS
}

// certificate is that of an instance, as the pod that serves the page has verified it.
type certificate struct {
	Signer   string    `json:"signer"`
	NotAfter time.Time `json:"notAfter"`
}

// callTarget is an instance of go-micro-srv, the only service that the page calls.
type callTarget struct{ pod, address string }

// clipped returns the target as the view shows it.
func (t callTarget) clipped() callTarget { return callTarget{clip(t.pod), clip(t.address)} }

// Text describes the ejection, or else the calls in flight. The script writes the same text.
func (c *targetCalls) Text() string {
	switch {
	case c == nil:
		return ""
	case !c.EjectedUntil.IsZero():
		return "ejected until " + clock(c.EjectedUntil, now()) + " UTC"
	case c.InFlight > 0:
		return count(c.InFlight, "call") + " in flight"
	}
	return ""
}

// Encryption says who has signed the certificate of the instance, and until when it is valid; "" without one. The script writes the
// same text.
func (c *targetCalls) Encryption() string {
	if c == nil || c.Certificate == (certificate{}) {
		return ""
	}
	return "encrypted, certificate of " + c.Certificate.Signer + " until " + clock(c.Certificate.NotAfter, now()) + " UTC"
}

// ZoneText names the zone of the instance, "" if it is not known. The script writes the same text.
func (i instance) ZoneText() string {
	if i.Zone == "" {
		return ""
	}
	return "zone " + i.Zone
}

// newView builds a view from an element of pod.Registry.Observe: instances sorted
// by service, and the error that says why they may be out of date. byTarget has the
// calls of this pod. The cost is linear in the number of instances.
func newView(podName, namespace string, instances []pod.Instance, err error, byTarget map[callTarget]targetCalls) *view {
	v := &view{Pod: podName, Namespace: namespace, registryState: registryState{Services: []service{}}, calls: byTarget}
	if err != nil { // package pod has logged the error
		v.Problem = "The registry cannot be read; the page shows its last known state. The log of " + cmp.Or(podName, "this pod") + " says why."
	}
	rows, podRows := 0, map[string]int{}
	for _, i := range instances {
		if i.Pod == podName {
			v.zone = clip(i.Zone)
		}
		if podRows[i.Pod] == maxPodRows || rows == maxRows {
			v.Omitted++
			if n := len(v.Services); n > 0 && v.Services[n-1].Name == clip(i.Service) {
				v.Services[n-1].Omitted++
			}
			continue
		}
		if len(v.Services) == 0 || v.Services[len(v.Services)-1].Name != clip(i.Service) {
			v.Services = append(v.Services, service{Name: clip(i.Service), States: map[pod.State]int{}, Versions: map[string]int{},
				Endpoints: []endpoint{}, described: map[*registry.Endpoint]bool{}})
		}
		s := &v.Services[len(v.Services)-1]
		if len(s.Instances) == maxServiceRows {
			v.Omitted++
			s.Omitted++
			continue
		}
		rows++
		podRows[i.Pod]++
		shown := instance{Pod: clip(i.Pod), Address: clip(i.Address), Version: clip(i.Version), Zone: clip(i.Zone), State: i.State, Reason: clip(i.Reason), Created: i.Created.UTC()}
		if c, ok := byTarget[callTarget{i.Pod, i.Address}]; ok && i.Service == greeterName {
			shown.Calls = &c
		}
		s.Instances = append(s.Instances, shown)
		s.States[shown.State]++
		s.Versions[shown.Version]++
		s.addEndpoints(i.Endpoints)
	}
	v.json, err = json.Marshal(v.registryState)
	if err != nil { // impossible for strings and times
		logger.Errorf("Encoding the registry: %v", err)
	}
	return v
}

// addEndpoints adds the endpoints that the service does not have yet. The instances
// of a version share their endpoints, which are described once.
func (s *service) addEndpoints(endpoints []*registry.Endpoint) {
	if len(endpoints) == 0 || s.described[endpoints[0]] {
		return
	}
	s.described[endpoints[0]] = true
	for _, e := range endpoints {
		if len(s.Endpoints) == maxEndpoints {
			return
		}
		if e == nil {
			continue
		}
		described := endpoint{clip(e.Name), clip(signature(e.Request, maxMessageNesting)), clip(signature(e.Response, maxMessageNesting))}
		if !slices.Contains(s.Endpoints, described) {
			s.Endpoints = append(s.Endpoints, described)
		}
	}
}

// clip returns the part of a text by another pod or a viewer that the page shows: at
// most maxText characters. It replaces invisible characters by U+FFFD.
func clip(s string) string {
	if len(s) <= maxText && !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || invisible(r) }) {
		return s
	}
	var b strings.Builder
	length := 0
	for _, r := range s { // an invalid byte becomes U+FFFD
		if length++; length > maxText {
			b.WriteString("…")
			break
		}
		if invisible(r) {
			r = utf8.RuneError
		}
		b.WriteRune(r)
	}
	return b.String()
}

// invisible reports whether a character is not a space and has no glyph of its own:
// control characters, directional overrides, joiners, fillers.
func invisible(r rune) bool {
	return !unicode.IsGraphic(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// signature describes a message by its type and its fields, nested to a depth.
func signature(v *registry.Value, depth int) string {
	if v == nil {
		return ""
	}
	var fields []string
	for _, f := range v.Values {
		switch {
		case f == nil || slices.Contains(protobufInternals, f.Name+" "+f.Type):
		case depth == 1 || len(f.Values) == 0:
			fields = append(fields, f.Name+" "+f.Type)
		default:
			fields = append(fields, f.Name+" "+signature(f, depth-1))
		}
		if len(fields) == maxFields {
			break
		}
	}
	return v.Type + "{" + strings.Join(fields, ", ") + "}"
}

// protobufInternals are the unexported Go fields of a generated message, which
// go-micro registers beside the fields of the proto file.
var protobufInternals = []string{"MessageState MessageState", "unknownFields []uint8", "int32 int32"}

// podAt returns the name of the youngest pod of a service at an address, or "" if
// the view has none.
func (v *view) podAt(serviceName, address string) (name string) {
	for _, s := range v.Services {
		for _, i := range s.Instances {
			if s.Name == serviceName && i.Address == address {
				name = i.Pod
			}
		}
	}
	return name
}

// greeters returns the instances of go-micro-srv.
func (v *view) greeters() []instance {
	for _, s := range v.Services {
		if s.Name == greeterName {
			return s.Instances
		}
	}
	return nil
}

// Summary counts services and instances. The script writes the same text.
func (v *view) Summary() string {
	all, n := map[pod.State]int{}, 0
	for _, s := range v.Services {
		n += len(s.Instances)
		for state, instances := range s.States {
			all[state] += instances
		}
	}
	return fmt.Sprintf("%s, %s: %s", count(len(v.Services), "service"), count(n, "instance"), countStates(all)) + omitted(v.Omitted)
}

// StateText counts the instances of the service by state.
func (s service) StateText() string { return countStates(s.States) + omitted(s.Omitted) }

// VersionText counts the instances of the service by version, the most frequent first. The
// script writes the same text.
func (s service) VersionText() string {
	versions := slices.SortedFunc(maps.Keys(s.Versions), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.Versions[b], s.Versions[a]), cmp.Compare(a, b))
	})
	var all []string
	for i, v := range versions {
		if i == maxVersions {
			all = append(all, count(len(versions)-i, "more version"))
			break
		}
		all = append(all, fmt.Sprintf("%d %s", s.Versions[v], cmp.Or(v, "without version")))
	}
	return strings.Join(all, ", ")
}

// Unhealthy counts the instances that should be able to receive calls and cannot.
func (s service) Unhealthy() int { return s.States[pod.NotReady] + s.States[pod.NodeUnreachable] }

func countStates(counts map[pod.State]int) string {
	var all []string
	for _, state := range []pod.State{pod.Ready, pod.NotReady, pod.Terminating, pod.NodeUnreachable} {
		if n := counts[state]; n > 0 {
			all = append(all, fmt.Sprintf("%d %s", n, state))
		}
	}
	return cmp.Or(strings.Join(all, ", "), "none")
}

func omitted(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("; %d more not shown", n)
}

func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// age formats the age of a pod in one unit: seconds, minutes, hours or days.
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

// clock formats a time in UTC, with its date unless that is the date of now. The script does the same.
func clock(t, now time.Time) string {
	if t = t.UTC(); t.Format(time.DateOnly) == now.UTC().Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}

// page is the data of the template: a view, the times of the answer, and the answer to the form if the
// form was sent.
type page struct {
	*view
	times
	Answer    *answer
	Name      string // the form field
	HasTraces bool   // there is a page of traces
}

// Sorted returns the services and their instances in the order of the page: unhealthy ones
// first, and the others by zone. The script sorts in the same way.
func (p page) Sorted() []service {
	services := slices.Clone(p.Services)
	rank := map[pod.State]int{pod.NotReady: 0, pod.NodeUnreachable: 0, pod.Terminating: 1, pod.Ready: 2}
	for i := range services {
		services[i].Instances = slices.Clone(services[i].Instances)
		for n := range services[i].Instances {
			services[i].Instances[n].Age = age(p.Time.Sub(services[i].Instances[n].Created))
		}
		slices.SortStableFunc(services[i].Instances, func(a, b instance) int {
			return cmp.Or(rank[a.State]-rank[b.State], cmp.Compare(a.Zone, b.Zone))
		})
	}
	slices.SortStableFunc(services, func(a, b service) int { return min(b.Unhealthy(), 1) - min(a.Unhealthy(), 1) })
	return services
}

// Open reports whether the page shows the instances before somebody asks for them.
func (p page) Open() bool {
	n := 0
	for _, s := range p.Services {
		n += len(s.Instances)
	}
	return n <= maxOpenRows
}

// shownChange is a change as the page shows it.
type shownChange struct {
	change
	At string
}

// Changes returns the recent changes, latest first.
func (p page) Changes() (all []shownChange) {
	for _, c := range p.recent.after(0) {
		all = append(all, shownChange{c, p.Clock(c.Time)})
	}
	return all
}

func (p page) ChangesSince() string { return p.Clock(p.recent.Since) }

// Clock formats a time as a viewer of this answer reads it.
func (p page) Clock(t time.Time) string { return clock(t, p.Time) }

// Scripts are the scripts of the page, in the order in which they run.
func (page) Scripts() []string { return scripts }

func (page) EmptyChange() shownChange { return shownChange{} }

func (page) MaxCallRate() int { return maxCallRate }

// EmptyService and EmptyAnswer fill the templates that the script clones.
func (page) EmptyService() service { return service{Instances: []instance{{}}} }

func (page) EmptyAnswer() answer { return answer{} }

// NamePattern and NameHint make the browser accept the names that the server accepts.
func (page) NamePattern() string { return namePattern }

func (page) NameHint() string { return fmt.Sprintf("1 to %d visible characters", maxName) }
