package manifests

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestWorkflows checks that each GitHub workflow names its actions by commit, may only read
// the repository, uses no action that uploads anything but a cache, and runs with the newest
// patch of the Go version in go.mod. One of them looks for vulnerabilities every week.
func TestWorkflows(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, ".github/workflows/*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("workflows: %q, %v", files, err)
	}
	goMod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	minor := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(goMod)
	if minor == nil {
		t.Fatal("go.mod names no version of Go")
	}
	weekly := false
	pinned := regexp.MustCompile(`^actions/(checkout|setup-go|cache)@[0-9a-f]{40}$`)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var w struct {
			On          struct{ Schedule []struct{ Cron string } } `json:"true"` // as YAML 1.1 reads the key on
			Permissions map[string]string
			Jobs        map[string]struct {
				Permissions map[string]string
				Steps       []struct {
					Uses, Run string
					With      map[string]any
				}
			}
		}
		if err := yaml.Unmarshal(b, &w); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if want := map[string]string{"contents": "read"}; !reflect.DeepEqual(w.Permissions, want) {
			t.Errorf("%s has the permissions %v, want %v", file, w.Permissions, want)
		}
		for name, job := range w.Jobs {
			if job.Permissions != nil || len(job.Steps) == 0 {
				t.Errorf("%s: job %q has permissions of its own, %v, or no steps", file, name, job.Permissions)
			}
			for _, s := range job.Steps {
				if strings.HasPrefix(s.Uses, "actions/setup-go@") && (s.With["go-version"] != string(minor[1]) || s.With["check-latest"] != true || s.With["go-version-file"] != nil) {
					t.Errorf("%s: job %q sets up Go with %v, want the newest patch of %s", file, name, s.With, minor[1])
				}
				if s.Run == "make vuln" && len(w.On.Schedule) == 1 && regexp.MustCompile(`^\d+ \d+ \* \* \d$`).MatchString(w.On.Schedule[0].Cron) {
					weekly = true
				}
				if s.Uses != "" && !pinned.MatchString(s.Uses) {
					t.Errorf("%s: job %q uses %q, want one of three actions, pinned by commit", file, name, s.Uses)
				}
			}
		}
	}
	if !weekly {
		t.Error("no workflow runs make vuln every week")
	}
}
