package configwatch

import (
	"context"
	"encoding/json"
	"errors"
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
)

// ConfigMap is one ConfigMap as a source of go-micro's configuration; the package
// comment says how its values are read. Make it with New. It is safe for concurrent use.
type ConfigMap struct {
	env             apiserver.Environment
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

func newConfigMap(env apiserver.Environment, namespace, name string) *ConfigMap {
	c := &ConfigMap{env: env, namespace: namespace, name: name, watchers: map[*watcher]struct{}{}, invalid: map[string]string{}}
	c.ctx, c.close = context.WithCancel(context.Background())
	return c
}

// String returns "configmap", as the configmap plugin does.
func (c *ConfigMap) String() string { return "configmap" }

// Write always returns an error: use kubectl to change a ConfigMap.
func (c *ConfigMap) Write(*source.ChangeSet) error {
	return fmt.Errorf("writing ConfigMap %q: not supported; change it with kubectl", path.Join(c.namespace, c.name))
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
	return c.watch(context.Background(), a, last, false), nil
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
// the right to get it is missing, or there is no cluster. If the API server cannot be reached, for example
// because a sidecar has not started yet, Follow retries instead, as it does after later failures. It logs when the
// failures begin and end. It needs the verbs get, list and watch on configmaps.
//
// Each configuration is a snapshot that stays valid and may be shared by goroutines. Only
// its own Set and Del change it; Load and Watch return an error, and it needs no Close.
func (c *ConfigMap) Follow(ctx context.Context, before ...source.Source) iter.Seq2[config.Config, error] {
	return func(yield func(config.Config, error) bool) {
		sets, w, err := c.start(ctx, before)
		if err != nil {
			if !errors.Is(err, source.ErrWatcherStopped) {
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

// start reads the sources before the ConfigMap, and the ConfigMap, and begins to watch it. It retries while
// the API server cannot be reached. It returns source.ErrWatcherStopped after the end of ctx and after Close.
func (c *ConfigMap) start(ctx context.Context, before []source.Source) (sets []*source.ChangeSet, w *watcher, err error) {
	a, err := c.connect()
	if err != nil {
		return nil, nil, err
	}
	starting, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	var retry apiserver.Retry
	for {
		var content *source.ChangeSet
		if sets, err = readAll(starting, before); err == nil {
			content, err = c.get(starting, a, true)
		}
		if starting.Err() != nil {
			err = source.ErrWatcherStopped
		}
		news := retry.Ended(err)
		switch {
		case err == nil:
			if news {
				logger.Infof("Config [configmap] Reading ConfigMap %q works", path.Join(a.Namespace, c.name))
			}
			return sets, c.watch(ctx, a, content, true), nil
		case !apiserver.Unreachable(err):
			a.Close()
			return nil, nil, err
		case news:
			logger.Warnf("Config [configmap] %v; retrying", err)
		}
		retry.Wait(starting, a.RetryAfter())
	}
}

func readAll(ctx context.Context, sources []source.Source) (sets []*source.ChangeSet, err error) {
	for _, s := range sources {
		var set *source.ChangeSet
		if m, ok := s.(*ConfigMap); ok {
			set, err = m.read(ctx, true)
		} else {
			set, err = s.Read()
		}
		if err != nil {
			return nil, fmt.Errorf("reading source %q: %w", s, err)
		}
		sets = append(sets, set)
	}
	return sets, nil
}

// connect makes a connection for one Read, Watch or Follow, which closes it.
func (c *ConfigMap) connect() (*apiserver.Connection, error) {
	if c.ctx.Err() != nil {
		return nil, fmt.Errorf("reading ConfigMap %q: it is closed", path.Join(c.namespace, c.name))
	}
	a, err := apiserver.Connect(c.env, apiserver.Options{Namespace: c.namespace})
	if err != nil {
		return nil, fmt.Errorf("reading ConfigMap %q: %w", path.Join(c.namespace, c.name), err)
	}
	return a, nil
}

func (c *ConfigMap) get(ctx context.Context, a *apiserver.Connection, exact bool) (*source.ChangeSet, error) {
	m, err := a.GetConfigMap(ctx, c.name)
	if err != nil {
		return nil, fmt.Errorf("reading ConfigMap %q: %w", path.Join(a.Namespace, c.name), err)
	}
	return c.changeSet(m.Data, exact), nil
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
