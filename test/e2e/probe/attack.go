package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/micro/go-micro/v2/registry"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// attackResult counts the results of the attacks since the start.
type attackResult struct {
	Registrations int // own registrations that the API server accepted, each as large as the policy allows
	Refused       int // requests to the API server that it refused, as it should
	Misdirected   int // requests with a foreign Host that were answered with 421
	BadNames      int // unprintable names that were answered with 4xx
	Connections   int // connections to the web service that were opened

	Succeeded []string // attacks that should be refused and were not
	Errors    int      // other errors, which are expected while a server limits its connections
	LastError string
}

type attacker struct {
	mu     sync.Mutex
	result attackResult
}

func (a *attacker) count(f func(*attackResult)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.result)
}

func (a *attacker) failed(err error) {
	a.count(func(r *attackResult) { r.Errors++; r.LastError = err.Error() })
}

// attack does everything that a compromised pod can do to other services, until the
// pod ends, and prints the result once a second. With a URL it also attacks the
// web service there.
func attack(args []string) error {
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	config.QPS = -1
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	var a attacker
	go a.attackRegistry(api)
	if len(args) > 0 {
		target, err := url.Parse(args[0])
		if err != nil {
			return err
		}
		go a.attackRequests(target)
		for range 5000 {
			go a.repeat(func() error { return a.slowBody(target) })
		}
		for range 3000 {
			go a.repeat(func() error { return a.eventStream(target) })
		}
	}
	out := json.NewEncoder(os.Stdout)
	for range time.Tick(time.Second) {
		a.mu.Lock()
		r := a.result
		a.mu.Unlock()
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// repeat makes an attack again and again, at most once a second.
func (a *attacker) repeat(attack func() error) {
	for ; ; time.Sleep(time.Second) {
		if err := attack(); err != nil {
			a.failed(err)
		}
	}
}

// attackRegistry registers and deregisters a registration almost as large as Kubernetes allows, ten
// times a second. It also makes requests that Kubernetes and k8s/pod-admission.yaml must refuse.
func (a *attacker) attackRegistry(api kubernetes.Interface) {
	const namespace = "go-micro"
	self, ip := os.Getenv("POD_NAME"), ownIP()
	pods := api.CoreV1().Pods(namespace)
	patch := func(pod string, metadata map[string]any) error {
		b, err := json.Marshal(map[string]any{"metadata": metadata})
		if err == nil {
			_, err = pods.Patch(pod, types.StrategicMergePatchType, b)
		}
		return err
	}
	register := func(service, annotation string) map[string]any {
		return map[string]any{
			"labels":      map[string]any{"micro.mu/type": "service", "micro.mu/selector-" + service: "service"},
			"annotations": map[string]any{"micro.mu/service-" + service: annotation}}
	}
	expectRefusal := func(what string, err error) {
		switch {
		case err == nil:
			a.count(func(r *attackResult) { r.Succeeded = append(r.Succeeded, what) })
		case apierrors.IsForbidden(err) || apierrors.IsInvalid(err):
			a.count(func(r *attackResult) { r.Refused++ })
		default:
			a.failed(err)
		}
	}
	for round := 0; ; round++ {
		s := registry.Service{Name: self, Version: fmt.Sprint(round)}
		for i := range 16 {
			s.Nodes = append(s.Nodes, &registry.Node{Id: fmt.Sprint(i), Address: fmt.Sprintf("%s:%d", ip, i+1)})
		}
		for i := range 3500 {
			s.Endpoints = append(s.Endpoints, &registry.Endpoint{Name: fmt.Sprint("E", i)})
		}
		b, err := json.Marshal(s)
		if err != nil {
			a.failed(err)
			return
		}
		large := string(b) + strings.Repeat(" ", 240<<10-len(b))
		if err := patch(self, register(self, large)); err != nil {
			a.failed(err)
		} else {
			a.count(func(r *attackResult) { r.Registrations++ })
		}
		time.Sleep(50 * time.Millisecond)
		if err := patch(self, map[string]any{"labels": map[string]any{"micro.mu/selector-" + self: nil}, "annotations": map[string]any{"micro.mu/service-" + self: nil}}); err != nil {
			a.failed(err)
		}
		time.Sleep(50 * time.Millisecond)
		if round%10 != 0 {
			continue
		}
		stolen := fmt.Sprintf(`{"name":"go-micro-srv","version":"latest","nodes":[{"id":"attacker","address":"%s:9100"}]}`, ip)
		expectRefusal("registering another service", patch(self, register("go-micro-srv", stolen)))
		expectRefusal("registering a new service", patch(self, register(fmt.Sprint("new-", round), stolen)))
		expectRefusal("registering 300 KiB", patch(self, register(self, large+strings.Repeat(" ", 60<<10))))
		expectRefusal("changing the label app", patch(self, map[string]any{"labels": map[string]any{"app": "go-micro-srv"}}))
	}
}

// attackRequests makes the requests of a web site in somebody's browser.
func (a *attacker) attackRequests(target *url.URL) {
	client := &http.Client{Timeout: 5 * time.Second}
	for ; ; time.Sleep(500 * time.Millisecond) {
		rebound, err := http.NewRequest("GET", target.JoinPath("services.json").String(), nil)
		if err != nil {
			a.failed(err)
			return
		}
		rebound.Host = "evil.example:9200"
		if rsp, err := client.Do(rebound); err != nil {
			a.failed(err)
		} else if rsp.Body.Close(); rsp.StatusCode == http.StatusMisdirectedRequest {
			a.count(func(r *attackResult) { r.Misdirected++ })
		} else if rsp.StatusCode == http.StatusOK {
			a.count(func(r *attackResult) { r.Succeeded = append(r.Succeeded, "reading with a foreign Host") })
		}
		if rsp, err := client.PostForm(target.String(), url.Values{"name": {"\x00\x1b[31m\u202e"}}); err != nil {
			a.failed(err)
		} else if rsp.Body.Close(); rsp.StatusCode/100 == 4 {
			a.count(func(r *attackResult) { r.BadNames++ })
		} else if rsp.StatusCode == http.StatusOK {
			a.count(func(r *attackResult) { r.Succeeded = append(r.Succeeded, "greeting an unprintable name") })
		}
	}
}

// open opens a connection and sends a request.
func (a *attacker) open(target *url.URL, request string) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", target.Host, 5*time.Second)
	if err != nil {
		return nil, err
	}
	a.count(func(r *attackResult) { r.Connections++ })
	_, err = io.WriteString(conn, request)
	return conn, err
}

// slowBody posts the form with one byte of its body every 5 s until the server
// closes the connection.
func (a *attacker) slowBody(target *url.URL) error {
	conn, err := a.open(target, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 10000\r\n\r\nname=", target.Path, target.Host))
	if conn != nil {
		defer conn.Close()
	}
	if err != nil {
		return err
	}
	for {
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if _, err := conn.Read(make([]byte, 512)); err != nil && !os.IsTimeout(err) {
			return nil // the server has closed the connection
		}
		if _, err := io.WriteString(conn, "x"); err != nil {
			return nil
		}
	}
}

// eventStream opens an event stream and reads only one byte of it a second.
func (a *attacker) eventStream(target *url.URL) error {
	conn, err := a.open(target, fmt.Sprintf("GET %sevents HTTP/1.1\r\nHost: %s\r\n\r\n", target.Path, target.Host))
	if conn != nil {
		defer conn.Close()
	}
	if err != nil {
		return err
	}
	for {
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			return nil
		}
		time.Sleep(time.Second)
	}
}

// ownIP returns the IP of the pod.
func ownIP() string {
	conn, err := new(net.Dialer).DialContext(context.Background(), "udp", net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), "1")) // sends nothing
	if err != nil {
		return ""
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}
