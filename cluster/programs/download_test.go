package programs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// mirror is a server with official files.
type mirror struct {
	*httptest.Server
	dir      string
	releases releases
	sums     sums

	mu    sync.Mutex
	gets  []*http.Request
	fault func(w http.ResponseWriter, r *http.Request, file string) (handled bool)
}

// newMirror serves files whose programs have the given contents.
func newMirror(t *testing.T, program func(name string) []byte) *mirror {
	t.Helper()
	goMod, err := os.ReadFile("../kube/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	m := &mirror{dir: t.TempDir(), sums: sums{}}
	if m.releases, err = parseReleases(goMod); err != nil {
		t.Fatal(err)
	}
	root := source{mirror: &url.URL{Scheme: "http", Host: "mirror"}}
	for _, f := range m.releases.files(root, runtime.GOARCH) {
		m.publish(t, strings.TrimPrefix(f.url, "http://mirror"), strings.TrimPrefix(f.sumsURL, "http://mirror"), f.programs, program)
	}
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		fault := m.fault
		if r.Method == http.MethodGet {
			m.gets = append(m.gets, r)
		}
		m.mu.Unlock()
		if fault != nil && fault(w, r, filepath.Join(m.dir, r.URL.Path)) {
			return
		}
		http.ServeFile(w, r, filepath.Join(m.dir, r.URL.Path))
	}))
	t.Cleanup(m.Close)
	return m
}

