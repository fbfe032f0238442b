package apiserver

import (
	"context"
	"io"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// pageSize is the number of objects in one LIST response.
const pageSize = 500

// The delay after a failed attempt grows from minDelay to maxDelay, less a random part,
// so that a thousand clients do not return at the same moment. No client waits longer
// than a second, unless the API server asks for more time. A watch that has lasted for
// workingWatch is no failure: the next delay is minDelay again.
const minDelay, maxDelay, workingWatch = 100 * time.Millisecond, time.Second, 10 * time.Second

// Handler receives the objects of a list and watch. One goroutine calls it.
type Handler[T runtime.Object] interface {
	// Replace receives all objects that exist, the result of a LIST.
	Replace(objects []T)
	// Update receives an object that was created or has changed.
	Update(object T)
	// Delete receives the last state of an object that was deleted.
	Delete(object T)
	// StateChanged receives an error when listing or watching fails with another
	// error than in the attempt before, and nil when a watch has begun again. A LIST
	// alone does not count as success: without a watch, changes arrive late.
	StateChanged(err error)
}

// Selector selects objects; empty fields select all.
type Selector struct{ Labels, Fields string }

// ListWatchPods keeps h up to date with the selected pods until ctx ends. It lists
// once and then watches; when the watch ends, for whatever reason, it continues
// from the last version or lists again. trim reduces each listed pod to the fields
// that h reads, page by page, so that thousands of whole pods are never in memory
// at the same time. It needs the verbs list and watch on pods.
func (c *Connection) ListWatchPods(ctx context.Context, selector Selector, trim func(*corev1.Pod) *corev1.Pod, h Handler[*corev1.Pod]) {
	list := func(options metav1.ListOptions) (runtime.Object, error) {
		var pods corev1.PodList
		if err := c.list(ctx, "pods", options, &pods); err != nil {
			return nil, err
		}
		for i := range pods.Items {
			pods.Items[i] = *trim(&pods.Items[i])
		}
		return &pods, nil
	}
	listWatch(ctx, c, "pods", selector, &corev1.Pod{}, list, h)
}

// ListWatchConfigMap keeps h up to date with the ConfigMap of that name until ctx ends,
// as ListWatchPods does. The ConfigMap need not exist. It needs the verbs list and watch
// on configmaps.
func (c *Connection) ListWatchConfigMap(ctx context.Context, name string, h Handler[*corev1.ConfigMap]) {
	list := func(options metav1.ListOptions) (runtime.Object, error) {
		var maps corev1.ConfigMapList
		if err := c.list(ctx, "configmaps", options, &maps); err != nil {
			return nil, err
		}
		return &maps, nil
	}
	listWatch(ctx, c, "configmaps", Selector{Fields: "metadata.name=" + name}, &corev1.ConfigMap{}, list, h)
}

// errWatchEnded makes the reflector return without a log line of its own.
var errWatchEnded = io.EOF

func listWatch[T runtime.Object](ctx context.Context, c *Connection, resource string, selector Selector, example T,
	list func(metav1.ListOptions) (runtime.Object, error), h Handler[T]) {
	delay := minDelay
	var watchBegin time.Time // zero before the first watch after a LIST
	var last error
	report := func(err error) {
		if ctx.Err() != nil {
			return
		}
		changed := (err == nil) != (last == nil) || err != nil && err.Error() != last.Error()
		if last = err; changed {
			h.StateChanged(err)
		}
	}
	lw := &cache.ListWatch{
		ListFunc: func(options metav1.ListOptions) (runtime.Object, error) {
			options.LabelSelector, options.FieldSelector, options.ResourceVersion = selector.Labels, selector.Fields, ""
			all, err := list(options)
			if err != nil {
				report(err)
			}
			return all, err
		},
		WatchFunc: func(options metav1.ListOptions) (watch.Interface, error) {
			if !watchBegin.IsZero() && time.Since(watchBegin) < maxDelay {
				return nil, errWatchEnded // the reflector itself would start the next watch at once
			}
			options.LabelSelector, options.FieldSelector = selector.Labels, selector.Fields
			w, err := c.watch(ctx, resource, options)
			report(err)
			if err != nil {
				return nil, errWatchEnded
			}
			watchBegin = time.Now()
			return w, nil
		},
	}
	for ctx.Err() == nil {
		watchBegin = time.Time{}
		r := cache.NewReflector(lw, example, store[T]{h}, 0)
		r.WatchListPageSize = pageSize
		_ = r.ListAndWatch(ctx.Done()) // report has received the error already
		if !watchBegin.IsZero() && time.Since(watchBegin) >= workingWatch {
			delay = minDelay
		}
		select {
		case <-ctx.Done():
		case <-time.After(max(delay/2+rand.N(delay/2), c.RetryAfter())):
		}
		delay = min(2*delay, maxDelay)
	}
}

// store passes what a client-go reflector writes to a Handler. The reflector never
// calls the methods that read.
type store[T runtime.Object] struct{ handler Handler[T] }

var _ cache.Store = store[*corev1.Pod]{}

func (s store[T]) Add(object any) error { return s.Update(object) }

func (s store[T]) Update(object any) error {
	if o, ok := object.(T); ok {
		s.handler.Update(o)
	}
	return nil
}

func (s store[T]) Delete(object any) error {
	if o, ok := object.(T); ok {
		s.handler.Delete(o)
	}
	return nil
}

func (s store[T]) Replace(objects []any, _ string) error {
	all := make([]T, 0, len(objects))
	for _, object := range objects {
		if o, ok := object.(T); ok {
			all = append(all, o)
		}
	}
	s.handler.Replace(all)
	return nil
}

func (store[T]) Resync() error                      { return nil }
func (store[T]) List() []any                        { return nil }
func (store[T]) ListKeys() []string                 { return nil }
func (store[T]) Get(any) (any, bool, error)         { return nil, false, nil }
func (store[T]) GetByKey(string) (any, bool, error) { return nil, false, nil }
