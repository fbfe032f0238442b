package pod

import (
	"bytes"
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
	microconfig "github.com/micro/go-micro/v2/config"
	"github.com/micro/go-micro/v2/config/reader"
	jsonreader "github.com/micro/go-micro/v2/config/reader/json"
	"github.com/micro/go-micro/v2/config/source"
	"github.com/micro/go-micro/v2/logger"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// ConfigMap is a ConfigMap as a source of go-micro's configuration. Make it with
// NewConfigMap. Safe for concurrent use.
//
// Each key holds its value as a string, as it stands: cfg.Get("DB_HOST").String("").
// Under a key that ends in .json, .yaml or .yml stands what the file holds, as a
// tree: cfg.Get("app.yaml", "db", "host"); of several YAML documents the first. A
// file that does not parse stays a string, with one line in the log. As with every
// source, go-micro puts the variable NAME of the environment for ${NAME} in a value.
// binaryData is left out.
type ConfigMap struct {
	env             apiserver.Environment
	namespace, name string

	mu       sync.Mutex
	closed   bool
	read     *source.ChangeSet // what Read returned last
	watchers map[*mapWatcher]struct{}
	refused  map[string]string // by key, files that do not parse: said once
}

var _ source.Source = (*ConfigMap)(nil)

// NewConfigMap returns the ConfigMap of that name; an empty namespace is the
// pod's own. It makes no call and no goroutine before it is used.
func NewConfigMap(namespace, name string) *ConfigMap {
	return newConfigMap(apiserver.ProcessEnvironment, namespace, name)
}

func newConfigMap(env apiserver.Environment, namespace, name string) *ConfigMap {
	return &ConfigMap{env: env, namespace: namespace, name: name, watchers: map[*mapWatcher]struct{}{}, refused: map[string]string{}}
}

// String is "configmap", as the plugin's.
func (c *ConfigMap) String() string { return "configmap" }

// Write returns an error: a ConfigMap is changed with kubectl, or by who owns it.
func (c *ConfigMap) Write(*source.ChangeSet) error {
	return fmt.Errorf("writing ConfigMap %q: not supported; change it with kubectl", path.Join(c.namespace, c.name))
}

// Read gets the ConfigMap from the API server, which has 5 s to answer. Unwrapped,
// its error is the API server's. Needs the verb get on configmaps.
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
	c.read = set
	return set, nil
}

// Watch returns what differs from what Read returned last or, when there was no
// Read, from what is: see Next. Until Stop it holds one goroutine and one
// connection, and follows the ConfigMap as Follow does. Needs the verbs list and
// watch on configmaps, and get when there was no Read.
func (c *ConfigMap) Watch() (source.Watcher, error) {
	c.mu.Lock()
	read := c.read
	c.mu.Unlock()
	w, err := c.watch(context.Background(), read)
	if err != nil {
		return nil, err // not w: a nil of its type is no nil Watcher
	}
	return w, nil
}

// Close stops every watcher and ends every Follow, without an error. Closing
// twice is no error.
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

// Follow yields the configuration at once and again after each change of the
// ConfigMap, until ctx ends or its reader breaks; nothing runs after that. The
// sources before are read once, at the start, and merged in their order, the
// ConfigMap last: where two hold the same key, the later one wins.
//
// A slow reader gets the latest; what equals the last, such as a ConfigMap that
// got a label, is not yielded. When the ConfigMap is deleted a configuration
// without it is yielded. An API server that restarts or breaks the watch is
// followed again within a second; one that falls silent, within 15 s.
//
// A first read that fails yields its error and ends: no such ConfigMap, no right
// to get it, no cluster, or no answer for 5 s. Later failures are logged when they
// are news, and tried again. Needs the verbs get, list and watch on configmaps.
//
// Each configuration is a snapshot, for any number of readers and as long as they
// like: it changes only by its reader's own Set and Del, takes no Load and no Watch,
// and needs no Close.
func (c *ConfigMap) Follow(ctx context.Context, before ...source.Source) iter.Seq2[microconfig.Config, error] {
	return func(yield func(microconfig.Config, error) bool) {
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
		merge := func(set *source.ChangeSet) (microconfig.Config, error) {
			cfg, err := newSnapshot(append(sets, set)...)
			if err != nil {
				return nil, fmt.Errorf("merging ConfigMap %q: %w", w.what, err)
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
				logger.Warnf("Config [configmap] %v; keeping what was", err)
			}
		}
	}
}

// connect makes a connection for one use, so that nothing is left after it.
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

