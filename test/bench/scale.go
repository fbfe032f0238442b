//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

const (
	podsPerService   = 30
	podSize          = 9000 // bytes of JSON, as of a pod with a few containers, volumes and variables
	changesPerSecond = 20
)

// scale measures what watching clients cost the API server: every client watches the
// pods of one service of a namespace, and every change of a pod in this namespace is
// compared with every watch.
func scale(n sizes) (string, error) {
	kubeconfig, down, err := controlPlane()
	if err != nil {
		return "", err
	}
	markdown, err := measureScale(n, kubeconfig)
	return markdown, errors.Join(err, down())
}

const scaleNamespace = "scale"

func service(i int) string { return fmt.Sprint("service-", i) }

func measureScale(n sizes, kubeconfig string) (string, error) {
	k, err := newKube(kubeconfig)
	if err != nil {
		return "", err
	}
	if err := k.createNamespace(scaleNamespace); err != nil {
		return "", err
	}
	if err := k.enterServiceAccount(kubeconfig); err != nil {
		return "", err
	}
	services := n.Pods / podsPerService
	progress("creating %d pods of %d bytes (1 minute)", n.Pods, podSize)
	var all []object
	for i := range n.Pods {
		p := newPod(podName(i), service(i%services), "10.0.0.1:9100")
		b, _ := json.Marshal(object{"metadata": p["metadata"], "spec": p["spec"], "status": running(true, "10.0.0.1")})
		p["metadata"].(object)["annotations"].(object)["bench/padding"] = strings.Repeat("x", max(0, podSize-len(b)-2700)) // the API server adds 2700
		all = append(all, p)
	}
	if err := k.create(scaleNamespace, all, "10.0.0.1"); err != nil {
		return "", err
	}
	var stored json.RawMessage
	if err := k.do("GET", pods(scaleNamespace)+podName(0), nil, &stored); err != nil {
		return "", err
	}

	t := newTable("API server CPU per change", "per change and watcher", "bytes per change and watcher", "write to seen, p50 / p99", "all connected and current")
	var idle, last float64
	for _, watchers := range n.Watchers {
		c, err := k.watched(n, services, watchers, false)
		if err != nil {
			return "", err
		}
		if watchers == 0 {
			idle = c.cpu
			t.row("no watchers", cpu(c.cpu), "", "", "", "")
			continue
		}
		last = (c.cpu - idle) / float64(watchers)
		t.row(fmt.Sprintf("%d watchers", watchers), cpu(c.cpu), cpu(last), fmt.Sprintf("%.0f", c.bytes/float64(watchers)), percentiles(c.seen), format(c.connected))
	}
	most := n.Watchers[len(n.Watchers)-1] / 5
	same, err := k.watched(n, services, most, true)
	if err != nil {
		return "", err
	}
	matching := (same.cpu - idle) / float64(most)
	t.row(fmt.Sprintf("%d watchers of one service, which alone changes", most), cpu(same.cpu), cpu(matching), fmt.Sprintf("%.0f", same.bytes/float64(most)), percentiles(same.seen), format(same.connected))

	// Of the most watchers, one in services gets the change: last = slope + delivery/services. Of
	// the watchers of one service, all get it: matching = slope + delivery.
	delivery := (matching - last) / (1 - 1/float64(services))
	slope := last - delivery/float64(services)

	// The formula for the largest cluster that Kubernetes tests. Each service has as many
	// clients as it has pods, times the services that each of them calls.
	const nodes, podsPerNode, called, changes = 5000, 30, 3, 400
	const watches = nodes * podsPerNode * called
	const watchesOfService = podsPerService * called
	cores := func(namespaces int) float64 {
		return changes * (slope*watches/float64(namespaces) + delivery*watchesOfService)
	}
	paper := newTable("one namespace", "100 namespaces")
	paper.row("5,000 nodes, CPU cores of the API server", twoDigits(cores(1)), twoDigits(cores(100)))
	return t.String() + fmt.Sprintf(`
One namespace has %d pods of %d bytes (JSON) in services of %d; each watcher is a pod.Registry with a connection of its own, which watches one service; all use one service account;
%d times a second one pod becomes ready or not ready, for %s. CPU is that of kube-apiserver (process_cpu_seconds_total), etcd and the clients share the machine's cores with it; the cost
per watcher is what exceeds the cost without watchers. Bytes are those of watch events (apiserver_watch_events_sizes). *Write to seen* is from the start of the request until registry.Watch
returns the change to each watcher. *Connected* is the time for all watchers to connect, list and see a change, when all of them start at once. The API server terminated no watcher (apiserver_terminated_watchers_total).

**Slope.** The API server compares each change of a pod with each label-selector watch of its namespace: %s of CPU for each watcher, whether the watcher
asked for this service or not, and %s more for each watcher that gets the change. So:

    CPU cores = changes per second * (%.2g µs * watchers of the namespace + %.2g µs * watchers of the service)

The first part uses a whole core when changes per second times watchers of the namespace reach %s.

On paper, a cluster of %d nodes with %d pods each, every pod a client of %d services of %d pods, has %d watches. At %d changes a second (100 pods a second are created or deleted, with
4 changes each) they cost:

`, n.Pods, len(stored), podsPerService, changesPerSecond, n.Changing, cpu(slope), cpu(delivery), 1e6*slope, 1e6*delivery, twoDigits(1/slope),
		nodes, podsPerNode, called, podsPerService, watches, changes) + paper.String(), nil
}

