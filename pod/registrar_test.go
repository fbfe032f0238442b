package pod

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodReplacedUnderSameName(t *testing.T) {
	ns := newNamespace(t)
	r, own := ns.openRegistry("reader"), ns.openRegistry("web-0")
	ns.CreateReadyPod("web-0")
	if err := own.Register(service("web", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the first pod is found", has(r, "web", "10.0.0.1:1"))
	ns.RemovePod("web-0")
	ns.CreateReadyPod("web-0")
	ns.register("web-0", "web", "v1", "10.0.0.2:1")
	kubetest.Eventually(t, 10*time.Second, "the second pod is found", has(r, "web", "10.0.0.2:1"))
	// The first pod's process runs on for a while and must not remove the second pod's registration.
	err := own.Deregister(service("web", "v1", "a", "10.0.0.1:1"))
	if err == nil || !strings.Contains(err.Error(), "another pod has this name now") {
		t.Errorf("Deregister by the first pod's process: %v", err)
	}
	if err := has(r, "web", "10.0.0.2:1")(); err != nil {
		t.Error(err)
	}
}

func TestRemovedMetadataIsRestoredAndNothingElseIsPatched(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	proxy := ns.StartProxyWithoutCredentials()
	r := ns.openRegistryIn(proxy.Through(ns.Environment("a")))
	one, two := service("one", "v1", "a", "10.0.0.1:1"), service("two", "v1", "b", "10.0.0.1:2")
	if err := errors.Join(r.Register(one), r.Register(two)); err != nil {
		t.Fatal(err)
	}
	before := ns.GetPod("a")
	if len(before.Annotations) != 2 || !r.Registered() {
		t.Fatalf("annotations %q, registered %v", before.Annotations, r.Registered())
	}
	kubetest.Eventually(t, 10*time.Second, "the registry watches its own pod", func() error {
		if proxy.Count("WATCH") == 0 {
			return errors.New("no watch")
		}
		return nil
	})
	patches := proxy.Count("PATCH")
	for range 20 { // go-micro registers again every 30 s
		if err := errors.Join(r.Register(one), r.Register(two)); err != nil {
			t.Fatal(err)
		}
	}
	if n := proxy.Count("PATCH"); n != patches || n != 2 {
		t.Errorf("%d PATCH for two services, %d after 40 repetitions, want 2 and 2", patches, n)
	}
	ns.PatchPod("a", fmt.Sprintf(`{"metadata":{"labels":{%q:null,%q:null},"annotations":{%q:null,%q:"{}"}}}`,
		podmeta.TypeLabel, podmeta.SelectorPrefix+"one", podmeta.AnnotationPrefix+"one", podmeta.AnnotationPrefix+"two"))
	took := kubetest.Eventually(t, 10*time.Second, "the removed metadata is restored", func() error {
		if p := ns.GetPod("a"); !maps.Equal(p.Labels, before.Labels) || !maps.Equal(p.Annotations, before.Annotations) {
			return fmt.Errorf("%q %q", p.Labels, p.Annotations)
		}
		return nil
	})
	t.Logf("restored after %s", took)
	if err := r.Deregister(one); err != nil {
		t.Fatal(err)
	}
	if p := ns.GetPod("a"); len(p.Annotations) != 1 || p.Labels[podmeta.SelectorPrefix+"one"] != "" || p.Labels[podmeta.SelectorPrefix+"two"] != podmeta.TypeValue {
		t.Errorf("after Deregister of one of two: %q %q", p.Labels, p.Annotations)
	}
	// A deregistered service stays deregistered, and the registrar leaves what another process writes under its name.
	ns.register("a", "one", "v9", "10.0.0.9:9")
	if err := has(r, "two", "10.0.0.1:2")(); err != nil {
		t.Error(err)
	}
	if p := ns.GetPod("a"); !strings.Contains(p.Annotations[podmeta.AnnotationPrefix+"one"], "v9") {
		t.Errorf("another process's registration was removed: %q", p.Annotations)
	}
}

func TestNewProcessInSamePodReplacesRegistration(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	reader := ns.openRegistry("reader")
	first := ns.openRegistry("a")
	if err := first.Register(service("greeter", "v1", "before", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the instance of the first process is found", has(reader, "greeter", "10.0.0.1:1"))
	if err := first.Close(); err != nil { // a killed process does not deregister
		t.Fatal(err)
	}
	second := ns.openRegistry("a")
	if err := second.Register(service("greeter", "v2", "after", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 10*time.Second, "only the second process is registered", func() error {
		all, err := reader.GetService("greeter")
		if err != nil || len(all) != 1 || all[0].Version != "v2" || len(all[0].Nodes) != 1 || all[0].Nodes[0].Id != "after" {
			return fmt.Errorf("%v %v", err, all)
		}
		return nil
	})
}

func TestRegistrationIsRetriedUntilRightsAreGranted(t *testing.T) {
	ns := newNamespace(t, "list", "watch")
	ns.CreateReadyPod("a")
	r := ns.openRegistry("a", registry.Timeout(4*time.Second))
	if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err == nil {
		t.Fatal("Register returned nil without the verb patch")
	}
	ns.GrantVerb("patch")
	kubetest.Eventually(t, 15*time.Second, "the registration is written", func() error {
		if !r.Registered() {
			return errors.New("not registered")
		}
		return nil
	})
}

// podServer is a fake API server that holds one pod. After a patch of the pod's
// labels and annotations, change may alter them.
type podServer struct {
	mu      sync.Mutex
	pod     corev1.Pod
	patches int
	change  func(*corev1.Pod)
	updated broadcast.Broadcast
}

func newPodServer(change func(*corev1.Pod)) *podServer {
	s := &podServer{change: change}
	s.pod = corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "1", ResourceVersion: "1",
		Labels: map[string]string{}, Annotations: map[string]string{}}}
	return s
}

func (s *podServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.Method == http.MethodPatch:
		body, _ := io.ReadAll(r.Body)
		_ = json.NewEncoder(w).Encode(s.patch(body))
	case r.URL.Query().Get("watch") != "":
		for {
			updated := s.updated.Wait()
			s.mu.Lock()
			_ = json.NewEncoder(w).Encode(map[string]any{"type": "MODIFIED", "object": &s.pod})
			s.mu.Unlock()
			w.(http.Flusher).Flush()
			select {
			case <-updated:
			case <-r.Context().Done():
				return
			}
		}
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = json.NewEncoder(w).Encode(corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"},
			ListMeta: metav1.ListMeta{ResourceVersion: s.pod.ResourceVersion}, Items: []corev1.Pod{s.pod}})
	}
}

func (s *podServer) patch(body []byte) *corev1.Pod {
	var p podmeta.Patch
	if err := json.Unmarshal(body, &p); err != nil {
		panic(err)
	}
	return s.edit(func(pod *corev1.Pod) {
		s.patches++
		apply(pod.Labels, p.Metadata.Labels)
		apply(pod.Annotations, p.Metadata.Annotations)
		s.change(pod)
	})
}

// edit changes the pod, as another process may, and returns its new version.
func (s *podServer) edit(change func(*corev1.Pod)) *corev1.Pod {
	s.mu.Lock()
	change(&s.pod)
	version, _ := strconv.Atoi(s.pod.ResourceVersion)
	s.pod.ResourceVersion = strconv.Itoa(version + 1)
	pod := s.pod.DeepCopy()
	s.mu.Unlock()
	s.updated.Notify()
	return pod
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

func (s *podServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.patches
}

// dropLabel acts as an admission webhook that drops the label from each patch.
func dropLabel(p *corev1.Pod) { delete(p.Labels, podmeta.SelectorPrefix+"greeter") }

func TestPatchesAreLimitedWhileRegistrationIsDropped(t *testing.T) {
	api := newPodServer(dropLabel)
	_, env := kubetest.StartFake(t, api)
	r := newRegistry(env, kubernetes.NewRegistry, registry.Timeout(4*time.Second))
	defer r.Close()
	begin := time.Now()
	err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1"))
	if err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("Register: %v, want the error of a contested registration", err)
	}
	time.Sleep(time.Until(begin.Add(5 * time.Second)))
	if n := api.count(); n > 6 {
		t.Errorf("%d PATCH in 5 s, want at most 6", n)
	}
	if r.Registered() || r.registrationError() == nil {
		t.Errorf("Registered is %v, the error %v", r.Registered(), r.registrationError())
	}
}

func TestPatchesAreLimitedWhileTwoProcessesShareAServiceName(t *testing.T) {
	api := newPodServer(func(*corev1.Pod) {})
	_, env := kubetest.StartFake(t, api)
	var both []*Registry
	for _, id := range []string{"first", "second"} {
		r := newRegistry(env, kubernetes.NewRegistry, registry.Timeout(4*time.Second))
		defer r.Close()
		if err := r.Register(service("greeter", "v1", id, "10.0.0.1:1")); err != nil {
			t.Fatal(err)
		}
		both = append(both, r)
	}
	time.Sleep(5 * time.Second)
	if n := api.count(); n > 12 {
		t.Errorf("%d PATCH in 5 s by two processes, want at most 12", n)
	}
	if err := both[0].registrationError(); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("the error is %v", err)
	}
}