// publish writes a file and its checksum to the mirror.
func (m *mirror) publish(t *testing.T, file, sums string, programs []string, program func(name string) []byte) {
	t.Helper()
	content := program(programs[0])
	if strings.HasSuffix(file, "gz") {
		var b bytes.Buffer
		zip, _ := gzip.NewWriterLevel(&b, gzip.NoCompression)
		archive := tar.NewWriter(zip)
		for _, name := range append([]string{"README.md"}, programs...) {
			content := program(name)
			if err := archive.WriteHeader(&tar.Header{Name: "release/" + name, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
				t.Fatal(err)
			}
			if _, err := archive.Write(content); err != nil {
				t.Fatal(err)
			}
		}
		if err := archive.Close(); err != nil {
			t.Fatal(err)
		}
		if err := zip.Close(); err != nil {
			t.Fatal(err)
		}
		content = b.Bytes()
	}
	text := fmt.Sprintf("%x", sha256.Sum256(content)) // as dl.k8s.io has it
	m.sums["https:/"+file] = text
	if path.Base(sums) == "SHA256SUMS" {
		text = strings.Repeat("0", 64) + "  another.tar.gz\n" + text + "  " + path.Base(file) + "\n"
	}
	for name, b := range map[string][]byte{file: content, sums: []byte(text)} {
		if err := os.MkdirAll(filepath.Join(m.dir, path.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(m.dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// requested returns the requests for the file with a base name.
func (m *mirror) requested(base string) (requests []*http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.gets {
		if path.Base(r.URL.Path) == base {
			requests = append(requests, r)
		}
	}
	return requests
}

// source returns the mirror as a source of programs, without checksums in the repository.
func (m *mirror) source(t *testing.T) source {
	t.Helper()
	s, err := parseSource(m.URL)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkout returns a checkout with the checksums of the mirror's files.
func (m *mirror) checkout(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	here, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for address, sum := range m.sums {
		fmt.Fprintf(&text, "%s  %s\n", sum, strings.TrimPrefix(address, "https://"))
	}
	cluster := filepath.Join(root, "cluster")
	if err := errors.Join(os.MkdirAll(filepath.Join(cluster, "programs"), 0o755), os.WriteFile(filepath.Join(root, sumsFile), []byte(text.String()), 0o644),
		os.Symlink(filepath.Join(here, "kube"), filepath.Join(cluster, "kube")), os.Symlink(filepath.Join(here, "pause"), filepath.Join(cluster, "pause"))); err != nil {
		t.Fatal(err)
	}
	return root
}

// fakeProgram returns a script of 300 kB that depends on the name. It succeeds.
func fakeProgram(name string) []byte {
	var seed [32]byte
	copy(seed[:], name)
	b := make([]byte, 300_000)
	_, _ = rand.NewChaCha8(seed).Read(b)
	copy(b, "#!/bin/sh\nexit 0\n")
	return b
}

// testStall is after how long without a byte a download of a test is cut. It is longer than
// a busy machine may stop this process, because a cut would change the number of requests.
const testStall = 3 * time.Second

// impatient returns a downloader that gives up soon.
func impatient() *downloader {
	d := newDownloader(func(string, ...any) {})
	d.stallTimeout, d.retryDelay, d.progressInterval = testStall, time.Millisecond, 50*time.Millisecond
	return d
}

// half sends the header of a whole file and half of the file.
func half(w http.ResponseWriter, file string) {
	b, _ := os.ReadFile(file)
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	_, _ = w.Write(b[:len(b)/2])
	w.(http.Flusher).Flush()
}

// cut closes the connection of a request.
func cut(http.ResponseWriter) { panic(http.ErrAbortHandler) }

// Every fault of a server either has no effect or leads to an error that names the file and
// the reason. Programs appear only if all of them are complete.
func TestDownload(t *testing.T) {
	type faultFunc = func(w http.ResponseWriter, r *http.Request, file string) bool
	const victim = "kubelet"
	isVictim := func(r *http.Request) bool { return r.Method == http.MethodGet && path.Base(r.URL.Path) == victim }
	fakeSum := fmt.Sprintf("%x", sha256.Sum256(fakeProgram(victim)))
	for _, c := range []struct {
		name  string
		fault func() faultFunc
		want  []string // in the error, nil for success
		gets  int      // of the victim
	}{
		{"complete", func() faultFunc { return nil }, nil, 1},
		{"gone in the middle, resumed", func() faultFunc {
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if !isVictim(r) || r.Header.Get("Range") != "" {
					return false
				}
				half(w, file)
				cut(w)
				return true
			}
		}, nil, 2},
		{"gone in the middle, started again", func() faultFunc {
			var once sync.Once
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if !isVictim(r) {
					return false
				}
				once.Do(func() { half(w, file); cut(w) })
				r.Header.Del("Range")
				return false
			}
		}, nil, 2},
		{"changed in the middle", func() faultFunc {
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if !isVictim(r) {
					return false
				}
				if r.Header.Get("Range") == "" {
					w.Header().Set("ETag", `"old"`)
					half(w, file)
					cut(w)
				}
				if r.Header.Get("If-Range") == `"old"` {
					r.Header.Del("Range")
				}
				w.Header().Set("ETag", `"new"`)
				return false
			}
		}, nil, 2},
		{"truncated", func() faultFunc {
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if !isVictim(r) {
					return false
				}
				if r.Header.Get("Range") != "" {
					http.Error(w, "no", http.StatusRequestedRangeNotSatisfiable)
					return true
				}
				half(w, file)
				cut(w)
				return true
			}
		}, []string{"downloading", victim, "bytes"}, -1},
		{"shorter than published", func() faultFunc {
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if !isVictim(r) {
					return false
				}
				_, _ = io.WriteString(w, "short")
				return true
			}
		}, []string{victim, "SHA-256", fakeSum, fmt.Sprintf("%x", sha256.Sum256([]byte("short"))), "deleted"}, 1},
		{"wrong sum", func() faultFunc {
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if path.Base(file) != victim+".sha256" {
					return false
				}
				_, _ = io.WriteString(w, strings.Repeat("a", 64))
				return true
			}
		}, []string{victim, fakeSum, strings.Repeat("a", 64), "deleted"}, 1},
		{"no sum", func() faultFunc {
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if path.Base(file) != victim+".sha256" {
					return false
				}
				_, _ = io.WriteString(w, "<html>please log in</html>")
				return true
			}
		}, []string{victim + ".sha256", "no SHA-256"}, 0},
		{"404 for one file", func() faultFunc {
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if path.Base(file) != victim {
					return false
				}
				http.NotFound(w, r)
				return true
			}
		}, []string{"asking for", victim, "404"}, 0},
		{"404 for one sum", func() faultFunc {
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if path.Base(file) != victim+".sha256" {
					return false
				}
				http.NotFound(w, r)
				return true
			}
		}, []string{"downloading", victim + ".sha256", "404"}, 0},
		{"503 once", func() faultFunc {
			var once sync.Once
			return func(w http.ResponseWriter, r *http.Request, file string) (handled bool) {
				if isVictim(r) {
					once.Do(func() { http.Error(w, "busy", http.StatusServiceUnavailable); handled = true })
				}
				return handled
			}
		}, nil, 2},
		{"slow", func() faultFunc { // longer than the limit of a stall, but never silent
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if !isVictim(r) {
					return false
				}
				b, _ := os.ReadFile(file)
				w.Header().Set("Content-Length", fmt.Sprint(len(b)))
				for part := range 10 {
					_, _ = w.Write(b[part*len(b)/10 : (part+1)*len(b)/10])
					w.(http.Flusher).Flush()
					time.Sleep(testStall / 8)
				}
				return true
			}
		}, nil, 1},
		{"stalled once", func() faultFunc {
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if !isVictim(r) || r.Header.Get("Range") != "" {
					return false
				}
				half(w, file)
				<-r.Context().Done()
				return true
			}
		}, nil, 2},
		{"stalled", func() faultFunc {
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if isVictim(r) {
					<-r.Context().Done()
				}
				return isVictim(r)
			}
		}, []string{"downloading", victim, "nothing arrived for " + testStall.String()}, attempts},
		{"redirected", func() faultFunc {
			return func(w http.ResponseWriter, r *http.Request, file string) bool {
				if path.Base(file) != victim || r.URL.RawQuery != "" {
					return false
				}
				http.Redirect(w, r, r.URL.Path+"?signed", http.StatusFound)
				return true
			}
		}, nil, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMirror(t, fakeProgram)
			m.fault = c.fault()
			dir := filepath.Join(t.TempDir(), "programs")
			files, d := m.releases.files(m.source(t), runtime.GOARCH), impatient()
			size, err := d.find(t.Context(), files, 30*time.Second)
			if err == nil {
				d.total.Store(size)
				err = d.programs(t.Context(), dir, files, nil)
			}
			if left, _ := filepath.Glob(dir + "*/*" + incompleteSuffix); len(left) > 0 {
				t.Errorf("incomplete files are left: %q", left)
			}
			if n := len(m.requested(victim)); c.gets >= 0 && n != c.gets {
				t.Errorf("%s was requested %d times, want %d", victim, n, c.gets)
			}
			if c.want != nil {
				if err == nil || exists(dir) {
					t.Fatalf("error %v, and the programs exist: %t", err, exists(dir))
				}
				for _, w := range c.want {
					if !strings.Contains(err.Error(), w) {
						t.Errorf("the error %q does not contain %q", err, w)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if size < 8*300_000 || d.done.Load() != size {
				t.Errorf("%d of %d bytes", d.done.Load(), size)
			}
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != len(kubePrograms) {
				t.Errorf("the directory has %v, %v", entries, err)
			}
			for _, name := range kubePrograms {
				b, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil || !bytes.Equal(b, fakeProgram(name)) {
					t.Errorf("%s: %d bytes, %v", name, len(b), err)
				}
				if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm()&0o111 != 0o111 {
					t.Errorf("%s is not executable: %v", name, err)
				}
			}
		})
	}
}

