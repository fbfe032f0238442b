package configwatch

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// go-micro's package config/source imports the interfaces of go-micro's client, but not
// its implementations.
func TestLinksNeitherServiceFrameworkNorEtcd(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	if !slices.Contains(packages, "github.com/micro/go-micro/v2/config") {
		t.Fatalf("%d packages, without go-micro's config", len(packages))
	}
	const gomicro = "github.com/micro/go-micro/v2"
	for _, p := range packages {
		if p == gomicro || p == "google.golang.org/grpc" || strings.Contains(p, "etcd") {
			t.Errorf("the package links %s", p)
		}
		for _, part := range []string{"/service", "/server", "/client/grpc", "/config/cmd", "/web"} {
			if p == gomicro+part || strings.HasPrefix(p, gomicro+part+"/") {
				t.Errorf("the package links %s", p)
			}
		}
	}
}
