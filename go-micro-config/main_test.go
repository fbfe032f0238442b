package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/micro/go-plugins/config/source/configmap/v2"
	"k8s.io/client-go/tools/clientcmd"
)

// TestMain makes the test binary the program itself if TEST_KUBECONFIG is set, so that the tests see
// the real output and exit code. The kubeconfig replaces the service account of a pod.
func TestMain(m *testing.M) {
	if path, set := os.LookupEnv("TEST_KUBECONFIG"); set {
		os.Unsetenv("TEST_KUBECONFIG")
		if os.Getenv("TEST_OUTSIDE") == "" { // otherwise the plugin expects a pod
			configmap.DefaultConfigPath = path
		}
		os.Unsetenv("TEST_OUTSIDE")
		clientcmd.RecommendedHomeFile = path // configwatch reads it outside a pod
		main()
		return
	}
	os.Exit(m.Run())
}

// program returns the command that runs the program against the API server at url, with args, in the
// environment env. An empty url means that there is no cluster.
func program(t *testing.T, url string, args []string, env ...string) *exec.Cmd {
	t.Helper()
	kubeconfig := ""
	if url != "" {
		kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
		content := fmt.Sprintf(`{"current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "x"}}],
			"clusters": [{"name": "x", "cluster": {"server": %q}}]}`, url)
		if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(env, "TEST_KUBECONFIG="+kubeconfig)
	return cmd
}

// runToExit runs the program until it exits, and returns its output and exit code.
func runToExit(t *testing.T, url string, args []string, env ...string) (stdout, stderr string, exit int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := program(t, url, args, env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	// `go test -cover` adds this line; setting its variable would change the map.
	stderr = strings.TrimSuffix(errs.String(), "warning: GOCOVERDIR not set, no coverage data emitted\n")
	return out.String(), stderr, cmd.ProcessState.ExitCode()
}

// apiServer answers a GET of the ConfigMap with status and body, as many times as answers says (0:
// always, -1: never), and streams the events from watch. Any other request fails the test.
func apiServer(t *testing.T, status int, body string, answers int32, watch <-chan string) string {
	t.Helper()
	var answered atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch path := r.Method + " " + r.URL.Path; {
		case path == "GET /api/v1/namespaces/go-micro/configmaps/go-micro-config":
			if n := answered.Add(1); answers != 0 && n > answers {
				<-r.Context().Done()
				return
			}
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		case path == "GET /api/v1/namespaces/go-micro/configmaps" && r.URL.Query().Get("watch") == "":
			fmt.Fprintf(w, `{"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [%s]}`, body)
		case path == "GET /api/v1/namespaces/go-micro/configmaps":
			w.(http.Flusher).Flush()
			for {
				select {
				case event := <-watch:
					fmt.Fprintln(w, event)
					w.(http.Flusher).Flush()
				case <-r.Context().Done(): // until the program exits
					return
				}
			}
		default:
			t.Errorf("unexpected request %s %s", r.Method, r.URL)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

const configMap = `{"kind": "ConfigMap", "apiVersion": "v1",
	"metadata": {"name": "go-micro-config", "namespace": "go-micro"},
	"data": {"DB_NAME": "MICRO", "DB_HOST": "192.168.0.1"}}`

// The environment and the map are the same as in the README's walk-through. KUBERNETES_SERVICE_PORT is
// missing, so that the program uses the kubeconfig. Variables of one Service collide, because
// GO_MICRO_SRV_PORT is a value and a prefix: the first one wins.
func TestPrintsEnvironmentAndConfigMapAsOneMap(t *testing.T) {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOSTNAME=go-micro-config",
		"HOME=/root",
	}
	for _, service := range []struct{ prefix, host, port, portName string }{
		{"GO_MICRO_SRV", "10.96.196.160", "9100", "GO_MICRO_SRV"},
		{"GO_MICRO_WEB", "10.96.218.32", "9200", "GO_MICRO_WEB"},
	} {
		tcp := service.prefix + "_PORT_" + service.port + "_TCP"
		env = append(env,
			tcp+"_ADDR="+service.host,
			tcp+"_PORT="+service.port,
			tcp+"_PROTO=tcp",
			service.prefix+"_SERVICE_HOST="+service.host,
			service.prefix+"_SERVICE_PORT_"+service.portName+"="+service.port,
			service.prefix+"_SERVICE_PORT="+service.port,
			service.prefix+"_PORT=tcp://"+service.host+":"+service.port,
			tcp+"=tcp://"+service.host+":"+service.port,
		)
	}
	env = append(env,
		"KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
		"KUBERNETES_PORT_443_TCP_PROTO=tcp",
		"KUBERNETES_PORT_443_TCP_PORT=443",
		"KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
		"KUBERNETES_PORT=tcp://10.96.0.1:443",
		"KUBERNETES_SERVICE_HOST=10.96.0.1",
		"KUBERNETES_SERVICE_PORT_HTTPS=443",
	)
	want := "map[DB_HOST:map[192.168.0.1:] DB_NAME:map[MICRO:] " +
		"go:map[micro:map[srv:map[port:map[9100:map[tcp:map[addr:10.96.196.160 port:9100 proto:tcp]]] " +
		"service:map[host:10.96.196.160 port:map[go:map[micro:map[srv:9100]]]]] " +
		"web:map[port:map[9200:map[tcp:map[addr:10.96.218.32 port:9200 proto:tcp]]] " +
		"service:map[host:10.96.218.32 port:map[go:map[micro:map[web:9200]]]]]]] " +
		"home:/root hostname:go-micro-config kubernetes:map[port:map[443:map[tcp:tcp://10.96.0.1:443]] " +
		"service:map[host:10.96.0.1 port:map[https:443]]] path:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin]\n"

	for _, outside := range []string{"", "1"} { // of a pod, where the program reads the ConfigMap instead of the plugin
		stdout, stderr, exit := runToExit(t, apiServer(t, http.StatusOK, configMap, 0, nil), nil, append(env, "TEST_OUTSIDE="+outside)...)
		if stdout != want {
			t.Errorf("TEST_OUTSIDE=%s: printed\n%swant\n%s", outside, stdout, want)
		}
		if stderr != "" || exit != 0 {
			t.Errorf("TEST_OUTSIDE=%s: stderr is %q, exit code %d", outside, stderr, exit)
		}
	}
}

// TestOutsideAPodValuesAreThoseOfThePlugin compares values of several lines.
func TestOutsideAPodValuesAreThoseOfThePlugin(t *testing.T) {
	const lines = `{"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "go-micro-config", "namespace": "go-micro"},
		"data": {"DB": "host=db-1\nport=5432\n\nurl=x?a=b\nhost=db-2", "EMPTY": ""}}`
	url := apiServer(t, http.StatusOK, lines, 0, nil)
	plugin, _, _ := runToExit(t, url, nil, "HOME=/root", "TEST_OUTSIDE=")
	outside, stderr, exit := runToExit(t, url, nil, "HOME=/root", "TEST_OUTSIDE=1")
	if outside != plugin || !strings.Contains(plugin, "host:db-2 port:5432 url:x?a=b") || stderr != "" || exit != 0 {
		t.Errorf("outside of a pod it printed\n%swith the plugin\n%sstderr is %q, exit code %d", outside, plugin, stderr, exit)
	}
}

// following is the program that runs until a signal.
type following struct {
	*exec.Cmd
	t      *testing.T
	lines  chan string // of its stdout
	stderr bytes.Buffer
}

func startFollowing(t *testing.T, url string, env ...string) *following {
	t.Helper()
	return start(t, url, []string{"-follow"}, env...)
}

// start starts the program with args, which tell it to follow.
func start(t *testing.T, url string, args []string, env ...string) *following {
	t.Helper()
	f := &following{Cmd: program(t, url, args, env...), t: t, lines: make(chan string, 100)}
	f.Stderr = &f.stderr
	out, err := f.StdoutPipe()
	if err == nil {
		err = f.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(f.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			f.lines <- lines.Text()
		}
	}()
	return f
}

// expectLine waits for the next line that is not a log line.
func (f *following) expectLine(want string) {
	f.t.Helper()
	limit := time.After(5 * time.Second)
	for {
		select {
		case line, more := <-f.lines:
			switch {
			case !more:
				f.t.Fatalf("the program has exited without printing %s", want)
			case strings.Contains(line, " level="):
				continue
			case line != want:
				f.t.Errorf("the program printed\n%s\nwant\n%s", line, want)
			}
			return
		case <-limit:
			f.t.Fatalf("the program has not printed %s", want)
		}
	}
}

// waitForExit sends the program a signal, unless it is nil, and returns the exit code.
func (f *following) waitForExit(s os.Signal) int {
	f.t.Helper()
	if s != nil {
		if err := f.Process.Signal(s); err != nil {
			f.t.Fatal(err)
		}
	}
	for line := range f.lines {
		if !strings.Contains(line, " level=") {
			f.t.Errorf("before its exit the program printed %q", line)
		}
	}
	if err := f.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		f.t.Fatal(err)
	}
	return f.ProcessState.ExitCode()
}

func TestFollowsConfigMapUntilSignal(t *testing.T) {
	for _, s := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		events := make(chan string)
		f := startFollowing(t, apiServer(t, http.StatusOK, configMap, 0, events), "HOME=/root")
		event := func(kind, version, data string) {
			events <- fmt.Sprintf(`{"type": %q, "object": {"kind": "ConfigMap", "apiVersion": "v1",
				"metadata": {"name": "go-micro-config", "namespace": "go-micro", "resourceVersion": %q}, "data": %s}}`, kind, version, data)
		}
		f.expectLine("map[DB_HOST:192.168.0.1 DB_NAME:MICRO home:/root]")
		event("MODIFIED", "2", `{"DB_HOST": "192.168.0.2", "app.yaml": "db:\n  host: db-1\n"}`)
		f.expectLine("map[DB_HOST:192.168.0.2 app.yaml:map[db:map[host:db-1]] home:/root]")
		event("DELETED", "3", `{"DB_HOST": "192.168.0.2"}`)
		f.expectLine("map[home:/root]")
		event("ADDED", "4", `{"DB_HOST": "192.168.0.3"}`)
		f.expectLine("map[DB_HOST:192.168.0.3 home:/root]")
		if exit := f.waitForExit(s); exit != 0 || !strings.HasPrefix(f.stderr.String()+"warning: GOCOVERDIR", "warning: GOCOVERDIR") {
			t.Errorf("after %s: exit code %d, stderr %q", s, exit, f.stderr.String())
		}
	}
}

// TestFollowsBaseAndOverride changes both ConfigMaps. The override's values win, whichever has changed last.
func TestFollowsBaseAndOverride(t *testing.T) {
	object := func(name, version, data string) string {
		return fmt.Sprintf(`{"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": %q, "namespace": "go-micro", "resourceVersion": %q}, "data": %s}`, name, version, data)
	}
	initial := map[string]string{
		"go-micro-config": object("go-micro-config", "1", `{"DB_HOST": "base", "DB_NAME": "MICRO"}`),
		"local":           object("local", "1", `{"DB_HOST": "override"}`),
	}
	events := map[string]chan string{"go-micro-config": make(chan string), "local": make(chan string)}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		const path = "/api/v1/namespaces/go-micro/configmaps"
		if name, found := strings.CutPrefix(r.URL.Path, path+"/"); found && initial[name] != "" {
			fmt.Fprint(w, initial[name])
			return
		}
		name, _ := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
		switch {
		case r.URL.Path != path || initial[name] == "":
			t.Errorf("unexpected request %s %s", r.Method, r.URL)
		case r.URL.Query().Get("watch") == "":
			fmt.Fprintf(w, `{"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [%s]}`, initial[name])
		default:
			w.(http.Flusher).Flush()
			for {
				select {
				case event := <-events[name]:
					fmt.Fprintln(w, event)
					w.(http.Flusher).Flush()
				case <-r.Context().Done():
					return
				}
			}
		}
	}))
	t.Cleanup(srv.Close)
	f := start(t, srv.URL, []string{"-override=local"}, "HOME=/root")
	event := func(kind, name, version, data string) {
		events[name] <- fmt.Sprintf(`{"type": %q, "object": %s}`, kind, object(name, version, data))
	}
	f.expectLine("map[DB_HOST:override DB_NAME:MICRO home:/root]")
	event("MODIFIED", "go-micro-config", "2", `{"DB_HOST": "other", "DB_NAME": "SHOP"}`)
	f.expectLine("map[DB_HOST:override DB_NAME:SHOP home:/root]")
	event("MODIFIED", "local", "3", `{"DB_HOST": "changed"}`)
	f.expectLine("map[DB_HOST:changed DB_NAME:SHOP home:/root]")
	event("DELETED", "local", "4", `{"DB_HOST": "changed"}`)
	f.expectLine("map[DB_HOST:other DB_NAME:SHOP home:/root]")
	if exit := f.waitForExit(syscall.SIGTERM); exit != 0 {
		t.Errorf("exit code %d, stderr %q", exit, f.stderr.String())
	}
}