// What is verified when a download fails is not downloaded again.
func TestVerifiedFilesAreKept(t *testing.T) {
	m := newMirror(t, fakeProgram)
	broken := true
	m.fault = func(w http.ResponseWriter, r *http.Request, file string) bool {
		if broken && path.Base(file) == "kube-scheduler" {
			http.NotFound(w, r)
			return true
		}
		return false
	}
	d, dir, files := impatient(), filepath.Join(t.TempDir(), "programs"), m.releases.files(m.source(t), runtime.GOARCH)
	d.parallel = 1
	if err := d.programs(t.Context(), dir, files, nil); err == nil || exists(dir) {
		t.Fatalf("without a file: %v, and the programs exist: %t", err, exists(dir))
	}
	broken = false
	if err := d.programs(t.Context(), dir, missing(dir, files), nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range kubePrograms {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(b, fakeProgram(name)) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	for _, name := range []string{"kube-apiserver", "kubelet", "kube-controller-manager"} { // before kube-scheduler
		if n := len(m.requested(name)); n != 1 {
			t.Errorf("%s was requested %d times", name, n)
		}
	}
}

// The space on the disk is compared with the size of the files, where it is known, before the download. If the disk gets
// full, what is verified stays. Provide then names both reasons: why it cannot build either, and why it would have to.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	m := newMirror(t, fakeProgram)
	root := m.checkout(t)
	fakeGo(t, "exit 1")
	for _, c := range []struct {
		name        string
		sizeIsKnown bool
		want        string
		gets        bool
	}{{"known size", true, "2 MB free, 6 MB needed; free space", false}, {"unknown size", false, "no space left on device", true}} {
		m.mu.Lock()
		m.gets, m.fault = nil, func(w http.ResponseWriter, r *http.Request, file string) bool {
			return !c.sizeIsKnown && r.Method == http.MethodHead
		}
		m.mu.Unlock()
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", `mount -t tmpfs -o size=2M tmpfs "$XDG_CACHE_HOME"; "$0"; exit=$?; find "$XDG_CACHE_HOME"; exit $exit`, self)
		cmd.Env = append(os.Environ(), envRoot+"="+root, envSource+"="+m.URL)
		text, err := cmd.CombinedOutput()
		out := string(text)
		if err == nil || !strings.Contains(out, c.want) || !strings.Contains(out, "building Kubernetes: 0.0 GB free in ") {
			t.Errorf("%s: %v: %s", c.name, err, out)
		}
		if kept := strings.Contains(out, verifiedSuffix+"/kube"); kept != c.gets || strings.Contains(out, incompleteSuffix+"\n") || (len(m.gets) > 0) != c.gets {
			t.Errorf("%s: %d requests, and what is verified is kept: %t: %s", c.name, len(m.gets), kept, out)
		}
	}
}

// No line of the output contains the password of a mirror or of a proxy.
func TestPasswordsAreNotPrinted(t *testing.T) {
	m := newMirror(t, func(name string) []byte { return []byte("not a program") })
	withPassword := strings.Replace(m.URL, "http://", "http://me:pass%2Fword@", 1)
	fakeGo(t, "exit 1")
	for _, c := range []struct{ source, proxy, want string }{
		{withPassword, "", "running the downloaded kubelet"},
		{withPassword + "/missing", "", "404"},
		{strings.Replace(withPassword, "http://", "ftp://", 1), "", "want build, download"},
		{"http://me:pass%2Fword@127.0.0.1:9", "", "connection refused"},
		{"http://mirror.invalid", "http://me:pass%2Fword@127.0.0.1:9", "proxyconnect"},
	} {
		out, _ := provide(envSource+"="+c.source, envRoot+"="+m.checkout(t), "http_proxy=", "HTTP_PROXY="+c.proxy, "no_proxy=", "NO_PROXY=").CombinedOutput()
		if !strings.Contains(string(out), c.want) || strings.Contains(string(out), "word@") {
			t.Errorf("%s: %s", c.source, out)
		}
	}
}

// A download that is cancelled ends at once and leaves nothing.
func TestCancelledDownload(t *testing.T) {
	m := newMirror(t, fakeProgram)
	started := make(chan struct{}, 100)
	m.fault = func(w http.ResponseWriter, r *http.Request, file string) bool {
		half(w, file)
		started <- struct{}{}
		<-r.Context().Done()
		return true
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	dir, begin := filepath.Join(t.TempDir(), "programs"), time.Now()
	err := newDownloader(t.Logf).programs(ctx, dir, m.releases.files(m.source(t), runtime.GOARCH), nil)
	if err == nil || time.Since(begin) > 20*time.Second { // it would be cut after 30 s
		t.Errorf("%v after %s", err, time.Since(begin))
	}
	if left, _ := filepath.Glob(dir + "*"); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}

// As many files as the limit allows are downloaded at the same time, and no more.
func TestParallelDownloads(t *testing.T) {
	m := newMirror(t, fakeProgram)
	d := impatient()
	d.parallel = 3
	var mu sync.Mutex
	running, most := 0, 0
	full := make(chan struct{}) // closed when the limit is reached
	m.fault = func(w http.ResponseWriter, r *http.Request, file string) bool {
		mu.Lock()
		running++
		if most = max(most, running); running == d.parallel {
			select {
			case <-full:
			default:
				close(full)
			}
		}
		mu.Unlock()
		select { // the first requests wait for each other, however slow this machine is
		case <-full:
		case <-r.Context().Done():
		}
		time.Sleep(20 * time.Millisecond) // a file too many would arrive now
		mu.Lock()
		running--
		mu.Unlock()
		return false
	}
	if err := d.programs(t.Context(), filepath.Join(t.TempDir(), "programs"), m.releases.files(m.source(t), runtime.GOARCH), nil); err != nil {
		t.Fatal(err)
	}
	if most != 3 {
		t.Errorf("%d downloads at the same time, want 3", most)
	}
}

// A server that does not answer delays the decision for no longer than the limit.
func TestSilentServer(t *testing.T) {
	m := newMirror(t, fakeProgram)
	m.fault = func(_ http.ResponseWriter, r *http.Request, _ string) bool { <-r.Context().Done(); return true }
	begin := time.Now()
	_, err := newDownloader(t.Logf).find(t.Context(), m.releases.files(m.source(t), runtime.GOARCH), 200*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "no answer within 200ms") || time.Since(begin) > 20*time.Second { // without the limit it would never end
		t.Errorf("%v after %s", err, time.Since(begin))
	}
}

// A redirect from HTTPS to HTTP is refused.
func TestRedirectToHTTP(t *testing.T) {
	plain := newMirror(t, fakeProgram)
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusFound)
	}))
	defer secure.Close()
	d := impatient()
	d.client.Transport = secure.Client().Transport
	s, err := parseSource(secure.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.find(t.Context(), plain.releases.files(s, runtime.GOARCH), 30*time.Second); err == nil || !strings.Contains(err.Error(), "refused to leave HTTPS") {
		t.Error(err)
	}
}

func TestDownloadProgress(t *testing.T) {
	for _, c := range []struct {
		done, total int64
		want        string
	}{
		{0, 0, "0 MB, 0.0 MB/s"},
		{0, 500e6, "0 of 500 MB, 0.0 MB/s, unknown time left"},
		{100e6, 500e6, "100 of 500 MB, 10.0 MB/s, 40s left"},
		{500e6, 500e6, "500 of 500 MB, 50.0 MB/s, 0s left"},
	} {
		if got := downloadProgress(c.done, c.total, 10*time.Second); got != c.want {
			t.Errorf("%d of %d: %q, want %q", c.done, c.total, got, c.want)
		}
	}
}
