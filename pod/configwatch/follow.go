package configwatch

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"regexp"
	"slices"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/micro/go-micro/v2/config"
	"github.com/micro/go-micro/v2/config/source"
	"github.com/micro/go-micro/v2/logger"
)

// Follow yields the configuration at once, and again after each change of the ConfigMap,
// until ctx ends or the loop breaks; after that no goroutine is left. Sources of this package in before
// are followed too, such as the base that this ConfigMap overrides, or a Secret. Follow reads the other
// sources once, at the start. It merges all in their order, the ConfigMap
// last: if two sources hold the same key, the later source wins.
//
// A slow loop misses intermediate configurations and gets the latest. A change that does
// not affect the content, such as a new label, yields nothing. After the ConfigMap was
// deleted, Follow yields a configuration without it.
//
// If the first read fails, Follow yields the error and ends: the ConfigMap does not exist,
// the right to get it is missing, or there is no cluster. If the API server cannot be reached, for example
// because a sidecar has not started yet, Follow retries instead, as it does after later failures. It logs when the
// failures begin and end. It needs the verbs get, list and watch on each ConfigMap and Secret.
//
// Each configuration is a snapshot that stays valid and may be shared by goroutines. Only
// its own Set and Del change it; Load and Watch return an error, and it needs no Close.
func (c *ConfigMap) Follow(ctx context.Context, before ...source.Source) iter.Seq2[config.Config, error] {
	return func(yield func(config.Config, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		f := follow{sources: append(slices.Clone(before), c), changed: make(chan struct{}, 1), reported: &misreadings{}}
		defer f.stop()
		for _, s := range f.sources {
			if m, ok := s.(*ConfigMap); ok {
				defer context.AfterFunc(m.ctx, cancel)()
			}
		}
		if err := f.start(ctx); err != nil {
			if !errors.Is(err, source.ErrWatcherStopped) {
				yield(nil, err)
			}
			return
		}
		cfg, err := f.merge()
		if err != nil {
			yield(nil, err)
			return
		}
		for {
			if err == nil && !yield(cfg, nil) {
				return
			}
			if !f.next(ctx) {
				return
			}
			if cfg, err = f.merge(); err != nil {
				logger.Warnf("Config [configmap] %v; keeping the last configuration", err)
			}
		}
	}
}

// follow is the state of one loop over Follow.
type follow struct {
	sources     []source.Source
	sets        []*source.ChangeSet     // the content of each source
	connections []*apiserver.Connection // of each source of this package, otherwise nil
	watchers    []*watcher              // as connections
	changed     chan struct{}           // shared by the watchers
	reported    *misreadings
}

// start reads the sources and begins to watch those of this package. It retries while the API server cannot be reached.
func (f *follow) start(ctx context.Context) error {
	f.sets = make([]*source.ChangeSet, len(f.sources))
	f.connections = make([]*apiserver.Connection, len(f.sources))
	f.watchers = make([]*watcher, len(f.sources))
	for i, s := range f.sources {
		if m, ok := s.(*ConfigMap); ok {
			var err error
			if f.connections[i], err = m.connect(); err != nil {
				return err
			}
		}
	}
	var retry apiserver.Retry
	for {
		err := f.read(ctx)
		if ctx.Err() != nil {
			return source.ErrWatcherStopped
		}
		news := retry.Ended(err)
		last := len(f.sources) - 1
		switch {
		case err == nil:
			if news {
				c := f.sources[last].(*ConfigMap)
				logger.Infof("Config [configmap] Reading %s %q works", c.kind, path.Join(f.connections[last].Namespace, c.name))
			}
			for i, a := range f.connections {
				if a != nil {
					c := f.sources[i].(*ConfigMap)
					warnOfHash(c)
					f.watchers[i] = c.watch(ctx, a, f.sets[i], true, f.changed)
				}
			}
			return nil
		case !apiserver.Unreachable(err):
			return err
		case news:
			logger.Warnf("Config [configmap] %v; retrying", err)
		}
		retry.Wait(ctx, f.retryAfter())
	}
}

func (f *follow) read(ctx context.Context) (err error) {
	for i, s := range f.sources {
		if a := f.connections[i]; a != nil {
			f.sets[i], err = s.(*ConfigMap).get(ctx, a, true)
		} else if f.sets[i], err = s.Read(); err != nil {
			err = fmt.Errorf("reading source %q: %w", s, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *follow) retryAfter() (longest time.Duration) {
	for _, a := range f.connections {
		if a != nil {
			longest = max(longest, a.RetryAfter())
		}
	}
	return longest
}

// next waits until the content of a source differs, and returns false at the end of ctx.
func (f *follow) next(ctx context.Context) bool {
	for {
		select {
		case <-ctx.Done():
		case <-f.changed:
		}
		if ctx.Err() != nil {
			return false
		}
		differs := false
		for i, w := range f.watchers {
			if w == nil {
				continue
			}
			if set := w.latest(); set != nil {
				f.sets[i], differs = set, true
			}
		}
		if differs {
			return true
		}
	}
}

func (f *follow) merge() (config.Config, error) {
	cfg, err := newSnapshot(f.reported, f.sets...)
	if err != nil {
		last := len(f.sources) - 1
		c := f.sources[last].(*ConfigMap)
		return nil, fmt.Errorf("merging %s %q: %w", c.kind, path.Join(f.connections[last].Namespace, c.name), err)
	}
	return cfg, nil
}

func (f *follow) stop() {
	for i, a := range f.connections {
		if w := f.watchers[i]; w != nil {
			_ = w.Stop()
		} else if a != nil {
			a.Close()
		}
	}
}

// hashSuffix finds the suffix that kustomize adds to a name: ten characters of an alphabet without vowels.
var hashSuffix = regexp.MustCompile(`^(.+)-[2456789bcdfghkmt]{10}$`)

// warnOfHash logs that an object whose name kustomize derives from its content never changes.
func warnOfHash(c *ConfigMap) {
	if m := hashSuffix.FindStringSubmatch(c.name); m != nil {
		logger.Warnf("Config [configmap] %s %q has kustomize's hash in its name, so each edit makes another one, and this one never changes: set generatorOptions: {disableNameSuffixHash: true} and follow %q", c.kind, c.name, m[1])
	}
}
