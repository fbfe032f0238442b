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
	known   bool              // the API server has sent the content, or that there is none
	data    map[string]string // the latest content
	deleted bool              // the ConfigMap does not exist
	last    *source.ChangeSet // what the reader received last
}

var (
	_ source.Watcher                       = (*watcher)(nil)
	_ apiserver.Handler[*corev1.ConfigMap] = (*watcher)(nil)
	_ apiserver.Handler[*corev1.Secret]    = secretHandler{}
)

// watch returns a watcher whose Next first returns content that differs from last. Its Stop
// closes the connection. Several watchers may share the channel changed, of which Next is then not called.
func (c *ConfigMap) watch(ctx context.Context, a *apiserver.Connection, last *source.ChangeSet, exact bool, changed chan struct{}) *watcher {
	w := &watcher{configMap: c, connection: a, fullName: path.Join(a.Namespace, c.name), exact: exact, changed: changed, last: last}
	w.ctx, w.cancel = context.WithCancel(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		w.cancel() // Next returns ErrWatcherStopped
	}
	c.watchers[w] = struct{}{}
	w.running.Go(func() {
		if c.kind == kindSecret {
			a.ListWatchSecret(w.ctx, c.name, secretHandler{w})
		} else {
			a.ListWatchConfigMap(w.ctx, c.name, w)
		}
	})
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
		if set := w.latest(); set != nil {
			return set, nil
		}
	}
}

// latest returns the latest content if it differs from the content that it returned last, otherwise nil.
func (w *watcher) latest() *source.ChangeSet {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.known {
		return nil
	}
	set := w.configMap.changeSet(w.data, w.exact)
	if bytes.Equal(set.Data, w.last.Data) {
		return nil
	}
	w.last = set
	w.configMap.reloaded()
	return set
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
		logger.Warnf("Config [configmap] %s %q was deleted", w.configMap.kind, w.fullName)
	} else if !deleted && w.deleted {
		logger.Infof("Config [configmap] %s %q was created again", w.configMap.kind, w.fullName)
	}
	w.data, w.deleted, w.known = data, deleted, true
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
		logger.Warnf("Config [configmap] Watching %s %q: %v; retrying", w.configMap.kind, w.fullName, err)
	} else {
		logger.Infof("Config [configmap] Watching %s %q again", w.configMap.kind, w.fullName)
	}
}

// secretHandler gives a watcher the values of a Secret.
type secretHandler struct{ *watcher }

func (h secretHandler) Update(s *corev1.Secret) { h.set(texts(s), false) }

func (h secretHandler) Delete(*corev1.Secret) { h.set(nil, true) }

func (h secretHandler) Replace(secrets []*corev1.Secret) {
	if len(secrets) == 0 {
		h.Delete(nil)
		return
	}
	h.Update(secrets[0])
}