// changeSet is the data of a ConfigMap in go-micro's form. It never panics,
// whatever is there.
func (c *ConfigMap) changeSet(data map[string]string) *source.ChangeSet {
	values := map[string]any{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, v := range data {
		parsed, err := parse(k, v)
		switch {
		case err == nil:
			values[k] = parsed
			delete(c.refused, k)
			continue
		case c.refused[k] != v:
			logger.Warnf("Config [configmap] Taking %q of ConfigMap %q as text: %v", k, c.name, err)
		}
		values[k], c.refused[k] = v, v
	}
	b, _ := json.Marshal(values) // strings and what came from JSON
	set := &source.ChangeSet{Data: b, Format: "json", Source: c.String(), Timestamp: time.Now()}
	set.Checksum = set.Sum()
	return set
}

// parse is a value as the ending of its key says to read it.
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

// ---- what follows one ConfigMap ----

// mapWatcher holds the latest content of a ConfigMap, and what its reader saw
// last. Its memory is that of the two, however slow its reader.
type mapWatcher struct {
	c       *ConfigMap
	api     *apiserver.Connection
	what    string // namespace/name
	ctx     context.Context
	cancel  context.CancelFunc
	ended   sync.WaitGroup
	changed chan struct{}

	mu   sync.Mutex
	now  map[string]string // the latest data
	gone bool              // there is no ConfigMap, and that has been said
	last *source.ChangeSet // what the reader has
}

var (
	_ source.Watcher                       = (*mapWatcher)(nil)
	_ apiserver.Handler[*corev1.ConfigMap] = (*mapWatcher)(nil)
)

// watch follows from a content that the reader has; from what is, when that is nil.
func (c *ConfigMap) watch(ctx context.Context, last *source.ChangeSet) (*mapWatcher, error) {
	a, err := c.connect()
	if err != nil {
		return nil, err
	}
	if last == nil {
		if last, err = c.get(ctx, a); err != nil {
			a.Close()
			return nil, err
		}
	}
	w := &mapWatcher{c: c, api: a, what: path.Join(a.Namespace, c.name), changed: make(chan struct{}, 1), last: last}
	w.ctx, w.cancel = context.WithCancel(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		w.cancel() // so that Next says it is stopped
	}
	c.watchers[w] = struct{}{}
	w.ended.Go(w.follow)
	return w, nil
}

func (w *mapWatcher) follow() { w.api.ListWatchConfigMap(w.ctx, w.c.name, w) }

// StateChanged logs that following the ConfigMap began to fail, or works again.
func (w *mapWatcher) StateChanged(err error) {
	if err != nil {
		logger.Warnf("Config [configmap] Following ConfigMap %q: %v; trying on", w.what, err)
	} else {
		logger.Infof("Config [configmap] Following ConfigMap %q again", w.what)
	}
}

// Next waits until the content differs from what it returned last; a ConfigMap
// that is deleted has none, "{}". It returns the latest, however many changes
// there were; source.ErrWatcherStopped after Stop.
func (w *mapWatcher) Next() (*source.ChangeSet, error) {
	for {
		select {
		case <-w.ctx.Done():
		case <-w.changed:
		}
		if w.ctx.Err() != nil {
			return nil, source.ErrWatcherStopped
		}
		w.mu.Lock()
		set := w.c.changeSet(w.now)
		if !bytes.Equal(set.Data, w.last.Data) {
			w.last = set
			w.mu.Unlock()
			return set, nil
		}
		w.mu.Unlock()
	}
}

// Stop ends Next and the watcher's goroutine, and waits for it. Stopping twice is
// no error.
func (w *mapWatcher) Stop() error {
	w.cancel()
	w.ended.Wait()
	w.api.Close()
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	delete(w.c.watchers, w)
	return nil
}

func (w *mapWatcher) set(data map[string]string, gone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if gone && !w.gone {
		logger.Warnf("Config [configmap] ConfigMap %q is gone", w.what)
	} else if !gone && w.gone {
		logger.Infof("Config [configmap] ConfigMap %q is there again", w.what)
	}
	w.now, w.gone = data, gone
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Update receives the ConfigMap when it was created or has changed.
func (w *mapWatcher) Update(m *corev1.ConfigMap) { w.set(m.Data, false) }

// Delete receives the ConfigMap that was deleted.
func (w *mapWatcher) Delete(*corev1.ConfigMap) { w.set(nil, true) }

// Replace receives the result of a LIST: one ConfigMap or none.
func (w *mapWatcher) Replace(maps []*corev1.ConfigMap) {
	if len(maps) == 0 {
		w.Delete(nil)
		return
	}
	w.Update(maps[0])
}

// ---- what Follow yields ----

// snapshot is a configuration that never changes. It is not go-micro's own, which
// keeps itself current with goroutines that race (its loader's update reads what
// its watcher's Next writes), drop an update when two come at once, watch the other
// sources too, and live on for a second after Close.
type snapshot struct{ reader.Values }

var _ microconfig.Config = snapshot{}

var errSnapshot = errors.New("using a snapshot of the configuration: it stays as it is; give all sources to Follow")

// newSnapshot merges sources as go-micro does.
func newSnapshot(sets ...*source.ChangeSet) (microconfig.Config, error) {
	r := jsonreader.NewReader()
	merged, err := r.Merge(sets...)
	if err != nil {
		return nil, err
	}
	values, err := r.Values(merged)
	if err != nil {
		return nil, err
	}
	if values.Map() == nil { // go-micro says nothing, and has no configuration
		return nil, errors.New("a variable of the environment that stands for its ${NAME} breaks it: no quotes or backslashes there")
	}
	return snapshot{values}, nil
}

func (snapshot) Options() microconfig.Options                 { return microconfig.Options{} }
func (snapshot) Close() error                                 { return nil }
func (snapshot) Sync() error                                  { return nil }
func (snapshot) Init(...microconfig.Option) error             { return errSnapshot }
func (snapshot) Load(...source.Source) error                  { return errSnapshot }
func (snapshot) Watch(...string) (microconfig.Watcher, error) { return nil, errSnapshot }
