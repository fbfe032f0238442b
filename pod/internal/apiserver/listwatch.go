package apiserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// pageSize is the number of objects in one LIST response. The annotations of a pod may have 256 KiB,
// so that a page takes 25 MB at most while it is decoded.
const pageSize = 100

// A watch that ends before shortWatch has failed, whatever it delivered: a broken proxy may accept each
// watch and close it at once. After a watch that has lasted for longWatch the next delay is the shortest
// again. The API server is asked to end a watch after watchTimeout to twice that, as client-go does.
const shortWatch, longWatch, watchTimeout = time.Second, 10 * time.Second, 5 * time.Minute

// bookmarkTimeout is how long a watch may send no bookmark before its version is checked. The API server
// sends one a minute. It sends none to a watch from a version that lies in its future, as after etcd
// was restored from a backup, and no change either. There is none either while nothing is written to etcd,
// or no pod changes and etcd runs without --watch-progress-notify-interval.
const bookmarkTimeout = 2 * time.Minute

// errLost ends a watch that may have missed changes.
var errLost = errors.New("the API server has gone back to an earlier version")

// Handler receives the objects of a list and watch. One goroutine calls it.
type Handler[T runtime.Object] interface {
	// Replace receives all objects that exist, the result of a LIST.
	Replace(objects []T)
	// Update receives an object that was created or has changed.
	Update(object T)
	// Delete receives the last state of an object that was deleted.
	Delete(object T)
	// StateChanged receives an error when listing or watching fails for another
	// reason than in the attempt before, and nil when a watch works again. Neither a LIST
	// nor a watch that ends at once counts as success: changes would arrive late. A watch that
	// has worked may end; that is an error only if the next attempt fails.
	StateChanged(err error)
}

// Selector selects objects; empty fields select all.
type Selector struct{ Labels, Fields string }

// ListWatchPods keeps h up to date with the selected pods until ctx ends. It lists
// once and then watches. When the watch ends, or the API server cannot be reached, it continues
// from the last version. It lists again only if the API server no longer has that version, or
// does not have it yet because etcd was restored from a backup. trim reduces each listed pod to the fields
// that h reads, page by page, so that thousands of whole pods are never in memory
// at the same time. It needs the verbs list and watch on pods.
func (c *Connection) ListWatchPods(ctx context.Context, selector Selector, trim func(*corev1.Pod) *corev1.Pod, h Handler[*corev1.Pod]) {
	list := func(ctx context.Context, options metav1.ListOptions) (page []*corev1.Pod, _ metav1.ListMeta, _ error) {
		var pods corev1.PodList
		err := c.list(ctx, "pods", options, &pods)
		for i := range pods.Items {
			page = append(page, trim(&pods.Items[i]))
		}
		return page, pods.ListMeta, err
	}
	(&listWatch[*corev1.Pod]{connection: c, resource: "pods", selector: selector, page: list, handler: h}).run(ctx)
}

// ListWatchConfigMap keeps h up to date with the ConfigMap of that name until ctx ends,
// as ListWatchPods does. The ConfigMap need not exist. It needs the verbs list and watch
// on configmaps.
func (c *Connection) ListWatchConfigMap(ctx context.Context, name string, h Handler[*corev1.ConfigMap]) {
	list := func(ctx context.Context, options metav1.ListOptions) (page []*corev1.ConfigMap, _ metav1.ListMeta, _ error) {
		var maps corev1.ConfigMapList
		err := c.list(ctx, "configmaps", options, &maps)
		for i := range maps.Items {
			page = append(page, &maps.Items[i])
		}
		return page, maps.ListMeta, err
	}
	(&listWatch[*corev1.ConfigMap]{connection: c, resource: "configmaps", selector: Selector{Fields: "metadata.name=" + name}, page: list, handler: h}).run(ctx)
}

// ListWatchSecret is ListWatchConfigMap for a Secret. It needs the verbs list and watch on secrets.
func (c *Connection) ListWatchSecret(ctx context.Context, name string, h Handler[*corev1.Secret]) {
	list := func(ctx context.Context, options metav1.ListOptions) (page []*corev1.Secret, _ metav1.ListMeta, _ error) {
		var secrets corev1.SecretList
		err := c.list(ctx, "secrets", options, &secrets)
		for i := range secrets.Items {
			page = append(page, &secrets.Items[i])
		}
		return page, secrets.ListMeta, err
	}
	(&listWatch[*corev1.Secret]{connection: c, resource: "secrets", selector: Selector{Fields: "metadata.name=" + name}, page: list, handler: h}).run(ctx)
}

// object is a Kubernetes object of a certain type.
type object interface {
	runtime.Object
	metav1.Object
}

// listWatch keeps a handler up to date. It does what client-go's Reflector does, which writes its
// errors to a log of its own.
type listWatch[T object] struct {
	connection *Connection
	resource   string
	selector   Selector
	page       func(context.Context, metav1.ListOptions) ([]T, metav1.ListMeta, error) // gets one page of a LIST
	handler    Handler[T]

	version   string    // from which to watch; if empty, a LIST comes first
	confirmed time.Time // when the API server last sent a version, in a LIST or in a bookmark
	unchecked bool      // a watch has broken off: etcd may have been restored since
	stuck     string    // version from which a watch has failed at once
	retry     Retry
}

