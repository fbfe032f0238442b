package manifests

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestWorkflows checks that each GitHub workflow names its actions by commit, may only read
// the repository, and uses no action that uploads anything but a cache.
func TestWorkflows(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, ".github/workflows/*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("workflows: %q, %v", files, err)
	}
	pinned := regexp.MustCompile(`^actions/(checkout|setup-go|cache)@[0-9a-f]{40}$`)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var w struct {
			Permissions map[string]string
			Jobs        map[string]struct {
				Permissions map[string]string
				Steps       []struct{ Uses string }
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
				if s.Uses != "" && !pinned.MatchString(s.Uses) {
					t.Errorf("%s: job %q uses %q, want one of three actions, pinned by commit", file, name, s.Uses)
				}
			}
		}
	}
}
