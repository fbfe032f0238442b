package configwatch

import (
	"bytes"
	"context"
	"path"
	"sync"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/micro/go-micro/v2/config/source"
	"github.com/micro/go-micro/v2/logger"
	corev1 "k8s.io/api/core/v1"
)

// watcher holds the latest content of a ConfigMap and the content that its reader
// received last. It skips the contents in between if the reader is slow.
type watcher struct {
	configMap  *ConfigMap
	connection *apiserver.Connection
	fullName   string // namespace/name
	exact      bool   // integers keep all digits; see ConfigMap.changeSet
	ctx        context.Context
	cancel     context.CancelFunc
	running    sync.WaitGroup
	changed    chan struct{} // holds one element after a change that Next has not seen

	mu      sync.Mutex
	data    map[string]string // the latest content
	deleted bool              // the ConfigMap does not exist
	last    *source.ChangeSet // what the reader received last
}

var (
	_ source.Watcher                       = (*watcher)(nil)
	_ apiserver.Handler[*corev1.ConfigMap] = (*watcher)(nil)
)

// watch returns a watcher whose Next first returns content that differs from last. Its Stop
// closes the connection.
func (c *ConfigMap) watch(ctx context.Context, a *apiserver.Connection, last *source.ChangeSet, exact bool) *watcher {
	w := &watcher{configMap: c, connection: a, fullName: path.Join(a.Namespace, c.name), exact: exact, changed: make(chan struct{}, 1), last: last}
	w.ctx, w.cancel = context.WithCancel(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		w.cancel() // Next returns ErrWatcherStopped
	}
	c.watchers[w] = struct{}{}
	w.running.Go(func() { a.ListWatchConfigMap(w.ctx, c.name, w) })
	return w
}

// Next waits until the content differs from the content that it returned last, and
// returns the latest content, however many changes there were. The content of a deleted
// ConfigMap is "{}". After Stop, Next returns source.ErrWatcherStopped.
func (w *watcher) Next() (*source.ChangeSet, error) {
	for {
		select {
		case <-w.ctx.Done():
		case <-w.changed:
		}
		if w.ctx.Err() != nil {
			return nil, source.ErrWatcherStopped
		}
		w.mu.Lock()
		set := w.configMap.changeSet(w.data, w.exact)
		if !bytes.Equal(set.Data, w.last.Data) {
			w.last = set
			w.mu.Unlock()
			w.configMap.reloaded()
			return set, nil
		}
		w.mu.Unlock()
	}
}

// Stop ends Next and the watcher's goroutine, and waits for the goroutine. Stopping twice
// is no error.
func (w *watcher) Stop() error {
	w.cancel()
	w.running.Wait()
	w.connection.Close()
	w.configMap.mu.Lock()
	defer w.configMap.mu.Unlock()
	delete(w.configMap.watchers, w)
	return nil
}

// set stores the latest content and logs that the ConfigMap was deleted or created again.
func (w *watcher) set(data map[string]string, deleted bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if deleted && !w.deleted {
		logger.Warnf("Config [configmap] ConfigMap %q was deleted", w.fullName)
	} else if !deleted && w.deleted {
		logger.Infof("Config [configmap] ConfigMap %q was created again", w.fullName)
	}
	w.data, w.deleted = data, deleted
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Update receives the ConfigMap after it was created or changed.
func (w *watcher) Update(m *corev1.ConfigMap) { w.set(m.Data, false) }

// Delete receives the ConfigMap that was deleted.
func (w *watcher) Delete(*corev1.ConfigMap) { w.set(nil, true) }

// Replace receives the result of a LIST: one ConfigMap or none.
func (w *watcher) Replace(maps []*corev1.ConfigMap) {
	if len(maps) == 0 {
		w.Delete(nil)
		return
	}
	w.Update(maps[0])
}

// StateChanged logs that watching the ConfigMap began to fail, or works again.
func (w *watcher) StateChanged(err error) {
	if err != nil {
		logger.Warnf("Config [configmap] Watching ConfigMap %q: %v; retrying", w.fullName, err)
	} else {
		logger.Infof("Config [configmap] Watching ConfigMap %q again", w.fullName)
	}
}