// twoDigits formats an estimate, which deserves no more digits.
func twoDigits(f float64) string {
	f, _ = strconv.ParseFloat(fmt.Sprintf("%.1e", f), 64)
	return strconv.FormatFloat(f, 'f', -1, 64)
}

func podName(i int) string { return fmt.Sprint("pod-", i) }

func cpu(seconds float64) string { return format(time.Duration(seconds * float64(time.Second))) }

// watchCost is what one number of watchers costs.
type watchCost struct {
	cpu       float64         // seconds per change
	bytes     float64         // per change
	seen      []time.Duration // from write to each watcher
	connected time.Duration   // until all watchers had listed and had seen a change
}

// watched measures with a number of watchers. If same is set, all of them watch the
// first service, and only its pods change.
func (k *kube) watched(n sizes, services, watchers int, same bool) (c watchCost, err error) {
	progress("%d watchers (%s)", watchers, n.Changing+10*time.Second)
	before, err := k.metrics()
	if err != nil {
		return c, err
	}
	seen := &sightings{sent: map[string]time.Time{}, ready: map[string]bool{}}
	start := time.Now()
	var stops []func()
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()
	var starting sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	watched := map[int]bool{} // services
	for i := range watchers {
		s := i % services
		if same {
			s = 0
		}
		watched[s] = true
		starting.Go(func() {
			r := pod.NewRegistry(kubernetes.NewRegistry)
			w, err := r.Watch(registry.WatchService(service(s)))
			for err != nil && time.Since(start) < 3*time.Minute { // the first LIST may take longer than the 5 s that Watch waits for it
				time.Sleep(100 * time.Millisecond)
				w, err = r.Watch(registry.WatchService(service(s)))
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, err)
				return
			}
			stops = append(stops, func() { w.Stop(); _ = r.Close() })
			go seen.read(seen.add(s, services), w)
		})
	}
	starting.Wait()
	if len(failed) > 0 {
		return c, fmt.Errorf("watching: %d of %d watchers not connected within 3 minutes: %w", len(failed), watchers, failed[0])
	}
	change := func(i int) error {
		return k.setStatus(scaleNamespace, podName(i), seen.change(podName(i)))
	}
	// One change of each service that is watched shows that all watchers are current.
	for s := range watched {
		if err := change(s); err != nil {
			return c, err
		}
	}
	if err := seen.wait(); err != nil {
		return c, err
	}
	c.connected = time.Since(start)
	time.Sleep(settle)
	seen.mu.Lock()
	seen.took = nil
	seen.mu.Unlock()
	from, err := k.metrics()
	if err != nil {
		return c, err
	}
	changed := 0
	tick := time.NewTicker(time.Second / changesPerSecond)
	defer tick.Stop()
	for end := time.Now().Add(n.Changing); time.Now().Before(end); changed++ {
		i := changed % n.Pods // one service after the other
		if same {
			i = changed % podsPerService * services
		}
		if err := change(i); err != nil {
			return c, err
		}
		<-tick.C
	}
	if err := seen.wait(); err != nil {
		return c, err
	}
	to, err := k.metrics()
	if err != nil {
		return c, err
	}
	if terminated := to["apiserver_terminated_watchers_total"] - before["apiserver_terminated_watchers_total"]; terminated > 0 {
		return c, fmt.Errorf("the API server terminated %.0f watchers", terminated)
	}
	c.cpu = (to["process_cpu_seconds_total"] - from["process_cpu_seconds_total"]) / float64(changed)
	c.bytes = (to["apiserver_watch_events_sizes_sum"] - from["apiserver_watch_events_sizes_sum"]) / float64(changed)
	seen.mu.Lock()
	c.seen = seen.took
	seen.took = nil
	seen.mu.Unlock()
	for i := range n.Pods { // all pods are ready again for the next number
		if ready, ok := seen.ready[podName(i)]; ok && !ready {
			if err := change(i); err != nil {
				return c, err
			}
		}
	}
	return c, seen.wait()
}