func (l *listWatch[T]) run(ctx context.Context) {
	for ctx.Err() == nil {
		var err error
		listed := l.version == ""
		if listed {
			err = l.list(ctx)
		}
		if err == nil {
			var ended bool
			if ended, err = l.watch(ctx); ended {
				continue // from the last version
			}
		}
		if err != nil && (listed || !expired(err)) { // that a version expires between two watches is no failure
			l.report(ctx, err)
		}
		l.retry.Wait(ctx, l.connection.RetryAfter())
	}
}

// check returns errLost if the version lies in the future of the API server. A watch from there silently
// leaves out all changes until then. It costs the LIST of one object.
func (l *listWatch[T]) check(ctx context.Context) error {
	options := l.options()
	options.Limit = 1
	_, meta, err := l.page(ctx, options)
	if err == nil && isOlder(meta.ResourceVersion, l.version) {
		return errLost
	}
	l.confirmed, l.unchecked = time.Now(), err != nil
	return err
}

// isOlder compares resource versions, which are growing numbers (KEP-5504).
func isOlder(a, b string) bool {
	m, errA := strconv.ParseUint(a, 10, 64)
	n, errB := strconv.ParseUint(b, 10, 64)
	return errA == nil && errB == nil && m < n
}

// report passes the result of an attempt to the handler if it is news.
func (l *listWatch[T]) report(ctx context.Context, err error) {
	if ctx.Err() == nil && l.retry.Ended(err) {
		l.handler.StateChanged(err)
	}
}

func (l *listWatch[T]) options() metav1.ListOptions {
	return metav1.ListOptions{LabelSelector: l.selector.Labels, FieldSelector: l.selector.Fields}
}

// list passes all objects to the handler. It gets them in pages; if the list changes too much
// meanwhile, it gets them all at once.
func (l *listWatch[T]) list(ctx context.Context) error {
	options := l.options()
	options.Limit = pageSize
	var all []T
	for {
		page, meta, err := l.page(ctx, options)
		if expired(err) && options.Continue != "" {
			options, all = l.options(), nil
			continue
		}
		if err != nil {
			return err
		}
		if all = append(all, page...); meta.Continue != "" {
			options.Continue = meta.Continue
			continue
		}
		if ctx.Err() == nil {
			l.handler.Replace(all)
		}
		l.version, l.confirmed, l.unchecked = meta.ResourceVersion, time.Now(), false
		return nil
	}
}

// watch passes changes to the handler until the watch ends. It returns ended if the watch worked and
// may continue from its last version, and an error if the watch did not work.
func (l *listWatch[T]) watch(ctx context.Context) (ended bool, _ error) {
	options := l.options()
	seconds := int64((watchTimeout + rand.N(watchTimeout)).Seconds())
	options.ResourceVersion, options.AllowWatchBookmarks, options.TimeoutSeconds = l.version, true, &seconds
	w, err := l.connection.watch(ctx, l.resource, options)
	if err != nil {
		if l.unchecked = true; !Unreachable(err) {
			l.version = ""
		}
		return false, err
	}
	defer w.Stop()
	begin := time.Now()
	err = l.receive(ctx, w)
	lasted := time.Since(begin)
	l.unchecked = l.unchecked || lasted < time.Duration(seconds-1)*time.Second // the API server has not ended it as asked
	if lasted >= longWatch {
		l.retry.ResetDelay()
	}
	switch short := lasted < shortWatch; {
	case expired(err) || errors.Is(err, errLost):
		l.version = ""
	case short && l.version == l.stuck: // the next watch would fail as well
		l.version = ""
	case short:
		l.stuck = l.version
	}
	switch {
	case lasted >= shortWatch:
		return err == nil, nil
	case errors.Is(err, errLost):
		return false, nil // a LIST tells what was missed
	case err == nil:
		err = errors.New("the API server, or a proxy before it, ends the watch at once")
	}
	return false, l.connection.Explain(err, "watch", l.resource, l.resource)
}

// receive passes the events of a watch to the handler. It returns the error that ends the watch, or
// nil if the watch is simply closed.
func (l *listWatch[T]) receive(ctx context.Context, w watch.Interface) error {
	untilLost := bookmarkTimeout
	if !l.unchecked {
		untilLost = time.Until(l.confirmed.Add(bookmarkTimeout))
	}
	working, lost := time.NewTimer(shortWatch), time.NewTimer(untilLost)
	defer working.Stop()
	defer lost.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-working.C:
			var err error
			if l.unchecked {
				err = l.check(ctx)
			}
			if errors.Is(err, errLost) {
				return err
			}
			if l.report(ctx, err); err != nil {
				working.Reset(longWatch) // checks again; the watch delivers changes meanwhile
			}
		case <-lost.C:
			l.unchecked = true
			working.Reset(0)
			lost.Reset(bookmarkTimeout)
		case event, open := <-w.ResultChan():
			if !open {
				return nil
			}
			if event.Type == watch.Error {
				return apierrors.FromObject(event.Object)
			}
			object, ok := event.Object.(T)
			if !ok {
				return fmt.Errorf("receiving a %T", event.Object)
			}
			if isOlder(object.GetResourceVersion(), l.version) {
				return errLost
			}
			switch event.Type {
			case watch.Added, watch.Modified:
				l.handler.Update(object)
			case watch.Deleted:
				l.handler.Delete(object)
			case watch.Bookmark:
				l.confirmed = time.Now()
				lost.Reset(bookmarkTimeout)
			}
			l.version = object.GetResourceVersion()
		}
	}
}

// expired reports whether the API server no longer has the version that a request began with.
func expired(err error) bool {
	var status *apierrors.StatusError
	return errors.As(err, &status) && (apierrors.IsResourceExpired(status) || status.ErrStatus.Code == http.StatusGone)
}
