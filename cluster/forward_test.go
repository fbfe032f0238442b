package main

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// checkForward reaches a Service of each of two clusters from the host, also after
// the Service was deleted and created again, until its cluster stops.
func checkForward(t *testing.T, one, two string) {
	t.Helper()
	service := filepath.Join(t.TempDir(), "service.yaml")
	if err := os.WriteFile(service, []byte(`{apiVersion: v1, kind: List, items: [
  {apiVersion: v1, kind: Service, metadata: {name: api}, spec: {ports: [{port: 19200, targetPort: 6443}]}},
  {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: api, labels: {kubernetes.io/service-name: api}},
    addressType: IPv4, ports: [{port: 6443}], endpoints: [{addresses: [10.10.0.1]}]}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	create := func(root string) {
		t.Helper()
		if out, err := cli(t, root, "kubectl", "--", "create", "-f", service); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	answers := func(address string) bool { // the API server answers plain HTTP with this status
		resp, err := http.Get("http://" + address)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusBadRequest
	}
	var at []string
	for _, root := range []string{one, two, one} {
		out, err := cli(t, root, "forward", "default/api:19200")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		at = append(at, strings.TrimSpace(out))
	}
	if at[0] != "127.0.0.1:19200" || at[1] == at[0] || at[2] != at[0] {
		t.Errorf("forwarded to %q, want 127.0.0.1:19200, another port, and the first again", at)
	}
	create(one)
	create(two)
	for _, address := range at {
		eventually(t, 20*time.Second, "an answer at "+address, func() bool { return answers(address) })
	}
	if out, err := cli(t, one, "kubectl", "--", "delete", "-f", service); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	create(one) // with another cluster IP
	eventually(t, 40*time.Second, "an answer of the Service created again", func() bool { return answers(at[0]) })
	if out, err := cli(t, one, "down"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := net.Dial("tcp", at[0]); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialing %s after its cluster stopped: %v, want connection refused", at[0], err)
	}
	if !answers(at[1]) {
		t.Error("the Service of the other cluster does not answer any more")
	}
}
