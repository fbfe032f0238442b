package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/flood"
)

func TestAnswersWithPodName(t *testing.T) {
	t.Setenv("HOSTNAME", "go-micro-web-56b457b9f7-f7lds")
	srv := httptest.NewServer(http.HandlerFunc(podName))
	defer srv.Close()

	for _, request := range []struct{ name, method, path string }{
		{"root", http.MethodGet, "/"},
		{"any path below it", http.MethodGet, "/a/b?c=d"},
		{"any method", http.MethodPost, "/"},
	} {
		t.Run(request.name, func(t *testing.T) {
			req, err := http.NewRequest(request.method, srv.URL+request.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			rsp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer rsp.Body.Close()
			body, err := io.ReadAll(rsp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if rsp.StatusCode != http.StatusOK || string(body) != "go-micro-web-56b457b9f7-f7lds" {
				t.Errorf("answer is %s %q, want the name of the pod", rsp.Status, body)
			}
		})
	}
}

// start builds go-micro-web and starts it as the only pod of a cluster whose API
// server accepts connections and never answers.
func start(t *testing.T) (web *os.Process, address string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "web")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building go-micro-web: %v\n%s", err, out)
	}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	apiServer, free := listen(), listen()
	address = free.Addr().String()
	free.Close()

	// The path of the service account is fixed, so the program runs in a mount namespace of its own that contains it.
	account := "/run/secrets/kubernetes.io/serviceaccount"
	cmd := exec.Command("sh", "-ec", "mount -t tmpfs none /run; mkdir -p "+account+"; cd "+account+
		`; echo -n token >token; : >ca.crt; echo -n go-micro >namespace; exec "$0"`, program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
	_, port, _ := net.SplitHostPort(apiServer.Addr().String())
	cmd.Env = append(os.Environ(), "POD_NAME=web-0", "POD_IP=192.0.2.1", "HOSTNAME=web-0", "MICRO_SERVER_ADDRESS="+address, "KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT="+port)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting go-micro-web: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the log of go-micro-web:\n%s", log.String())
		}
	})
	for end := time.Now().Add(10 * time.Second); probe(address) != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting for go-micro-web: %v", probe(address))
		}
	}
	return cmd.Process, address
}

// probe requests /healthz as the kubelet does, with the default timeout of 1 s.
func probe(address string) error {
	c := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	rsp, err := c.Get("http://" + address + "/healthz")
	if err != nil {
		return err
	}
	rsp.Body.Close()
	if rsp.StatusCode != http.StatusOK {
		return fmt.Errorf("/healthz answers %s", rsp.Status)
	}
	return nil
}

// answerTime returns how long a server needs to answer.
func answerTime(t *testing.T, s *httptest.Server) time.Duration {
	t.Helper()
	begin := time.Now()
	rsp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	rsp.Body.Close()
	return time.Since(begin)
}

// residentMiB returns the resident memory of a process.
func residentMiB(t *testing.T, p *os.Process) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "VmRSS:")
	if !ok {
		t.Fatal("go-micro-web has ended")
	}
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib / 1024
}

// The manifest limits the memory to 128 MiB. The test leaves 16 MiB of it
// to the kernel, which counts socket buffers too.
func TestHeldRequestsDoNotExhaustMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("holds 5,000 connections for half a minute: run without -short")
	}
	const held, limit = 5000, 112
	const probePeriod = 2 * time.Second // of the readiness probe in the manifest, which may fail once
	for _, request := range []struct {
		name, head string
		clients    int // number of client addresses
	}{
		{"one client, the form of the dashboard", "POST /registry/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\nn", 1},
		{"the form of the dashboard", "POST /registry/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\nn", held},
		{"a path that ignores its body", "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nn", held},
		{"a header without an end", "GET / HTTP/1.1\r\nHost: localhost\r\n", held},
	} {
		t.Run(request.name, func(t *testing.T) {
			web, address := start(t)
			control := httptest.NewServer(http.NotFoundHandler())
			defer control.Close()
			before := residentMiB(t, web)
			var attackers sync.WaitGroup
			var opened atomic.Int64
			stop := make(chan struct{})
			for i := range held {
				attackers.Go(func() {
					client := i % request.clients
					dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(client/250), byte(1+client%250))}}
					dial := func() (net.Conn, error) { return dialer.Dial("tcp", address) }
					flood.Hold(dial, request.head, 5*time.Second, stop, func() { opened.Add(1) }) // 1,000 new connections a second at most
				})
			}
			peak, failures, conclusive := 0, 0, 0
			begin := time.Now()
			for time.Since(begin) < 10*time.Second || opened.Load() < held && time.Since(begin) < time.Minute { // a busy machine attacks slowly
				time.Sleep(100 * time.Millisecond)
				peak = max(peak, residentMiB(t, web))
				if opened.Load() < held/2 {
					continue // the attack is starting
				}
				err := probe(address)
				if err == nil {
					conclusive++
					continue
				}
				failures++
				t.Logf("probe: %v", err)
				time.Sleep(probePeriod)
				if err = probe(address); err == nil {
					continue
				}
				if busy := answerTime(t, control); busy > 200*time.Millisecond {
					t.Logf("the machine is busy: a server without an attack needed %s to answer", busy)
					continue
				}
				t.Errorf("two probes in a row fail, which takes the pod out of service: %v", err)
			}
			if conclusive == 0 {
				t.Error("no probe was answered")
			}
			close(stop)
			attackers.Wait()
			t.Logf("%d connections of %d attackers; memory before %d MiB, at most %d MiB; %d probes failed", opened.Load(), held, before, peak, failures)
			if opened.Load() < held {
				t.Errorf("the attack opened %d connections, want at least %d", opened.Load(), held)
			}
			if peak >= limit {
				t.Errorf("go-micro-web takes up to %d MiB, want less than %d", peak, limit)
			}
		})
	}
}