// sightings records when watchers see changes.
type sightings struct {
	mu       sync.Mutex
	sent     map[string]time.Time // by pod
	ready    map[string]bool      // the state that was written last; a pod that is missing is ready
	watchers []*sighted
	took     []time.Duration
}

// sighted is what one watcher has seen of the pods of its service.
type sighted struct {
	pods     map[string]bool // of the service
	notReady map[string]bool
}

func (s *sightings) add(service, services int) *sighted {
	w := &sighted{pods: map[string]bool{}, notReady: map[string]bool{}}
	for i := range podsPerService {
		w.pods[podName(service+i*services)] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers = append(s.watchers, w)
	return w
}

// change returns the next state of a pod, which the caller writes.
func (s *sightings) change(pod string) (ready bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	current, ok := s.ready[pod]
	ready = ok && !current
	s.sent[pod], s.ready[pod] = time.Now(), ready
	return ready
}

func (s *sightings) read(w *sighted, from registry.Watcher) {
	for {
		r, err := from.Next()
		if err != nil {
			return // stopped
		}
		s.mu.Lock()
		for _, n := range r.Service.Nodes {
			w.notReady[n.Id] = r.Action == "delete"
			if s.ready[n.Id] == (r.Action != "delete") {
				s.took = append(s.took, time.Since(s.sent[n.Id]))
			}
		}
		s.mu.Unlock()
	}
}

// wait waits until all watchers have seen the last state of all pods.
func (s *sightings) wait() error {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		missing := 0
		s.mu.Lock()
		for pod, ready := range s.ready {
			for _, w := range s.watchers {
				if w.pods[pod] && w.notReady[pod] == ready {
					missing++
				}
			}
		}
		s.mu.Unlock()
		if missing == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("waiting for the watchers: %d changes not seen within 30 s", missing)
		}
	}
}

// metrics returns the sums of kube-apiserver's metrics, over all labels but with the resource
// pods where there is one.
func (k *kube) metrics() (map[string]float64, error) {
	rsp, err := k.client.Get(k.server.JoinPath("/metrics").String())
	if err != nil {
		return nil, err
	}
	defer rsp.Body.Close()
	if rsp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(rsp.Body)
		return nil, fmt.Errorf("reading the metrics of kube-apiserver: %s: %s", rsp.Status, b)
	}
	sums := map[string]float64{}
	lines := bufio.NewScanner(rsp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		at := strings.LastIndexByte(lines.Text(), ' ')
		if strings.HasPrefix(lines.Text(), "#") || at < 0 {
			continue
		}
		name, labels, _ := strings.Cut(lines.Text()[:at], "{")
		if strings.Contains(labels, `resource="`) && !strings.Contains(labels, `resource="pods"`) {
			continue
		}
		v, err := strconv.ParseFloat(lines.Text()[at+1:], 64)
		if err != nil {
			return nil, err
		}
		sums[name] += v
	}
	if sums["process_cpu_seconds_total"] == 0 {
		return nil, errors.New("reading the metrics of kube-apiserver: there is no process_cpu_seconds_total")
	}
	return sums, lines.Err()
}

// enterServiceAccount makes the registries of this process use a service account that may
// list and watch pods, so that the API server's fairness applies to them as to real clients.
func (k *kube) enterServiceAccount(kubeconfig string) error {
	const rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/" + scaleNamespace
	var token struct{ Status struct{ Token string } }
	err := errors.Join(
		k.do("POST", rbac+"/roles", object{"metadata": object{"name": "watcher"}, "rules": []object{{"apiGroups": []string{""}, "resources": []string{"pods"}, "verbs": []string{"list", "watch"}}}}, nil),
		k.do("POST", rbac+"/rolebindings", object{"metadata": object{"name": "watcher"}, "roleRef": object{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "watcher"},
			"subjects": []object{{"kind": "ServiceAccount", "name": "default", "namespace": scaleNamespace}}}, nil),
		k.do("POST", "/api/v1/namespaces/"+scaleNamespace+"/serviceaccounts/default/token", object{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": object{}}, &token))
	if err != nil {
		return err
	}
	admin, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		return err
	}
	context := admin.Contexts[admin.CurrentContext]
	context.Namespace, context.AuthInfo = scaleNamespace, "watcher"
	admin.AuthInfos = map[string]*api.AuthInfo{"watcher": {Token: token.Status.Token}}
	f, err := os.CreateTemp("", "bench-kubeconfig-")
	if err != nil {
		return err
	}
	f.Close()
	os.Setenv("KUBECONFIG", f.Name())
	return clientcmd.WriteToFile(*admin, f.Name())
}
