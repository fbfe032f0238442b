// Package move tests the move of services from an old registry to pods, with real processes and a real
// API server. The old registry is a real etcd, or a fake of Consul's HTTP API. The test is the kubelet: it makes the pods, and a pod is ready when its
// process has registered. See docs/moving.md.
package move

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(processVariable); text != "" {
		var p process
		err := json.Unmarshal([]byte(text), &p)
		if err == nil {
			err = p.main()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(kubetest.Main(m))
}

// field is a namespace, an old registry, and the processes that run.
type field struct {
	*kubetest.Namespace
	t    *testing.T
	name string // of the old registry
	oldServer
	running map[string][]*instance // by kind
	made    int
	total   map[string]counts // by kind
	down    bool              // the old registry is
	old     []string          // addresses of processes without pod/
	abrupt  int               // calls that failed because one of these had closed its port
}

// maxAbrupt is how many calls may fail because a process without pod/ closes its port as soon as it has deregistered. The retry of their
// callers, 100 ms later, usually goes to another one. Before the move every rollout is like that.
const maxAbrupt = 10

// oldServer is the server of an old registry. The test asks it without go-micro's registry, which cannot be closed.
type oldServer struct {
	address   string
	addresses func(service string) ([]string, error)
	run, kill func() // of a server that the test stops and starts again with its data, nil otherwise
}

// instance is a running process.
type instance struct {
	process
	name    string // of its pod
	command *exec.Cmd
	log     *output
	results chan string // "ready", and the counts
}

// output takes what a process prints. It passes on the lines of results, and keeps the others: go-micro logs to stdout.
type output struct {
	results chan string

	mu   sync.Mutex
	line []byte // the beginning of the next one
	log  []string
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.line = append(o.line, b...)
	for {
		line, rest, found := bytes.Cut(o.line, []byte("\n"))
		if !found {
			return len(b), nil
		}
		o.line = rest
		if text := string(line); text == "ready" || strings.HasPrefix(text, `{"Calls":`) {
			o.results <- text
		} else {
			o.log = append(o.log, text)
			if !strings.Contains(text, "level=info") {
				fmt.Fprintln(os.Stderr, text)
			}
		}
	}
}

// count returns how many lines of the log have a text.
func (o *output) count(text string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, line := range o.log {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func newField(t *testing.T, name string, start func(*testing.T, *kubetest.Server) oldServer) *field {
	t.Helper()
	f := &field{Namespace: kubetest.NewNamespace(t), t: t, name: name, running: map[string][]*instance{}, total: map[string]counts{}}
	f.oldServer = start(t, f.Server)
	t.Cleanup(func() {
		for _, all := range f.running {
			for _, i := range all {
				_ = i.command.Process.Kill()
				_ = i.command.Wait()
			}
		}
	})
	return f
}

// freeAddress returns an address on which nobody listens.
func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startEtcd starts an etcd that ends with the test.
func startEtcd(t *testing.T, s *kubetest.Server) oldServer {
	t.Helper()
	address, peer, data := freeAddress(t), freeAddress(t), t.TempDir()
	var c *exec.Cmd
	old := oldServer{address: address, addresses: func(service string) ([]string, error) { return addressesInEtcd(address, service) }}
	old.run = func() {
		c = exec.Command(s.EtcdProgram(t), "--data-dir="+data, "--listen-client-urls=http://"+address, "--advertise-client-urls=http://"+address,
			"--listen-peer-urls=http://"+peer, "--initial-advertise-peer-urls=http://"+peer, "--initial-cluster=default=http://"+peer, "--log-level=error")
		c.Args[0] = "etcd" // Kubernetes and etcd are one program, which asks for its name
		c.Stderr = os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	old.kill = func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	old.run()
	t.Cleanup(func() { old.kill() })
	kubetest.Eventually(t, 20*time.Second, "etcd answers", func() error {
		_, err := old.addresses(kindServer)
		return err
	})
	return old
}

// addressesInEtcd returns the addresses of a service. etcd serves its gRPC methods as JSON too.
func addressesInEtcd(address, service string) ([]string, error) {
	key := "/micro/registry/" + service
	request, err := json.Marshal(map[string][]byte{"key": []byte(key + "/"), "range_end": []byte(key + "0")}) // 0 follows /
	if err != nil {
		return nil, err
	}
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	rsp, err := c.Post("http://"+address+"/v3/kv/range", "application/json", bytes.NewReader(request))
	if err != nil {
		return nil, err
	}
	defer rsp.Body.Close()
	var reply struct{ Kvs []struct{ Value []byte } }
	if err := json.NewDecoder(rsp.Body).Decode(&reply); err != nil {
		return nil, err
	}
	var addresses []string
	for _, kv := range reply.Kvs {
		var s registry.Service
		if err := json.Unmarshal(kv.Value, &s); err != nil {
			return nil, err
		}
		for _, n := range s.Nodes {
			addresses = append(addresses, n.Address)
		}
	}
	return addresses, nil
}

// start starts a process and waits until its callers find it, or until it has made its first calls.
func (f *field) start(kind, stage string) {
	f.t.Helper()
	f.made++
	i := &instance{name: fmt.Sprintf("%s-%d", kind, f.made), process: process{Kind: kind, Stage: stage, Old: f.name, OldAddress: f.address, Variables: map[string]string{}}}
	if kind == kindServer || kind == kindWeb {
		i.Listen = freeAddress(f.t)
		// pod/ refuses to register 127.0.0.1, which no other pod can reach.
		i.Advertise = strings.Replace(i.Listen, "127.0.0.1", "LOCALHOST", 1)
	}
	if stage != inOld {
		f.CreatePod(i.name)
		env := f.Environment(i.name)
		i.ServiceAccountDir = env.ServiceAccountDir
		for _, k := range []string{"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "POD_NAME", "HOSTNAME"} {
			i.Variables[k] = env.Getenv(k)
		}
	}
	text, err := json.Marshal(i.process)
	if err != nil {
		f.t.Fatal(err)
	}
	i.command = exec.Command(os.Args[0])
	i.command.Env = append(os.Environ(), processVariable+"="+string(text), "MICRO_LOG_LEVEL=info")
	i.results = make(chan string, 2)
	i.log = &output{results: i.results}
	i.command.Stdout, i.command.Stderr = i.log, os.Stderr
	i.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := i.command.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.running[kind] = append(f.running[kind], i)
	if stage == inOld && i.Listen != "" {
		f.old = append(f.old, i.Listen)
	}
	if i.Listen == "" {
		if line := i.result(f.t); line != "ready" {
			f.t.Fatalf("%s in stage %s prints %q", kind, stage, line)
		}
		return
	}
	kubetest.Eventually(f.t, 30*time.Second, kind+" in stage "+stage+" is registered", func() error {
		if stage != inOld && !f.Registered(i.name, kind) {
			return errors.New("not on its pod")
		}
		if stage != onPods && !f.down && !f.inOld(i) {
			return errors.New("not in the old registry")
		}
		return nil
	})
	if stage != inOld {
		f.SetStatus(i.name, corev1.PodRunning, corev1.ConditionTrue)
	}
}

// inOld reports whether the old registry has an instance.
func (f *field) inOld(i *instance) bool {
	f.t.Helper()
	all, err := f.addresses(i.Kind)
	if err != nil {
		f.t.Fatal(err)
	}
	return slices.Contains(all, i.Advertise)
}

// stop stops the oldest process of a kind, as the kubelet does, and waits for its end.
func (f *field) stop(kind string) {
	f.t.Helper()
	i := f.running[kind][0]
	f.running[kind] = f.running[kind][1:]
	if i.Stage != inOld {
		f.TerminatePod(i.name)
	}
	if err := i.command.Process.Signal(syscall.SIGTERM); err != nil {
		f.t.Fatal(err)
	}
	if i.Listen == "" {
		c := i.counts(f.t)
		for _, e := range c.Errors {
			if f.isAbrupt(e) {
				f.abrupt++
				c.Failures--
				continue
			}
			f.t.Errorf("%s in stage %s: %s", kind, i.Stage, e)
		}
		sum := f.total[kind]
		sum.Calls += c.Calls
		sum.Failures += c.Failures
		f.total[kind] = sum
	}
	if err := i.command.Wait(); err != nil {
		f.t.Errorf("%s in stage %s: %v", kind, i.Stage, err)
	}
	if i.Stage != inOld {
		f.RemovePod(i.name)
	}
	if i.Listen != "" && !f.down && f.inOld(i) {
		f.t.Errorf("%s in stage %s has stopped and is still in the old registry", kind, i.Stage)
	}
}

// isAbrupt reports whether a call has failed because a process without pod/ had closed its port.
func (f *field) isAbrupt(e string) bool {
	return strings.Contains(e, "connection refused") && slices.ContainsFunc(f.old, func(address string) bool { return strings.Contains(e, address+":") })
}

// result waits for the next result of a client or a reader.
func (i *instance) result(t *testing.T) string {
	t.Helper()
	select {
	case line := <-i.results:
		return line
	case <-time.After(time.Minute):
		t.Fatalf("%s in stage %s prints nothing", i.Kind, i.Stage)
		return ""
	}
}

// counts reads what a client or a reader prints at its end.
func (i *instance) counts(t *testing.T) (c counts) {
	t.Helper()
	if err := json.Unmarshal([]byte(i.result(t)), &c); err != nil {
		t.Errorf("%s in stage %s: %v", i.Kind, i.Stage, err)
	}
	return c
}

// move replaces the processes of a kind by those of another stage, one after the other.
func (f *field) move(kind, stage string) {
	f.t.Helper()
	begin := time.Now()
	for range len(f.running[kind]) {
		f.start(kind, stage)
		f.stop(kind)
	}
	f.t.Logf("%s to %s in %.1f s", kind, stage, time.Since(begin).Seconds())
}

// begin starts two servers of each kind, a client and a reader, as they were before the move.
func (f *field) begin() {
	f.t.Helper()
	for range 2 {
		f.start(kindServer, inOld)
		f.start(kindWeb, inOld)
	}
	f.start(kindClient, inOld)
	f.start(kindReader, inOld)
}

// end stops the client and the reader, and checks what they have counted.
func (f *field) end() {
	f.t.Helper()
	f.stop(kindClient)
	f.stop(kindReader)
	for kind, c := range f.total {
		f.t.Logf("%s: %d calls, %d failed, with %d callers", kind, c.Calls, c.Failures, callers)
		if c.Calls < 100 || c.Failures > 0 {
			f.t.Errorf("%s: %d of %d calls failed", kind, c.Failures, c.Calls)
		}
	}
	f.t.Logf("%d calls failed because a process without pod/ had closed its port", f.abrupt)
	if f.abrupt > maxAbrupt {
		f.t.Errorf("%d calls failed because a process without pod/ had closed its port, want at most %d", f.abrupt, maxAbrupt)
	}
}

func TestMoveFromEtcdLosesNoCall(t *testing.T) {
	f := newField(t, "etcd", startEtcd)
	f.begin()
	// Each service moves, back, and again, in different orders.
	for _, kind := range []string{kindServer, kindClient, kindWeb, kindReader} {
		f.move(kind, inBoth)
		f.move(kind, inOld)
		f.move(kind, inBoth)
	}
	for _, kind := range []string{kindReader, kindServer, kindWeb, kindClient} {
		f.move(kind, onPods)
		f.move(kind, inBoth)
		f.move(kind, onPods)
	}
	// All the way back.
	for _, kind := range []string{kindClient, kindWeb, kindServer, kindReader} {
		f.move(kind, inBoth)
	}
	for _, kind := range []string{kindWeb, kindReader, kindClient, kindServer} {
		f.move(kind, inOld)
	}
	f.end()
}

// TestOutageOfOldRegistryLosesNoCall kills etcd in the middle of the move, for longer than the time to live of its registrations. One
// server is known to etcd only. One process of each kind that has moved to both is replaced meanwhile.
func TestOutageOfOldRegistryLosesNoCall(t *testing.T) {
	f := newField(t, "etcd", startEtcd)
	f.begin()
	all := []string{kindServer, kindWeb, kindClient, kindReader}
	for _, kind := range []string{kindWeb, kindClient, kindReader} {
		f.move(kind, inBoth)
	}
	f.start(kindServer, inBoth)
	f.stop(kindServer)
	const trouble, end = `registry "etcd", which pod.Also names: `, `Registry "etcd", which pod.Also names, works again`
	f.kill()
	f.down = true
	time.Sleep(ttl + 2*time.Second)
	var replaced []*instance
	for _, kind := range all {
		last := len(f.running[kind]) - 1
		replaced = append(replaced, f.running[kind][last])
		f.start(kind, inBoth)
		if last > 0 { // the first server is known to etcd only
			f.running[kind][0], f.running[kind][1] = f.running[kind][1], f.running[kind][0]
		}
		f.stop(kind)
	}
	for _, i := range replaced {
		if n := i.log.count(trouble); n > 1 || n == 0 && i.Kind != kindClient { // a client asks etcd only once a minute
			t.Errorf("%s has logged the outage %d times, want once", i.Kind, n)
		}
	}
	for _, kind := range []string{kindServer, kindWeb} {
		for _, i := range f.running[kind] {
			if i.Stage == inBoth && !f.Registered(i.name, kind) {
				t.Errorf("%s is not registered on its pod", i.name)
			}
		}
	}
	f.run()
	f.down = false
	kubetest.Eventually(t, 90*time.Second, "etcd has all running instances, and only them", func() error {
		for _, kind := range []string{kindServer, kindWeb} {
			found, err := f.addresses(kind)
			if err != nil {
				return err
			}
			var want []string
			for _, i := range f.running[kind] {
				want = append(want, i.Advertise)
			}
			slices.Sort(found)
			slices.Sort(want)
			if !slices.Equal(found, want) {
				return fmt.Errorf("%s has %v, want %v", kind, found, want)
			}
		}
		return nil
	})
	for _, kind := range all {
		i := f.running[kind][len(f.running[kind])-1]
		kubetest.Eventually(t, 60*time.Second, kind+" logs the end of the outage", func() error {
			if begins, ends := i.log.count(trouble), i.log.count(end); begins != ends || begins > 1 || begins == 0 && kind != kindClient {
				return fmt.Errorf("it has logged the outage %d times, and its end %d times", begins, ends)
			}
			return nil
		})
	}
	for _, kind := range all {
		f.move(kind, onPods)
	}
	f.end()
}

func TestMoveFromConsulLosesNoCall(t *testing.T) {
	f := newField(t, "consul", startConsul)
	f.begin()
	for _, stage := range []string{inBoth, inOld, inBoth, onPods, inBoth, inOld} {
		for _, kind := range []string{kindWeb, kindClient, kindServer, kindReader} {
			f.move(kind, stage)
		}
	}
	f.end()
}
