package registration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	dlog "github.com/micro/go-micro/v2/debug/log"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fakeAPI is an API server that holds the pod "a".
type fakeAPI struct {
	mu         sync.Mutex
	pod        corev1.Pod
	attempts   []time.Time               // of patches
	admit      func(*corev1.Pod)         // changes what a patch has written, as an admission webhook; may be nil
	refuse     func(podmeta.Patch) error // may be nil
	frozen     bool                      // the API server does not answer
	answer     func(podmeta.Patch) error // called when a patch has taken effect and before its response; may be nil
	retryAfter time.Duration
	watched    []apiserver.Selector // by calls of ListWatchPods
	updated    broadcast.Broadcast
}

var _ API = (*fakeAPI)(nil)

func newFakeAPI() *fakeAPI {
	return &fakeAPI{pod: corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "1", ResourceVersion: "1", Labels: map[string]string{}, Annotations: map[string]string{}}}}
}

func (f *fakeAPI) PatchPod(ctx context.Context, body []byte) (*corev1.Pod, error) {
	var p podmeta.Patch
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.attempts = append(f.attempts, time.Now())
	frozen, refuse, answer := f.frozen, f.refuse, f.answer
	f.mu.Unlock()
	if frozen {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if refuse != nil {
		if err := refuse(p); err != nil {
			return nil, fmt.Errorf("patch pod %q: %w", "a", err) // as apiserver.Connection wraps it
		}
	}
	pod := f.edit(func(pod *corev1.Pod) {
		apply(pod.Labels, p.Metadata.Labels)
		apply(pod.Annotations, p.Metadata.Annotations)
		if f.admit != nil {
			f.admit(pod)
		}
	})
	if answer != nil {
		if err := answer(p); err != nil {
			return nil, err
		}
	}
	return pod, nil
}

func apply(values map[string]string, changes map[string]*string) {
	for k, v := range changes {
		if v == nil {
			delete(values, k)
		} else {
			values[k] = *v
		}
	}
}

func (f *fakeAPI) RetryAfter() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.retryAfter
}

func (f *fakeAPI) ListWatchPods(ctx context.Context, selector apiserver.Selector, trim func(*corev1.Pod) *corev1.Pod, h apiserver.Handler[*corev1.Pod]) {
	f.mu.Lock()
	f.watched = append(f.watched, selector)
	updated, p := f.updated.Wait(), f.pod.DeepCopy()
	f.mu.Unlock()
	h.Replace([]*corev1.Pod{trim(p)})
	for {
		select {
		case <-ctx.Done():
			return
		case <-updated:
		}
		f.mu.Lock()
		updated, p = f.updated.Wait(), f.pod.DeepCopy()
		f.mu.Unlock()
		h.Update(p)
	}
}

// edit changes the pod, as another process may, and returns its new version.
func (f *fakeAPI) edit(change func(*corev1.Pod)) *corev1.Pod {
	f.mu.Lock()
	change(&f.pod)
	version, _ := strconv.Atoi(f.pod.ResourceVersion)
	f.pod.ResourceVersion = strconv.Itoa(version + 1)
	pod := f.pod.DeepCopy()
	f.mu.Unlock()
	f.updated.Notify()
	return pod
}

// set changes how the API server answers.
func (f *fakeAPI) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// count returns the number of patches that were tried.
func (f *fakeAPI) count() int { return len(f.times()) }

func (f *fakeAPI) times() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]time.Time(nil), f.attempts...)
}

// has reports whether the pod has the label and the annotation of a service.
func (f *fakeAPI) has(service string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, annotation := f.pod.Annotations[podmeta.AnnotationPrefix+service]
	return annotation && f.pod.Labels[podmeta.SelectorPrefix+service] == podmeta.TypeValue
}

// dropLabel acts as an admission webhook that drops the label from each patch.
func dropLabel(p *corev1.Pod) { delete(p.Labels, podmeta.SelectorPrefix+"greeter") }

func pod(api API) Pod {
	return Pod{API: api, Host: "https://10.96.0.1", Namespace: "test", Name: "a"}
}

// metadataOf returns what the plugin writes for a service, in short.
func metadataOf(service, annotation string) podmeta.Metadata {
	label := podmeta.TypeValue
	name := podmeta.LabelName(service)
	return podmeta.Metadata{Labels: map[string]*string{podmeta.SelectorPrefix + name: &label}, Annotations: map[string]*string{podmeta.AnnotationPrefix + name: &annotation}}
}

func removalOf(service string) podmeta.Metadata {
	name := podmeta.LabelName(service)
	return podmeta.Metadata{Labels: map[string]*string{podmeta.SelectorPrefix + name: nil}, Annotations: map[string]*string{podmeta.AnnotationPrefix + name: nil}}
}

// desire returns a desired registration.
func desire(service string) *registration {
	return &registration{service: &registry.Service{Name: service}, metadata: metadataOf(service, service), removal: removalOf(service)}
}

// want makes d desired and waits as register does.
func (r *registrar) want(service string, d *registration, limit time.Duration) error {
	attempted, err := r.setDesired(service, d, limit)
	if err != nil || attempted == nil {
		return err
	}
	return r.await(service, d, attempted, limit)
}

// newTestRegistrar returns a registrar of the fake's pod, which is stopped when the test ends.
func newTestRegistrar(t *testing.T, api *fakeAPI) *registrar {
	r := newRegistrar(nil, func() {}, nil)
	r.connected(pod(api))
	t.Cleanup(r.stop)
	return r
}

// service returns a service as a server passes it to Register.
func service(name, id, address string) *registry.Service {
	return &registry.Service{Name: name, Version: "v1", Endpoints: []*registry.Endpoint{{Name: "Greeter.Hello"}},
		Nodes: []*registry.Node{{Id: id, Address: address, Metadata: map[string]string{"protocol": "grpc"}}}}
}

// testOptions returns the options of a Service in the fake's pod. The environment contains the
// variables; a test may change them before it uses the Service.
func testOptions(api *fakeAPI) (o Options, environment map[string]string) {
	environment = map[string]string{"KUBERNETES_SERVICE_HOST": "10.96.0.1", "POD_IP": "10.244.0.9"}
	return Options{Plugin: kubernetes.NewRegistry, Getenv: func(name string) string { return environment[name] },
		Connect: func() (Pod, error) { return pod(api), nil }, Timeout: func() time.Duration { return 4 * time.Second },
		APIError: func(string, error) {}}, environment
}

func newTestService(t *testing.T, o Options) *Service {
	s := New(o)
	t.Cleanup(func() { s.Detach()() })
	return s
}

var names atomic.Int32

// uniqueName returns a name for a service whose lines in the log no other test has written.
func uniqueName() string { return fmt.Sprint("service-", names.Add(1)) }

// logLines returns the lines of the log that contain a text.
func logLines(t *testing.T, text string) (lines []string) {
	t.Helper()
	records, err := dlog.DefaultLog.Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if line := fmt.Sprint(r.Message); strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines
}

var errForbidden = errors.New("pods is forbidden")

func anyService(string) bool { return true }
