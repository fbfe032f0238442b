package pod

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// walls lists every package of pod/ with the packages of this repository that it may import. A package knows only those
// above it, so that it can be read, tested and replaced without the others. Only kubetest, which tests import, starts
// clusters.
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
	"internal/balancer":  "internal/broadcast internal/callstats internal/discovery internal/outcome",
	"internal/rpc":       "internal/balancer internal/callstats internal/codec internal/discovery internal/gomicro internal/outcome",
	// The end of a service
	"internal/shutdown": "internal/broadcast internal/gomicro internal/weblimit",
	// What services import
	"configwatch": "internal/apiserver",
	"":            "internal/apiserver internal/balancer internal/callstats internal/codec internal/discovery internal/gomicro internal/outcome internal/registration internal/rpc internal/shutdown",
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
	found := 0
	for line := range strings.Lines(string(out)) {
		paths := strings.Fields(line)
		allowed, ok := walls[short(paths[0])]
		if !ok {
			t.Errorf("package %s is not in the table: what may it import, and why is it a package?", paths[0])
			continue
		}
		found++
		for _, path := range paths[1:] {
			if strings.HasPrefix(path, module) && !slices.Contains(strings.Fields(allowed), short(path)) {
				t.Errorf("package %s imports %s, which is behind a wall", paths[0], path)
			}
		}
	}
	if found < 10 {
		t.Errorf("go list found %d packages", found)
	}
}
