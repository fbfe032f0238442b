package main

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// checkForward checks that a forwarded Service of each of two clusters answers on the
// host, also after the Service was deleted and created again, until its cluster stops.
func checkForward(t *testing.T, first, second string) {
	t.Helper()
	free, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(free[0])
	service := filepath.Join(t.TempDir(), "service.yaml")
	if err := os.WriteFile(service, []byte(`{apiVersion: v1, kind: List, items: [
  {apiVersion: v1, kind: Service, metadata: {name: api}, spec: {ports: [{port: `+port+`, targetPort: 6443}]}},
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
	var addresses []string
	for _, root := range []string{first, second, first} {
		out, err := cli(t, root, "forward", "default/api:"+port)
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		addresses = append(addresses, strings.TrimSpace(out))
	}
	if addresses[0] != "127.0.0.1:"+port || addresses[1] == addresses[0] || addresses[2] != addresses[0] {
		t.Errorf("forwarded to %q, want 127.0.0.1:%s, another port, and the first address again", addresses, port)
	}
	create(first)
	create(second)
	for _, address := range addresses {
		eventually(t, time.Minute, "an answer at "+address, func() bool { return answers(address) })
	}
	if out, err := cli(t, first, "kubectl", "--", "delete", "-f", service); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	create(first) // the new Service has another cluster IP
	eventually(t, time.Minute, "an answer of the Service created again", func() bool { return answers(addresses[0]) })
	if out, err := cli(t, first, "down"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := net.Dial("tcp", addresses[0]); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialing %s after its cluster stopped: %v, want connection refused", addresses[0], err)
	}
	if !answers(addresses[1]) {
		t.Error("the Service of the other cluster does not answer any more")
	}
}
