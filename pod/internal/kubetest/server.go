// Package kubetest gives tests a real Kubernetes API server.
//
// The first call of NewNamespace builds the API server and its etcd, unless they are
// built already, and starts them. They run until the test process ends, however it
// ends. A package that uses kubetest has this TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }
//
// Tests that need no API server need no Kubernetes build either. There is no
// kubelet and no scheduler: the tests write the status of their pods.
package kubetest

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/launch"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Server is a running API server as its administrator sees it.
type Server struct {
	Admin      clientset.Interface
	Config     *rest.Config // configuration of the administrator's client
	Kubeconfig string       // path of the administrator's kubeconfig
}

var (
	startOnce sync.Once
	running   *Server
	startErr  error
	stop      = func() error { return nil }
)

// Main runs the tests, stops the API server if one was started, and returns the
// exit code.
func Main(m *testing.M) int {
	code := m.Run()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stopping the API server:", err)
		return 1
	}
	return code
}

// Start returns the API server, which the first call starts. With -short it skips the
// test instead. make check runs with -short, and prints how many tests it skipped.
func Start(t testing.TB) *Server {
	t.Helper()
	if testing.Short() {
		t.Skip("needs an API server: run without -short")
	}
	startOnce.Do(func() { running, startErr = start() })
	if startErr != nil {
		t.Fatalf("starting an API server: %v", startErr)
	}
	return running
}

func start() (*Server, error) {
	// Packages are tested in parallel, so each has its own server, named after the test
	// binary, such as pod.test.
	name := strings.TrimSuffix(filepath.Base(os.Args[0]), ".test")
	kubeconfig, down, err := launch.Up(name, "-control-plane")
	if err != nil {
		return nil, err
	}
	stop = down
	s := &Server{Kubeconfig: kubeconfig}
	if s.Config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return nil, err
	}
	tlsConfig, err := rest.TLSConfigFor(s.Config)
	if err != nil {
		return nil, err
	}
	// The administrator's client keeps no idle connection, because goleak would report its
	// goroutines.
	s.Admin, err = clientset.NewForConfig(&rest.Config{Host: s.Config.Host, QPS: 1000, Burst: 1000,
		Transport: &http.Transport{TLSClientConfig: tlsConfig, DisableKeepAlives: true}})
	return s, err
}

// Address returns the API server's host and port.
func (s *Server) Address() string { return strings.TrimPrefix(s.Config.Host, "https://") }

// stateDir returns the directory of the cluster's state.
func (s *Server) stateDir() string { return filepath.Dir(s.Kubeconfig) }

// Kill kills the API server, which its supervisor then starts again.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(s.pid(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// KillAndWait kills the API server and waits until it serves again. While it waits, it
// calls meanwhile repeatedly, unless that is nil.
func (s *Server) KillAndWait(t testing.TB, meanwhile func()) {
	t.Helper()
	s.Kill(t)
	Eventually(t, 30*time.Second, "the API server serves again", func() error {
		if meanwhile != nil {
			meanwhile()
		}
		_, err := s.Admin.CoreV1().Namespaces().Get("default", metav1.GetOptions{})
		return err
	})
}

// Freeze stops the API server with SIGSTOP, so that it accepts connections and
// never answers, until thaw or the end of the test. Calling thaw twice is no error.
func (s *Server) Freeze(t testing.TB) (thaw func()) {
	t.Helper()
	pid := s.pid(t)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw = sync.OnceFunc(func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(thaw)
	return thaw
}

// pid returns the process id of kube-apiserver.
func (s *Server) pid(t testing.TB) int {
	t.Helper()
	out, err := exec.Command("pgrep", "-f", "kube-apiserver .*"+s.stateDir()+"/pki").Output()
	pid, err2 := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || err2 != nil {
		t.Fatalf("looking for kube-apiserver: %v %v %q", err, err2, out)
	}
	return pid
}

// EtcdProgram returns the path of the etcd program, for tests that start an etcd of their own.
func (s *Server) EtcdProgram(t testing.TB) string {
	t.Helper()
	pid, err := exec.Command("pgrep", "-f", "etcd --data-dir=.*"+filepath.Join(s.stateDir(), "pki")).Output()
	if err != nil {
		t.Fatalf("looking for etcd: %v", err)
	}
	path, err := os.Readlink("/proc/" + strings.TrimSpace(string(pid)) + "/exe")
	if err != nil {
		t.Fatalf("looking for the program of etcd: %v", err)
	}
	return path
}

// Compact makes etcd forget every version but the current one, so that a watch
// from an older version is refused with 410 Gone.
func (s *Server) Compact(t testing.TB) {
	t.Helper()
	pki := filepath.Join(s.stateDir(), "pki")
	out, err := exec.Command("pgrep", "-af", "etcd --data-dir=.*"+pki).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(out), "--listen-client-urls=")
	endpoint, _, _ := strings.Cut(rest, " ")
	pair, err := tls.LoadX509KeyPair(filepath.Join(pki, "apiserver-etcd.crt"), filepath.Join(pki, "apiserver-etcd.key"))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}}} // loopback, only in tests
	defer client.CloseIdleConnections()
	// etcd serves its gRPC methods as JSON too, so that the project needs no etcd client.
	call := func(method, request string) (reply struct{ Header struct{ Revision string } }) {
		t.Helper()
		r, err := client.Post(endpoint+"/v3/kv/"+method, "application/json", strings.NewReader(request))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if err == nil {
			err = json.Unmarshal(text, &reply)
		}
		if err != nil || r.StatusCode != http.StatusOK || reply.Header.Revision == "" {
			t.Fatalf("calling %s of etcd: status %s, answer %q, %v", method, r.Status, text, err)
		}
		return reply
	}
	now := call("range", `{"key": "eA=="}`) // any key
	call("compaction", fmt.Sprintf(`{"revision": %q}`, now.Header.Revision))
}

// Eventually calls condition until it returns nil, and returns how long that took. If
// that takes longer than limit, Eventually fails the test with the text of expected.
func Eventually(t testing.TB, limit time.Duration, expected string, condition func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		err := condition()
		took := time.Since(begin)
		if err == nil {
			return took
		}
		if took > limit {
			t.Fatalf("expected within %s: %s: %v", limit, expected, err)
		}
		time.Sleep(time.Millisecond)
	}
}
