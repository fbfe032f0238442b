package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/micro/go-plugins/config/source/configmap/v2"
)

// TestMain lets the test binary be the program itself, so that the tests see its real output and
// exit code. TEST_KUBECONFIG stands for the service account that a pod would have.
func TestMain(m *testing.M) {
	if path, set := os.LookupEnv("TEST_KUBECONFIG"); set {
		os.Unsetenv("TEST_KUBECONFIG")
		configmap.DefaultConfigPath = path
		main()
		return
	}
	os.Exit(m.Run())
}

// dump runs the program in an environment of env alone. An empty url means: not in a cluster.
func dump(t *testing.T, url string, env ...string) (stdout, stderr string, exit int) {
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
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(env, "TEST_KUBECONFIG="+kubeconfig)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	// What `go test -cover` adds, whose variable would be part of the map.
	stderr = strings.TrimSuffix(errs.String(), "warning: GOCOVERDIR not set, no coverage data emitted\n")
	return out.String(), stderr, cmd.ProcessState.ExitCode()
}

// apiServer answers status and body for the ConfigMap, lets the watch that the loader starts wait,
// and fails the test on any other request.
func apiServer(t *testing.T, status int, body string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "GET /api/v1/namespaces/go-micro/configmaps/go-micro-config":
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		case "GET /api/v1/namespaces/go-micro/configmaps":
			<-r.Context().Done() // until the program has ended
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

// The environment and the map of the README's walk-through. Variables of one Service collide
// (GO_MICRO_SRV_PORT is a value and a prefix): the first to come keeps its place.
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
		"KUBERNETES_SERVICE_PORT=443",
	)
	want := "map[DB_HOST:map[192.168.0.1:] DB_NAME:map[MICRO:] " +
		"go:map[micro:map[srv:map[port:map[9100:map[tcp:map[addr:10.96.196.160 port:9100 proto:tcp]]] " +
		"service:map[host:10.96.196.160 port:map[go:map[micro:map[srv:9100]]]]] " +
		"web:map[port:map[9200:map[tcp:map[addr:10.96.218.32 port:9200 proto:tcp]]] " +
		"service:map[host:10.96.218.32 port:map[go:map[micro:map[web:9200]]]]]]] " +
		"home:/root hostname:go-micro-config kubernetes:map[port:map[443:map[tcp:tcp://10.96.0.1:443]] " +
		"service:map[host:10.96.0.1 port:443]] path:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin]\n"

	stdout, stderr, exit := dump(t, apiServer(t, http.StatusOK, configMap), env...)
	if stdout != want {
		t.Errorf("printed\n%swant\n%s", stdout, want)
	}
	if stderr != "" || exit != 0 {
		t.Errorf("stderr is %q, exit code %d", stderr, exit)
	}
}

func TestSaysWhatToDoWhenItCannotLoad(t *testing.T) {
	status := func(code int, reason, message string) string {
		return apiServer(t, code, fmt.Sprintf(`{"kind": "Status", "apiVersion": "v1", "status": "Failure",
			"code": %d, "reason": %q, "message": %q}`, code, reason, message))
	}
	forbidden := `configmaps "go-micro-config" is forbidden: User "system:serviceaccount:go-micro:default" ` +
		`cannot get resource "configmaps" in API group "" in the namespace "go-micro"`
	gone := httptest.NewServer(nil)
	gone.Close()

	for _, tt := range []struct {
		name, url, want string
	}{
		{
			name: "no such ConfigMap",
			url:  status(http.StatusNotFound, "NotFound", `configmaps "go-micro-config" not found`),
			want: `configmaps "go-micro-config" not found; go-micro-config/k8s/configmap.yaml creates it`,
		},
		{
			name: "no right to read it",
			url:  status(http.StatusForbidden, "Forbidden", forbidden),
			want: forbidden + `; k8s/configmap-rbac.yaml grants it to service account micro-config`,
		},
		{
			name: "not in a cluster",
			want: `unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined; ` +
				`run it in a pod with a service account, as go-micro-config/k8s/pod.yaml does`,
		},
		{
			name: "no API server",
			url:  gone.URL,
			want: `Get "` + gone.URL + `/api/v1/namespaces/go-micro/configmaps/go-micro-config": dial tcp ` +
				strings.TrimPrefix(gone.URL, "http://") + `: connect: connection refused; ` +
				`is the API server up? go-micro-config/k8s/configmap.yaml creates the map, k8s/configmap-rbac.yaml grants access`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stdout, stderr, exit := dump(t, tt.url)
			if want := `loading ConfigMap "go-micro/go-micro-config": ` + tt.want + "\n"; stderr != want {
				t.Errorf("stderr is\n%swant\n%s", stderr, want)
			}
			if stdout != "" || exit != 1 {
				t.Errorf("stdout is %q, exit code %d, want nothing and 1", stdout, exit)
			}
		})
	}
}
