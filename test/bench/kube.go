//go:build linux

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/micro/go-micro/v2/registry"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

type object = map[string]any // a Kubernetes object in JSON

// kube makes requests to the API server as administrator. The benchmark acts as
// the kubelet, the scheduler and the services that register.
type kube struct {
	server *url.URL
	client http.Client

	mu       sync.Mutex
	requests map[string]int // requests of the registries by client, namespace and verb
}

func newKube(kubeconfig string) (*kube, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	k := &kube{client: http.Client{Timeout: 10 * time.Second}, requests: map[string]int{}}
	if k.client.Transport, err = rest.TransportFor(config); err != nil {
		return nil, err
	}
	k.server, err = url.Parse(config.Host)
	return k, err
}

// enterPod gives this process the environment of a pod: the files of a service
// account, and the address of the API server in environment variables. The address
// is that of a proxy, which counts the requests and adds the administrator's credentials.
func enterPod(kubeconfig string) (*kube, error) {
	k, err := newKube(kubeconfig)
	if err != nil {
		return nil, err
	}
	forward := &httputil.ReverseProxy{Transport: k.client.Transport, FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(k.server) }}
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.count(r)
		forward.ServeHTTP(w, r)
	}))
	proxy.EnableHTTP2 = true
	proxy.StartTLS()
	at, _ := url.Parse(proxy.URL)
	os.Setenv("KUBERNETES_SERVICE_HOST", at.Hostname())
	os.Setenv("KUBERNETES_SERVICE_PORT", at.Port())
	os.Setenv("POD_IP", "10.0.0.1")                                   // registries replace loopback addresses by this address
	const directory = "/var/run/secrets/kubernetes.io/serviceaccount" // the path that both registries read
	if err := syscall.Mount("tmpfs", "/var/run", "tmpfs", 0, "mode=0755"); err != nil {
		return nil, fmt.Errorf("mounting over /var/run: %w", err)
	}
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chdir(directory); err != nil {
		return nil, err
	}
	if err := os.WriteFile("token", []byte("unused: the proxy sets the credentials"), 0o600); err != nil {
		return nil, err
	}
	if err := k.enterNamespace("bench"); err != nil {
		return nil, err
	}
	return k, os.WriteFile("ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: proxy.Certificate().Raw}), 0o600)
}

// The user agents of the plugin and of pod/.
const pluginAgent, ourAgent = "Go-http-client", "k8s-micro"

func (k *kube) count(r *http.Request) {
	verb := r.Method
	if r.FormValue("watch") != "" {
		verb = "WATCH"
	} else if verb == http.MethodGet {
		verb = "LIST"
	}
	agent, _, _ := strings.Cut(r.UserAgent(), "/")
	k.mu.Lock()
	defer k.mu.Unlock()
	k.requests[agent+" "+strings.Split(r.URL.Path, "/")[4]+" "+verb]++ // /api/v1/namespaces/NAME
}

func (k *kube) counted(agent, namespace, verb string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.requests[agent+" "+namespace+" "+verb]
}

// do makes a request as administrator, without the proxy.
func (k *kube) do(method, path string, body, into any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequest(method, k.server.JoinPath(path).String(), bytes.NewReader(b))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", map[bool]string{false: "application/json", true: "application/strategic-merge-patch+json"}[method == "PATCH"])
	answer, err := k.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if b, err = io.ReadAll(answer.Body); err == nil && answer.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, b)
	}
	if err == nil && into != nil {
		err = json.Unmarshal(b, into)
	}
	return err
}

// enterNamespace creates a namespace and moves this process's pod there. A registry reads
// the namespace when it is created or first used.
func (k *kube) enterNamespace(namespace string) error {
	if err := k.createNamespace(namespace); err != nil {
		return err
	}
	return os.WriteFile("namespace", []byte(namespace), 0o600)
}

func (k *kube) createNamespace(namespace string) error {
	err := k.do("POST", "/api/v1/namespaces", object{"metadata": object{"name": namespace}}, nil)
	if err == nil { // admission requires this account, and no controller runs that would create it
		err = k.do("POST", "/api/v1/namespaces/"+namespace+"/serviceaccounts", object{"metadata": object{"name": "default"}}, nil)
	}
	return err
}

func pods(namespace string) string { return "/api/v1/namespaces/" + namespace + "/pods/" }

// setStatus writes a pod's status as the kubelet does.
func (k *kube) setStatus(namespace, pod string, ready bool) error {
	return k.do("PATCH", pods(namespace)+pod+"/status", object{"status": running(ready, "10.0.0.1")}, nil)
}

// fill creates n pods and returns their names. The pods are registered unless service
// is "", and are Running and Ready if run is set.
func (k *kube) fill(namespace, prefix string, n int, service, address string, run bool) (names []string, err error) {
	var all []object
	for i := range n {
		names = append(names, fmt.Sprintf("%s-%d", prefix, i))
		all = append(all, newPod(names[i], service, address))
	}
	ip := ""
	if run {
		ip, _, _ = strings.Cut(cmp.Or(address, "10.0.0.1"), ":")
	}
	return names, k.create(namespace, all, ip)
}

