package pod

import (
	"os/exec"
	"strings"
	"testing"
)

// walls lists every package of pod/ with the packages of this repository that it imports. Each knows only packages above
// it, so that it can be read, tested and replaced without the others. Only kubetest, which tests import, starts clusters.
var walls = map[string]string{
	// What knows nothing of the others
	"internal/apiserver": "",
	"internal/broadcast": "",
	"internal/codec":     "",
	"internal/gomicro":   "",
	"internal/podmeta":   "",
	"internal/weblimit":  "",
	// The pods
	"internal/podwatch":     "internal/apiserver",
	"internal/registration": "internal/apiserver internal/broadcast internal/podmeta internal/podwatch",
	// Calls
	"internal/outcome":   "",
	"internal/callstats": "internal/outcome",
	"internal/discovery": "internal/apiserver internal/broadcast internal/callstats internal/podmeta internal/podwatch",
	"internal/balancer":  "internal/callstats internal/discovery internal/outcome",
	"internal/rpc":       "internal/balancer internal/callstats internal/codec internal/discovery internal/gomicro internal/outcome",
	// The end of a service
	"internal/shutdown": "internal/broadcast internal/gomicro internal/weblimit",
	// What services import
	"configwatch": "internal/apiserver",
	"":            "internal/apiserver internal/balancer internal/discovery internal/gomicro internal/registration internal/rpc internal/shutdown",
	// What tests import
	"internal/kubetest": "internal/apiserver internal/podmeta test/launch test/process",
}

func TestWalls(t *testing.T) {
	const module = "github.com/jiangjiancc/go_micro_k8s/"
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	short := func(path string) string { // relative to pod/, if it is below
		path = strings.TrimPrefix(path, module)
		if path == "pod" {
			return ""
		}
		return strings.TrimPrefix(path, "pod/")
	}
	found := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		paths := strings.Fields(line)
		name := short(paths[0])
		found[name] = true
		want, ok := walls[name]
		if !ok {
			t.Errorf("package %s is not in the table: what may it import, and why is it a package?", paths[0])
			continue
		}
		var got []string
		for _, path := range paths[1:] {
			if strings.HasPrefix(path, module) {
				got = append(got, short(path))
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("package %s imports %q, the table has %q", paths[0], got, want)
		}
	}
	for name := range walls {
		if !found[name] {
			t.Errorf("the table has %q, which is no package", name)
		}
	}
}
