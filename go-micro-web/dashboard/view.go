package dashboard

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
)

// maxText bounds each text of the registry in characters, the endpoints of a
// service and the fields of a message: other pods write them.
const maxText = 200

// view is what the page shows of the registry at one time. It is immutable.
type view struct {
	Pod      string    `json:"pod"`               // the pod that serves the page
	Time     time.Time `json:"time"`              // when the view was built
	Problem  string    `json:"problem,omitempty"` // why the view may be out of date
	Services []service `json:"services"`

	json []byte // the fields above, encoded once for all viewers
}

type service struct {
	Name      string     `json:"name"`
	Endpoints []endpoint `json:"endpoints"`
	Instances []instance `json:"instances"`
}

type endpoint struct {
	Name     string `json:"name"`
	Request  string `json:"request,omitempty"` // as in HelloRequest{name string}
	Response string `json:"response,omitempty"`
}

type instance struct {
	Pod     string    `json:"pod"`
	Address string    `json:"address"`
	Version string    `json:"version"`
	State   pod.State `json:"state"`
	Created time.Time `json:"created"`
	Age     string    `json:"-"` // when the view was built
}

// newView builds a view from an element of pod.Registry.Observe: instances sorted
// by service, and the error that says why they may be out of date.
func newView(podName string, instances []pod.Instance, err error) *view {
	v := &view{Pod: podName, Time: time.Now().UTC().Truncate(time.Millisecond), Services: []service{}}
	if err != nil { // package pod has logged the error
		v.Problem = "The registry cannot be read; the page shows its last known state. The log of " + cmp.Or(podName, "this pod") + " says why."
	}
	var previous *registry.Endpoint // the instances of a version share their endpoints: describe them once
	for _, i := range instances {
		if len(v.Services) == 0 || v.Services[len(v.Services)-1].Name != clip(i.Service) {
			v.Services = append(v.Services, service{Name: clip(i.Service), Endpoints: []endpoint{}})
			previous = nil
		}
		s := &v.Services[len(v.Services)-1]
		s.Instances = append(s.Instances, instance{clip(i.Pod), clip(i.Address), clip(i.Version), i.State, i.Created.UTC(), age(v.Time.Sub(i.Created))})
		if len(i.Endpoints) == 0 || i.Endpoints[0] == previous {
			continue
		}
		previous = i.Endpoints[0]
		s.addEndpoints(i.Endpoints)
	}
	v.json, err = json.Marshal(v)
	if err != nil { // impossible for strings and times
		logger.Errorf("Encoding the registry: %v", err)
	}
	return v
}

// addEndpoints adds the endpoints that the service does not have yet.
func (s *service) addEndpoints(endpoints []*registry.Endpoint) {
	for _, e := range endpoints {
		if e == nil || len(s.Endpoints) == maxText {
			continue
		}
		described := endpoint{clip(e.Name), clip(signature(e.Request, 3)), clip(signature(e.Response, 3))}
		if !slices.Contains(s.Endpoints, described) {
			s.Endpoints = append(s.Endpoints, described)
		}
	}
}

// clip makes a text that another pod or a viewer wrote fit to be shown: at most
// maxText characters, each of them visible.
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

// invisible reports whether a character has no glyph of its own, spaces apart:
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
		if len(fields) == maxText {
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

// Summary counts services and instances. The script writes the same text.
func (v *view) Summary() string {
	var all []instance
	for _, s := range v.Services {
		all = append(all, s.Instances...)
	}
	return fmt.Sprintf("%s, %s: %s", count(len(v.Services), "service"), count(len(all), "instance"), countStates(all))
}

// States counts the instances of the service by state.
func (s service) States() string { return countStates(s.Instances) }

func countStates(instances []instance) string {
	counts := map[pod.State]int{}
	for _, i := range instances {
		counts[i.State]++
	}
	var all []string
	for _, state := range []pod.State{pod.Ready, pod.NotReady, pod.Terminating, pod.NodeUnreachable} {
		if n := counts[state]; n > 0 {
			all = append(all, fmt.Sprintf("%d %s", n, state))
		}
	}
	return cmp.Or(strings.Join(all, ", "), "none")
}

func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// age formats the age of a pod in its largest unit; below two minutes that is seconds.
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

// page is what the template renders: a view, and the answer to the form if the
// form was sent.
type page struct {
	*view
	Answer *answer
	Name   string // the form field
}

// EmptyService and EmptyAnswer fill the templates that the script clones.
func (page) EmptyService() service { return service{Instances: []instance{{}}} }

func (page) EmptyAnswer() answer { return answer{} }

// NamePattern and NameHint make the browser accept the names that the server accepts.
func (page) NamePattern() string { return namePattern }

func (page) NameHint() string { return fmt.Sprintf("1 to %d visible characters", maxName) }