// newTestRegistrar returns a registrar that writes to api without a network.
func newTestRegistrar(api *podServer) *registrar {
	r := newRegistrar(&apiserver.Connection{PodName: "a"}, nil, func() {})
	r.patchPod = func(_ context.Context, body []byte) (*corev1.Pod, error) { return api.patch(body), nil }
	r.watchPod = func() {}
	return r
}

func TestPatchesOfContestedRegistrationAreLimited(t *testing.T) {
	text, label := `{"name":"greeter"}`, podmeta.TypeValue
	greeter := podmeta.Metadata{Labels: map[string]*string{podmeta.SelectorPrefix + "greeter": &label}, Annotations: map[string]*string{podmeta.AnnotationPrefix + "greeter": &text}}
	for name, start := range map[string]func(*testing.T) (count func() int, stop func()){
		"an admission webhook drops the label": func(*testing.T) (func() int, func()) {
			api := newPodServer(dropLabel)
			r := newTestRegistrar(api)
			_ = r.setDesired("greeter", &registration{service: &registry.Service{}, metadata: greeter}, 0)
			return api.count, r.stop
		},
		"another process overwrites it at once": func(*testing.T) (func() int, func()) {
			api := newPodServer(func(*corev1.Pod) {})
			r := newTestRegistrar(api)
			r.patchPod = func(_ context.Context, body []byte) (*corev1.Pod, error) {
				written := api.patch(body)
				r.observe(api.edit(func(p *corev1.Pod) { p.Annotations[podmeta.AnnotationPrefix+"greeter"] = "other" })) // the watch delivers this change before the response to the patch
				return written, nil
			}
			_ = r.setDesired("greeter", &registration{service: &registry.Service{}, metadata: greeter}, 0)
			return api.count, r.stop
		},
		"another process removes it a second later": func(*testing.T) (func() int, func()) {
			api := newPodServer(func(*corev1.Pod) {})
			r := newTestRegistrar(api)
			_ = r.setDesired("greeter", &registration{service: &registry.Service{}, metadata: greeter}, 0)
			ended := make(chan struct{})
			var stopped sync.WaitGroup
			stopped.Go(func() {
				for {
					select {
					case <-ended:
						return
					case <-time.After(time.Second):
						r.observe(api.edit(dropLabel))
					}
				}
			})
			return api.count, func() { close(ended); stopped.Wait(); r.stop() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				count, stop := start(t)
				defer stop()
				time.Sleep(time.Minute)
				first := count()
				if first < 3 || first > 10 {
					t.Errorf("%d PATCH in the first minute, want 3 to 10", first)
				}
				for minute := 2; minute <= 10; minute++ {
					before := count()
					time.Sleep(time.Minute)
					if n := count() - before; n > 2 {
						t.Errorf("%d PATCH in minute %d, want at most 2", n, minute)
					}
				}
			})
		})
	}
}

