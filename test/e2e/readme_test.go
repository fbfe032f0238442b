//go:build e2e

package e2e

import (
	"bytes"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/docs"
)

// TestREADME runs every command of README.md, from `make demo` to the end, on a
// second cluster, and then the commands of each page in docs/ on the same cluster,
// each page in a shell of its own. It compares the output with the documents.
// Then it runs `make demo` again on the finished cluster.
func TestREADME(t *testing.T) {
	name := clusterName + "-demo"
	t.Cleanup(func() {
		if err := command(time.Minute, nil, "make", "cluster-down", "CLUSTER="+name); err != nil {
			t.Error(err)
		}
	})
	kubectl := filepath.Join(root, ".cluster", name, "bin") // the cluster's own kubectl, whatever this machine has installed
	reader := docs.Reader{Checkout: root, Cluster: name, Environ: append(originalEnviron, "PATH="+kubectl+":"+originalPath), Log: t.Logf}
	pages, err := docs.Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		begin := time.Now()
		if err := reader.Read(page); err != nil {
			t.Error(err)
		}
		t.Logf("%s took %.1f s", page, time.Since(begin).Seconds())
	}
	var out bytes.Buffer
	if err := command(10*time.Minute, &out, "make", "demo", "CLUSTER="+name); err != nil {
		t.Fatalf("second make demo: %v\n%s", err, out.String())
	}
	for _, want := range []string{"micro.mu/selector-go-micro-srv=service", `{"name":"go-micro-srv"`, "\nServer Hello XXX!\n",
		"proxy/\ngo-micro-web-", "map[DB_HOST:map[192.168.0.1:] DB_NAME:map[MICRO:]", "export KUBECONFIG=", "make cluster-down"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output of the second make demo does not contain %q:\n%s", want, out.String())
		}
	}
	page := regexp.MustCompile(`http://127\.0\.0\.1:\d+/registry/`).FindString(out.String())
	rsp, err := http.Get(page)
	if err != nil {
		t.Fatalf("getting the page at %q: %v", page, err)
	}
	if rsp.Body.Close(); rsp.StatusCode != http.StatusOK {
		t.Errorf("the page at %q answers %s", page, rsp.Status)
	}
}
