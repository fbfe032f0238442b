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
	"internal/apiserver":    "",
	"internal/broadcast":    "",
	"internal/codec":        "",
	"internal/debughandler": "",
	"internal/events":       "",
	"internal/gomicro":      "",
	"internal/mtls":         "",
	"internal/netanswer":    "",
	"internal/overload":     "",
	"internal/podmeta":      "",
	"internal/subset":       "",
	"internal/weblimit":     "",
	"internal/zone":         "",
	"internal/subchannel":   "internal/broadcast",
	// A second registry
	"internal/also": "internal/broadcast",
	// The pods
	"internal/podwatch":     "internal/apiserver",
	"internal/registration": "internal/apiserver internal/broadcast internal/events internal/podmeta internal/podwatch",
	// Calls
	"internal/outcome":   "",
	"internal/callstats": "internal/outcome",
	"internal/discovery": "internal/apiserver internal/broadcast internal/callstats internal/events internal/podmeta internal/podwatch",
	"internal/hedge":     "internal/outcome",
	"internal/retry":     "internal/gomicro",
	"internal/balancer":  "internal/callstats internal/discovery internal/events internal/outcome internal/subset internal/zone",
	"internal/rpc":       "internal/balancer internal/codec internal/discovery internal/events internal/gomicro internal/hedge internal/netanswer internal/outcome internal/retry internal/subchannel",
	// From outside of the cluster
	"internal/portforward": "internal/apiserver internal/outcome",
	// The end of a service
	"internal/shutdown": "internal/broadcast internal/debughandler internal/events internal/gomicro internal/overload internal/weblimit",
	// What services import
	"configwatch": "internal/apiserver",
	"debugtrace":  "internal/debughandler",
	"":            "internal/also internal/apiserver internal/balancer internal/callstats internal/discovery internal/events internal/gomicro internal/hedge internal/portforward internal/registration internal/rpc internal/shutdown",
	"identity":    " internal/mtls",
	"metrics":     " configwatch internal/weblimit", // and pod itself, whose name is empty here
	"tracing":     " internal/events",
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