func TestServiceWithLabelKeyOfAnotherIsRefused(t *testing.T) {
	api := newPodServer(func(*corev1.Pod) {})
	_, env := kubetest.StartFake(t, api)
	r := newRegistry(env, kubernetes.NewRegistry, registry.Timeout(4*time.Second))
	defer r.Close()
	if err := r.Register(service("a/b", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	if err := r.Register(service("a:b", "v1", "a", "10.0.0.1:1")); err == nil || !strings.Contains(err.Error(), `"a/b"`) {
		t.Errorf("Register of a name with the same label key: %v", err)
	}
	if err := r.Deregister(service("a:b", "v1", "a", "10.0.0.1:1")); err == nil { // as go-micro's server does when it stops
		t.Error("deregistered a name that was refused")
	}
	time.Sleep(2 * time.Second)
	if n := api.count(); n != 1 || !r.Registered() {
		t.Errorf("%d PATCH, want 1; Registered is %v", n, r.Registered())
	}
	if err := errors.Join(r.Deregister(service("a/b", "v1", "a", "10.0.0.1:1")), r.Register(service("a:b", "v1", "a", "10.0.0.1:1"))); err != nil || !r.Registered() {
		t.Errorf("after the first service has deregistered: %v", err)
	}
}

func TestInvalidRegistrationIsRefusedEachTime(t *testing.T) {
	valid := newPodServer(func(*corev1.Pod) {})
	_, env := kubetest.StartFake(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); bytes.Contains(body, []byte("invalid")) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422,"message":"name part must be no more than 63 bytes"}`)
		} else {
			r.Body = io.NopCloser(bytes.NewReader(body))
			valid.ServeHTTP(w, r)
		}
	}))
	r := newRegistry(env, kubernetes.NewRegistry, registry.Timeout(4*time.Second))
	defer r.Close()
	if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := r.Register(service("invalid", "v1", "a", "10.0.0.1:1")); err == nil || !strings.Contains(err.Error(), "63 bytes") {
			t.Errorf("Register: %v", err)
		}
	}
}

// go-micro calls Register periodically, also while a service begins to stop. A call that began before
// must not write the registration again that the stop removes.
func TestRegisterDuringStopLeavesNoRegistration(t *testing.T) {
	api := newPodServer(func(*corev1.Pod) {})
	_, env := kubetest.StartFake(t, api)
	var inRegister atomic.Pointer[func()]
	getenv := env.Getenv
	env.Getenv = func(name string) string {
		if f := inRegister.Load(); f != nil && name == "POD_IP" {
			(*f)()
		}
		return getenv(name)
	}
	r := newRegistry(env, kubernetes.NewRegistry)
	defer r.Close()
	if err := r.registerInBackground("greeter"); err != nil {
		t.Fatal(err)
	}
	s := service("greeter", "v1", "a", "10.0.0.1:1")
	register := func() {
		if err := r.Register(s); err != nil {
			t.Fatal(err)
		}
	}
	register()
	kubetest.Eventually(t, 10*time.Second, "the pod is registered", equals(r.Registered, true))

	stopped := make(chan struct{})
	stop := func() {
		go func() { r.deregisterAll(); close(stopped) }()
		select {
		case <-stopped:
		case <-time.After(300 * time.Millisecond): // the stop waits for Register
		}
	}
	inRegister.Store(&stop)
	register()
	inRegister.Store(nil)
	<-stopped
	kubetest.Eventually(t, 10*time.Second, "nothing is pending", equals(r.deregistrationPending, false))
	api.mu.Lock()
	defer api.mu.Unlock()
	if len(api.pod.Annotations) != 0 || api.pod.Labels[podmeta.SelectorPrefix+"greeter"] != "" {
		t.Errorf("the pod still carries %v %v", api.pod.Labels, api.pod.Annotations)
	}
}

func TestDeregisterNeedsNoPlugin(t *testing.T) {
	api := newPodServer(func(*corev1.Pod) {})
	_, env := kubetest.StartFake(t, api)
	var broken atomic.Bool
	r := newRegistry(env, func(opts ...registry.Option) registry.Registry {
		if broken.Load() { // as when no file descriptor is left for a listener
			opts = []registry.Option{registry.Addrs("http://127.0.0.1:1")}
		}
		return kubernetes.NewRegistry(opts...)
	}, registry.Timeout(4*time.Second))
	defer r.Close()
	s := service("greeter", "v1", "a", "10.0.0.1:1")
	if err := r.Register(s); err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	if err := r.Deregister(s); err != nil {
		t.Error(err)
	}
	api.mu.Lock()
	defer api.mu.Unlock()
	if len(api.pod.Annotations) != 0 || api.pod.Labels[podmeta.SelectorPrefix+"greeter"] != "" {
		t.Errorf("the pod still carries %v %v", api.pod.Labels, api.pod.Annotations)
	}
}
