package configwatch

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"path"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/micro/go-micro/v2/config"
	"github.com/micro/go-micro/v2/config/source"
	"github.com/micro/go-micro/v2/logger"
	"sigs.k8s.io/yaml"
)

// ConfigMap is one ConfigMap as a source of go-micro's configuration; the package
// comment says how its values are read. Make it with New. It is safe for concurrent use.
type ConfigMap struct {
	env             apiserver.Environment
	namespace, name string

	mu       sync.Mutex
	closed   bool
	lastRead *source.ChangeSet // last result of Read
	watchers map[*watcher]struct{}
	invalid  map[string]string // by key, values that cannot be parsed and that the log has reported
}

var _ source.Source = (*ConfigMap)(nil)

// New returns the ConfigMap with that name. An empty namespace stands for the pod's own
// namespace, or outside a pod for the kubeconfig's. New makes no call and starts no
// goroutine.
func New(namespace, name string) *ConfigMap {
	return newConfigMap(apiserver.ProcessEnvironment, namespace, name)
}

func newConfigMap(env apiserver.Environment, namespace, name string) *ConfigMap {
	return &ConfigMap{env: env, namespace: namespace, name: name, watchers: map[*watcher]struct{}{}, invalid: map[string]string{}}
}

// String returns "configmap", as the configmap plugin does.
func (c *ConfigMap) String() string { return "configmap" }

// Write always returns an error: use kubectl to change a ConfigMap.
func (c *ConfigMap) Write(*source.ChangeSet) error {
	return fmt.Errorf("writing ConfigMap %q: not supported; change it with kubectl", path.Join(c.namespace, c.name))
}

// Read gets the ConfigMap from the API server, which has 5 s to answer. The error wraps
// the API server's error. Read needs the verb get on configmaps.
func (c *ConfigMap) Read() (*source.ChangeSet, error) {
	a, err := c.connect()
	if err != nil {
		return nil, err
	}
	defer a.Close()
	set, err := c.get(context.Background(), a)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastRead = set
	return set, nil
}

// Watch returns a watcher whose Next returns the content when it differs from the
// result of the last Read. If Read was never called, Watch itself reads the content first.
// Until Stop the watcher holds one goroutine and one connection. Watch needs the verbs
// list and watch on configmaps, and get if Read was never called.
func (c *ConfigMap) Watch() (source.Watcher, error) {
	c.mu.Lock()
	last := c.lastRead
	c.mu.Unlock()
	w, err := c.watch(context.Background(), last)
	if err != nil {
		return nil, err // not w, since a nil *watcher makes a source.Watcher that is not nil
	}
	return w, nil
}

// Close stops every watcher and ends every Follow, without an error. Closing twice is
// no error.
func (c *ConfigMap) Close() error {
	c.mu.Lock()
	c.closed = true
	watchers := maps.Clone(c.watchers)
	c.mu.Unlock()
	for w := range watchers {
		_ = w.Stop()
	}
	return nil
}

// Follow yields the configuration at once, and again after each change of the ConfigMap,
// until ctx ends or the loop breaks; after that no goroutine is left. Follow reads the
// sources in before once, at the start, and merges them in their order, the ConfigMap
// last: if two sources hold the same key, the later source wins.
//
// A slow loop misses intermediate configurations and gets the latest. A change that does
// not affect the content, such as a new label, yields nothing. After the ConfigMap was
// deleted, Follow yields a configuration without it.
//
// If the first read fails, Follow yields the error and ends: the ConfigMap does not exist,
// the right to get it is missing, there is no cluster, or the API server has not answered
// for 5 s. After later failures Follow retries, and logs when they begin and end. It needs
// the verbs get, list and watch on configmaps.
//
// Each configuration is a snapshot that stays valid and may be shared by goroutines. Only
// its own Set and Del change it; Load and Watch return an error, and it needs no Close.
func (c *ConfigMap) Follow(ctx context.Context, before ...source.Source) iter.Seq2[config.Config, error] {
	return func(yield func(config.Config, error) bool) {
		var sets []*source.ChangeSet
		for _, s := range before {
			set, err := s.Read()
			if err != nil {
				yield(nil, fmt.Errorf("reading source %q: %w", s, err))
				return
			}
			sets = append(sets, set)
		}
		w, err := c.watch(ctx, nil)
		if err != nil {
			if ctx.Err() == nil {
				yield(nil, err)
			}
			return
		}
		defer func() { _ = w.Stop() }()
		merge := func(set *source.ChangeSet) (config.Config, error) {
			cfg, err := newSnapshot(append(sets, set)...)
			if err != nil {
				return nil, fmt.Errorf("merging ConfigMap %q: %w", w.fullName, err)
			}
			return cfg, nil
		}
		cfg, err := merge(w.last)
		if err != nil {
			yield(nil, err)
			return
		}
		for {
			if err == nil && !yield(cfg, nil) {
				return
			}
			set, stopped := w.Next()
			if stopped != nil {
				return
			}
			if cfg, err = merge(set); err != nil {
				logger.Warnf("Config [configmap] %v; keeping the last configuration", err)
			}
		}
	}
}

// connect makes a connection for one Read, Watch or Follow, which closes it.
func (c *ConfigMap) connect() (*apiserver.Connection, error) {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("reading ConfigMap %q: it is closed", path.Join(c.namespace, c.name))
	}
	a, err := apiserver.Connect(c.env, apiserver.Options{Namespace: c.namespace})
	if err != nil {
		return nil, fmt.Errorf("reading ConfigMap %q: %w", path.Join(c.namespace, c.name), err)
	}
	return a, nil
}

func (c *ConfigMap) get(ctx context.Context, a *apiserver.Connection) (*source.ChangeSet, error) {
	m, err := a.GetConfigMap(ctx, c.name)
	if err != nil {
		return nil, fmt.Errorf("reading ConfigMap %q: %w", path.Join(a.Namespace, c.name), err)
	}
	return c.changeSet(m.Data), nil
}

// changeSet converts the data of a ConfigMap to go-micro's form. It accepts any data and
// never panics.
func (c *ConfigMap) changeSet(data map[string]string) *source.ChangeSet {
	values := map[string]any{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, v := range data {
		parsed, err := parse(k, v)
		if err == nil {
			values[k] = parsed
			delete(c.invalid, k)
			continue
		}
		if c.invalid[k] != v {
			logger.Warnf("Config [configmap] Reading key %q of ConfigMap %q as text: %v", k, c.name, err)
		}
		values[k], c.invalid[k] = v, v
	}
	b, _ := json.Marshal(values) // cannot fail: values holds strings and trees that parse has decoded from JSON
	set := &source.ChangeSet{Data: b, Format: "json", Source: c.String(), Timestamp: time.Now()}
	set.Checksum = set.Sum()
	return set
}

// parse decodes a value in the format that the extension of its key names.
func parse(key, value string) (parsed any, err error) {
	switch path.Ext(key) {
	case ".json":
		err = json.Unmarshal([]byte(value), &parsed)
	case ".yaml", ".yml":
		err = yaml.Unmarshal([]byte(value), &parsed)
	default:
		parsed = value
	}
	return parsed, err
}