// create creates pods, 16 at a time. Unless ip is "", they are Running and Ready.
func (k *kube) create(namespace string, all []object, ip string) error {
	work, failed := make(chan object), make(chan error, len(all))
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for p := range work {
				err := k.do("POST", pods(namespace), p, nil)
				if err == nil && ip != "" {
					err = k.do("PATCH", pods(namespace)+p["metadata"].(object)["name"].(string)+"/status", object{"status": running(true, ip)}, nil)
				}
				if err != nil {
					failed <- err
				}
			}
		})
	}
	for _, p := range all {
		work <- p
	}
	close(work)
	workers.Wait()
	close(failed)
	return <-failed // nil if no error occurred
}

// registrationMetadata returns the labels and the annotation that the plugin would write on the
// pod of a service with the Greeter's method.
func registrationMetadata(pod, service, address string) object {
	value := func(name, field string) *registry.Value {
		return &registry.Value{Name: name, Type: name, Values: []*registry.Value{{Name: field, Type: "string"}}}
	}
	b, _ := json.Marshal(registry.Service{Name: service, Version: "latest",
		Endpoints: []*registry.Endpoint{{Name: "Greeter.Hello", Request: value("HelloRequest", "name"), Response: value("HelloResponse", "greeting")}},
		Nodes: []*registry.Node{{Id: pod, Address: address,
			Metadata: map[string]string{"broker": "http", "protocol": "grpc", "registry": "kubernetes", "server": "grpc", "transport": "grpc"}}}})
	return object{"labels": object{"micro.mu/type": "service", "micro.mu/selector-" + service: "service"},
		"annotations": object{"micro.mu/service-" + service: string(b)}}
}

// newPod returns a pod as a Deployment would create it, already scheduled.
func newPod(name, service, address string) object {
	metadata := object{}
	if service != "" {
		metadata = registrationMetadata(name, service, address)
	}
	metadata["name"] = name
	return object{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": object{
		"nodeName": "none", "automountServiceAccountToken": false, "containers": []object{{
			"name": "go-micro-srv", "image": image, "imagePullPolicy": "Always", "ports": []object{{"name": "grpc", "containerPort": 9100}},
			"env": []object{{"name": "POD_NAME", "valueFrom": object{"fieldRef": object{"fieldPath": "metadata.name"}}}}}}}}
}

const image = "846602483/go-micro-srv:kubernetes"

// running returns the status that a kubelet writes for a pod whose container runs.
func running(ready bool, ip string) object {
	now, status := time.Now().UTC().Format(time.RFC3339), map[bool]string{true: "True", false: "False"}[ready]
	var conditions []object
	for _, c := range []string{"Initialized", "Ready", "ContainersReady", "PodScheduled"} {
		conditions = append(conditions, object{"type": c, "status": status, "lastTransitionTime": now})
	}
	digest := strings.Repeat("0", 64)
	return object{"phase": "Running", "podIP": ip, "hostIP": "10.0.0.2", "startTime": now, "conditions": conditions, "containerStatuses": []object{{
		"name": "go-micro-srv", "ready": ready, "restartCount": 0, "image": image, "imageID": image + "@sha256:" + digest,
		"containerID": "containerd://" + digest, "state": object{"running": object{"startedAt": now}}}}}
}

// memoryAPI is a fake API server whose pods can only increase. Clients are measured
// with it without another process on the cores.
type memoryAPI struct {
	*httptest.Server
	mu      sync.Mutex
	items   []json.RawMessage
	changed chan struct{} // closed when items grows
}

func newMemoryAPI() *memoryAPI {
	a := &memoryAPI{changed: make(chan struct{})}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		items, changed := a.read()
		if r.FormValue("watch") == "" {
			_ = json.NewEncoder(w).Encode(object{"apiVersion": "v1", "kind": "PodList", "metadata": object{"resourceVersion": strconv.Itoa(len(items))}, "items": items})
			return
		}
		for seen, _ := strconv.Atoi(r.FormValue("resourceVersion")); ; items, changed = a.read() {
			for ; seen < len(items); seen++ {
				_ = json.NewEncoder(w).Encode(object{"type": "ADDED", "object": items[seen]})
			}
			_ = http.NewResponseController(w).Flush()
			select {
			case <-changed:
			case <-r.Context().Done():
				return
			}
		}
	}))
	return a
}

func (a *memoryAPI) read() ([]json.RawMessage, chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.items, a.changed
}

// list reads all pods once, so that the server has all that it needs to answer.
func (a *memoryAPI) list() error {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get(a.URL)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// add adds a registered pod that is Running and Ready.
func (a *memoryAPI) add(service, address string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	name := fmt.Sprintf("pod-%d", len(a.items))
	ip, _, _ := strings.Cut(address, ":")
	p := newPod(name, service, address)
	p["metadata"].(object)["uid"], p["metadata"].(object)["resourceVersion"], p["status"] = name, strconv.Itoa(len(a.items)+1), running(true, ip)
	b, _ := json.Marshal(p)
	a.items = append(a.items, b)
	close(a.changed)
	a.changed = make(chan struct{})
}

// enterKubeconfig makes this process read the fake API server as a laptop reads a real one.
func (a *memoryAPI) enterKubeconfig() error {
	f, err := os.CreateTemp("", "bench-kubeconfig-")
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, "apiVersion: v1\nkind: Config\ncurrent-context: bench\nclusters: [{name: bench, cluster: {server: %q}}]\ncontexts: [{name: bench, context: {cluster: bench}}]\n", a.URL)
	os.Setenv("KUBECONFIG", f.Name())
	return err
}