func TestExitsWhenAPIServerIsFrozen(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers int32
		want    string
	}{
		{"at once", -1, "does not answer\n"},
		{"after the first read", 1, "has not answered for 5 seconds\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			url := apiServer(t, http.StatusOK, configMap, tt.answers, nil)
			begin := time.Now()
			stdout, stderr, exit := runToExit(t, url, nil)
			if stdout != "" || exit != 1 || !strings.HasSuffix(stderr, tt.want) || !strings.Contains(stderr, `ConfigMap "go-micro/go-micro-config"`) {
				t.Errorf("stdout is %q, exit code %d, stderr %q, want nothing, 1 and %q", stdout, exit, stderr, tt.want)
			}
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("the program took %s", took)
			}
		})
	}
}

// A sidecar that starts breaks the first connections.
func TestFollowingWaitsForAPIServer(t *testing.T) {
	target, err := url.Parse(apiServer(t, http.StatusOK, configMap, 0, nil))
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.FlushInterval = -1
	var requests atomic.Int32
	sidecar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) <= 3 {
			panic(http.ErrAbortHandler) // closes the connection
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(sidecar.Close)
	f := startFollowing(t, sidecar.URL, "HOME=/root")
	f.expectLine("map[DB_HOST:192.168.0.1 DB_NAME:MICRO home:/root]")
	if exit := f.waitForExit(syscall.SIGTERM); exit != 0 {
		t.Errorf("exit code %d, stderr %q", exit, f.stderr.String())
	}
}

