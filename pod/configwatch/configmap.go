package configwatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/micro/go-micro/v2/config/source"
	"github.com/micro/go-micro/v2/logger"
	corev1 "k8s.io/api/core/v1"
)

// ConfigMap is one ConfigMap, or one Secret, as a source of go-micro's configuration; the package
// comment says how its values are read. Make it with New or NewSecret. It is safe for concurrent use.
type ConfigMap struct {
	env             apiserver.Environment
	kind            kind
	namespace, name string

	ctx   context.Context // ends with Close
	close context.CancelFunc

	mu       sync.Mutex
	lastRead *source.ChangeSet // last result of Read
	watchers map[*watcher]struct{}
	reloads  int               // changes that readers have received
	invalid  map[string]string // by key, values that cannot be parsed and that the log has reported
}

var _ source.Source = (*ConfigMap)(nil)

// New returns the ConfigMap with that name. An empty namespace stands for the pod's own
// namespace, or outside a pod for the kubeconfig's. New makes no call and starts no
// goroutine.
func New(namespace, name string) *ConfigMap {
	return newConfigMap(apiserver.ProcessEnvironment, namespace, name)
}

// NewSecret is New for a Secret. It needs the same verbs on secrets. The log names keys of a Secret, never values.
func NewSecret(namespace, name string) *ConfigMap {
	return newSource(apiserver.ProcessEnvironment, kindSecret, namespace, name)
}

// kind is the kind of the object that holds the values.
type kind string

const (
	kindConfigMap kind = "ConfigMap"
	kindSecret    kind = "Secret"
)

func newConfigMap(env apiserver.Environment, namespace, name string) *ConfigMap {
	return newSource(env, kindConfigMap, namespace, name)
}

func newSource(env apiserver.Environment, kind kind, namespace, name string) *ConfigMap {
	c := &ConfigMap{env: env, kind: kind, namespace: namespace, name: name, watchers: map[*watcher]struct{}{}, invalid: map[string]string{}}
	c.ctx, c.close = context.WithCancel(context.Background())
	return c
}

// String returns "configmap", as the configmap plugin does, or "secret".
func (c *ConfigMap) String() string { return strings.ToLower(string(c.kind)) }

// Write always returns an error: use kubectl to change a ConfigMap.
func (c *ConfigMap) Write(*source.ChangeSet) error {
	return fmt.Errorf("writing %s %q: not supported; change it with kubectl", c.kind, path.Join(c.namespace, c.name))
}

// Read gets the ConfigMap from the API server, which has 5 s to answer. The error wraps
// the API server's error. go-micro's own configuration, for which Read and Watch are, reads numbers as
// float64: an integer beyond 2^53 is given as a string. Read needs the verb get on configmaps.
func (c *ConfigMap) Read() (*source.ChangeSet, error) {
	set, err := c.read(context.Background(), false)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastRead = set
	return set, nil
}

func (c *ConfigMap) read(ctx context.Context, exact bool) (*source.ChangeSet, error) {
	a, err := c.connect()
	if err != nil {
		return nil, err
	}
	defer a.Close()
	return c.get(ctx, a, exact)
}

// Watch returns a watcher whose Next returns the content when it differs from the
// result of the last Read. If Read was never called, Watch itself reads the content first.
// Until Stop the watcher holds one goroutine and one connection. Watch needs the verbs
// list and watch on configmaps, and get if Read was never called.
func (c *ConfigMap) Watch() (source.Watcher, error) {
	a, err := c.connect()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	last := c.lastRead
	c.mu.Unlock()
	if last == nil {
		if last, err = c.get(context.Background(), a, false); err != nil {
			a.Close()
			return nil, err
		}
	}
	return c.watch(context.Background(), a, last, false, make(chan struct{}, 1)), nil
}

// Status is what a collector of metrics reads of a ConfigMap; see package metrics.
type Status struct {
	Name        string
	Reloads     int       // changes that Follow and the watchers of Watch have delivered
	LastContact time.Time // when the API server last sent anything to one of them; zero while there is none
}

// Status returns the current status. It makes no call.
func (c *ConfigMap) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Name: c.name, Reloads: c.reloads}
	for w := range c.watchers {
		if t := w.connection.LastContact(); t.After(s.LastContact) {
			s.LastContact = t
		}
	}
	return s
}

func (c *ConfigMap) reloaded() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reloads++
}

// Close stops every watcher and ends every Follow, without an error. Closing twice is
// no error.
func (c *ConfigMap) Close() error {
	c.close()
	c.mu.Lock()
	watchers := maps.Clone(c.watchers)
	c.mu.Unlock()
	for w := range watchers {
		_ = w.Stop()
	}
	return nil
}

// connect makes a connection for one Read, Watch or Follow, which closes it.
func (c *ConfigMap) connect() (*apiserver.Connection, error) {
	if c.ctx.Err() != nil {
		return nil, fmt.Errorf("reading %s %q: it is closed", c.kind, path.Join(c.namespace, c.name))
	}
	a, err := apiserver.Connect(c.env, apiserver.Options{Namespace: c.namespace})
	if err != nil {
		return nil, fmt.Errorf("reading %s %q: %w", c.kind, path.Join(c.namespace, c.name), err)
	}
	return a, nil
}

func (c *ConfigMap) get(ctx context.Context, a *apiserver.Connection, exact bool) (*source.ChangeSet, error) {
	var data map[string]string
	var err error
	if c.kind == kindSecret {
		var s *corev1.Secret
		s, err = a.GetSecret(ctx, c.name)
		data = texts(s)
	} else {
		var m *corev1.ConfigMap
		m, err = a.GetConfigMap(ctx, c.name)
		data = m.Data
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s %q: %w", c.kind, path.Join(a.Namespace, c.name), err)
	}
	return c.changeSet(data, exact), nil
}

// texts returns the values of a Secret as those of a ConfigMap, without binary ones.
func texts(s *corev1.Secret) map[string]string {
	data := map[string]string{}
	for k, v := range s.Data {
		if utf8.Valid(v) {
			data[k] = string(v)
		}
	}
	return data
}

// changeSet converts the data of a ConfigMap to go-micro's form, for Follow with exact
// integers. It accepts any data and never panics.
func (c *ConfigMap) changeSet(data map[string]string, exact bool) *source.ChangeSet {
	values := map[string]any{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, v := range data {
		parsed, err := parse(k, v)
		if err == nil && !exact {
			parsed, err = mapNumbers(parsed, exactAsText)
		}
		if err == nil {
			values[k] = parsed
			delete(c.invalid, k)
			continue
		}
		if c.kind == kindSecret {
			err = errors.New("it cannot be parsed") // the error may quote the value
		}
		if c.invalid[k] != v {
			logger.Warnf("Config [configmap] Reading key %q of %s %q as text: %v", k, c.kind, c.name, err)
		}
		values[k], c.invalid[k] = v, v
	}
	b, _ := json.Marshal(values) // cannot fail: values holds strings and trees that parse has decoded from JSON
	set := &source.ChangeSet{Data: b, Format: "json", Source: c.String(), Timestamp: time.Now()}
	set.Checksum = set.Sum()
	return set
}
