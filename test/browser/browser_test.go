package browser

import (
	"os"
	"testing"
)

// A browser leaves no file behind, neither in its profile nor in the directory of temporary files.
func TestLeftovers(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a browser: run without -short")
	}
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Run("page", func(t *testing.T) {
		b := Open(t, "data:text/html,<title>hello</title>", nil)
		b.Wait("the page", `document.title === "hello"`)
	})
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("the browser leaves %v, %v", left, err)
	}
}