func TestRejectsUnknownArguments(t *testing.T) {
	for arg, want := range map[string]string{
		"-folow": "flag provided but not defined: -folow\n",
		"follow": `reading arguments: unexpected "follow"; -h lists the flags` + "\n",
	} {
		stdout, stderr, exit := runToExit(t, "", []string{arg})
		if stdout != "" || exit != 2 || !strings.HasPrefix(stderr, want) {
			t.Errorf("%s: stdout is %q, exit code %d, stderr %q, want nothing, 2 and %q", arg, stdout, exit, stderr, want)
		}
	}
}

func TestErrorNamesRemedy(t *testing.T) {
	status := func(code int, reason, message string) string {
		return apiServer(t, code, fmt.Sprintf(`{"kind": "Status", "apiVersion": "v1", "status": "Failure",
			"code": %d, "reason": %q, "message": %q}`, code, reason, message), 0, nil)
	}
	forbidden := `configmaps "go-micro-config" is forbidden: User "system:serviceaccount:go-micro:default" ` +
		`cannot get resource "configmaps" in API group "" in the namespace "go-micro"`
	gone := httptest.NewServer(nil)
	gone.Close()

	const get = `get configmaps in namespace "go-micro": `
	for _, tt := range []struct {
		name, url, want string
	}{
		{
			name: "no such ConfigMap",
			url:  status(http.StatusNotFound, "NotFound", `configmaps "go-micro-config" not found`),
			want: get + `configmaps "go-micro-config" not found: create it, or check the name and the namespace; if kustomize generates it, set generatorOptions: {disableNameSuffixHash: true}`,
		},
		{
			name: "no right to read it",
			url:  status(http.StatusForbidden, "Forbidden", forbidden),
			want: get + forbidden + `: its service account lacks the verb "get" on configmaps (k8s/configmap-rbac.yaml grants it)`,
		},
		{
			name: "not in a cluster",
			want: `connecting to Kubernetes: not in a pod (KUBERNETES_SERVICE_HOST is not set) and no kubeconfig ` +
				`(invalid configuration: no configuration has been provided): run it in a cluster or set KUBECONFIG`,
		},
		{
			name: "no API server",
			url:  gone.URL,
			want: get + `Get "` + gone.URL + `/api/v1/namespaces/go-micro/configmaps/go-micro-config": dial tcp ` +
				strings.TrimPrefix(gone.URL, "http://") + `: connect: connection refused: is the API server at ` + gone.URL + ` up?`,
		},
	} {
		for _, args := range [][]string{nil, {"-follow"}} {
			if args != nil && tt.url == gone.URL { // TestFollowingWaitsForAPIServer
				continue
			}
			t.Run(fmt.Sprint(tt.name, args), func(t *testing.T) {
				stdout, stderr, exit := runToExit(t, tt.url, args)
				if want := `reading ConfigMap "go-micro/go-micro-config": ` + tt.want + "\n"; stderr != want {
					t.Errorf("stderr is\n%swant\n%s", stderr, want)
				}
				if stdout != "" || exit != 1 {
					t.Errorf("stdout is %q, exit code %d, want nothing and 1", stdout, exit)
				}
			})
		}
	}
}
