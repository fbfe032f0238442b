package programs

import (
	"bytes"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestParseSource(t *testing.T) {
	for value, want := range map[string]string{
		"":                            "https://dl.k8s.io/f",
		"download":                    "https://dl.k8s.io/f",
		"build":                       "https://dl.k8s.io/f",
		"http://127.0.0.1:8080":       "http://127.0.0.1:8080/dl.k8s.io/f",
		"https://mirror.example/a/b/": "https://mirror.example/a/b/dl.k8s.io/f",
		"yes":                         "",
		"mirror.example":              "",
		"ftp://mirror.example":        "",
		"https://":                    "",
		"https://mirror.example/?a=b": "",
	} {
		s, err := parseSource(value)
		if want == "" {
			if err == nil || !strings.Contains(err.Error(), "want build, download, or the URL") {
				t.Errorf("%q: %v", value, err)
			}
		} else if got := s.locate("https://dl.k8s.io/f"); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", value, got, err, want)
		}
	}
}

func TestOfficialFiles(t *testing.T) {
	goMod, err := os.ReadFile("../kube/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseReleases(goMod)
	if err != nil {
		t.Fatal(err)
	}
	var provided []string
	for _, f := range r.files(source{}, runtime.GOARCH) {
		provided = append(provided, f.programs...)
	}
	for _, p := range kubePrograms {
		if !strings.Contains(" "+strings.Join(provided, " ")+" ", " "+p+" ") {
			t.Errorf("no official file contains %s", p)
		}
	}
	for _, tool := range nodeTools {
		f, version := tool.officialFile(source{}, runtime.GOARCH)
		if (version != "") != (tool.name != "nft") || version != "" && !slices.Contains(f.programs, tool.name) {
			t.Errorf("%s: %+v of version %q", tool.name, f, version)
		}
	}
	if _, err := parseReleases([]byte("module x\nrequire k8s.io/kubernetes v1.2.3\n")); err == nil || !strings.Contains(err.Error(), "etcd") {
		t.Errorf("without etcd: %v", err)
	}
}

// Whatever prevents the download, Provide says why and builds, unless only the download is allowed.
func TestBuildInsteadOfDownload(t *testing.T) {
	m := newMirror(t, fakeProgram)
	m.fault = func(w http.ResponseWriter, r *http.Request, file string) bool {
		if r.Method == http.MethodGet && path.Base(file) == "kubelet" {
			http.NotFound(w, r)
			return true
		}
		return false
	}
	broken := newMirror(t, func(name string) []byte { return []byte("\x7fELF, but not a program") })
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	refusing, connects := refusingProxy(t)
	const built = "the fake build ran"
	for _, c := range []struct {
		name  string
		env   []string
		want  []string
		build bool
	}{
		{"forced", []string{envSource + "=build"}, []string{envSource + "=build"}, true},
		{"a missing file", []string{envSource + "=" + m.URL, envRoot + "=" + m.checkout(t)}, []string{"kubelet", "404"}, true},
		{"programs that do not run here", []string{envSource + "=" + broken.URL, envRoot + "=" + broken.checkout(t)}, []string{"running the downloaded kubelet", "exec format error"}, true},
		{"a mirror that is down", []string{envSource + "=http://127.0.0.1:9", envRoot + "=" + m.checkout(t)}, []string{"connection refused"}, true},
		{"a proxy that refuses", []string{"HTTPS_PROXY=" + refusing}, []string{"asking for", "Forbidden"}, true},
		{"a proxy that is silent", []string{"HTTPS_PROXY=http://" + silent.Addr().String()}, []string{"no answer within 3s"}, true},
		{"only the download", []string{envSource + "=download", "HTTPS_PROXY=" + refusing}, []string{"Forbidden", "unset " + envSource}, false},
		{"a wrong value", []string{envSource + "=yes"}, []string{envSource + `="yes"`, "want build, download"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			fakeGo(t, "echo "+built+" >&2; exit 1")
			begin := time.Now()
			text, err := provide(append([]string{"NO_PROXY=", "no_proxy=", "https_proxy=", "HTTPS_PROXY=", envSource + "="}, c.env...)...).CombinedOutput()
			elapsed, out := time.Since(begin), string(text)
			if err == nil {
				t.Error("Provide succeeded")
			}
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("the output has no %q:\n%s", w, out)
				}
			}
			if strings.Contains(out, built) != c.build {
				t.Errorf("built: %t:\n%s", !c.build, out)
			}
			if elapsed > 20*time.Second { // 3 for the answer, the rest for a slow machine; a download alone would wait for 30
				t.Errorf("it took %s", elapsed)
			}
			if left := incomplete(t); len(left) > 0 {
				t.Errorf("%q is left", left)
			}
		})
	}
	if got := connects(); !strings.Contains(got, "dl.k8s.io:443") || !strings.Contains(got, "github.com:443") {
		t.Errorf("the proxy was asked for %q", got)
	}
}

// refusingProxy is an HTTP proxy that refuses every connection. connects returns the
// destinations it was asked for.
func refusingProxy(t *testing.T) (url string, connects func() string) {
	t.Helper()
	var mu sync.Mutex
	var hosts []string
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		hosts = append(hosts, r.Host)
		mu.Unlock()
		for range 100 { // the first refusal ends the other requests, so wait until both hosts are asked for
			mu.Lock()
			asked := strings.Join(hosts, " ")
			mu.Unlock()
			if strings.Contains(asked, "dl.k8s.io") && strings.Contains(asked, "github.com") {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		http.Error(w, "no", http.StatusForbidden)
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return "http://" + l.Addr().String(), func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(hosts, " ")
	}
}

// SIGINT ends a download and removes its incomplete files.
func TestInterruptedDownload(t *testing.T) {
	m := newMirror(t, fakeProgram)
	started := make(chan struct{}, 100)
	m.fault = func(w http.ResponseWriter, r *http.Request, file string) bool {
		if r.Method == http.MethodHead {
			return false
		}
		half(w, file)
		started <- struct{}{}
		<-r.Context().Done()
		return true
	}
	fakeGo(t, "exit 1")
	var out bytes.Buffer
	cmd := provide(envSource+"="+m.URL, envRoot+"="+m.checkout(t))
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-started
	if len(incomplete(t)) == 0 {
		t.Fatal("nothing is incomplete, so this test has nothing to check")
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "interrupted") {
		t.Errorf("%v: %s", err, out.String())
	}
	if left, _ := filepath.Glob(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "k8s-micro", "official-*")); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}

// Two processes download once.
func TestTwoDownloads(t *testing.T) {
	m := newMirror(t, fakeProgram)
	m.fault = func(http.ResponseWriter, *http.Request, string) bool {
		time.Sleep(100 * time.Millisecond)
		return false
	}
	fakeGo(t, "exit 1")
	root := m.checkout(t)
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			if out, err := provide(envSource+"="+m.URL, envRoot+"="+root).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wait.Wait()
	if n := len(m.requested("kubelet")); n != 1 {
		t.Errorf("kubelet was requested %d times", n)
	}
}
