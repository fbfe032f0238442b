package adopt

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// testMessages causes each message of the table of docs/modules.md. commands are those of docs/adopting.md: the modules, the build.
func testMessages(t *testing.T, environ []string, lines, program string, commands []string) {
	_, get, _ := strings.Cut(commands[0], "\n")
	const grpc = "google.golang.org/grpc"
	var found []string
	for _, c := range []struct {
		name, lines string
		commands    []string // the last one fails, or its message is the one
		message     string
		fails       bool
	}{
		{"no replace lines", "", []string{get}, "requires k8s.io/api@v0.0.0-00010101000000-000000000000", true},
		{"nothing is required", "", []string{"go build ./..."}, "no required module provides package " + repository + "/pod", true},
		{"before go mod tidy", lines, []string{commands[0], "go build ./..."}, "missing go.sum entry for module providing package", true},
		{"etcd's client is not replaced", lines, []string{get, "go mod tidy"}, "does not contain package " + grpc + "/naming", true},
		{"gRPC is replaced", lines + "\nreplace " + grpc + " => " + grpc + " v1.26.0\n", []string{commands[0], "go mod tidy"},
			"replaced by " + grpc + "@v1.26.0), but does not contain package " + grpc + "/credentials/insecure", true},
		{"a folder that is not there", lines + "\nreplace github.com/coreos/etcd => ./third_party/etcd\n", []string{get}, "reading third_party/etcd/go.mod", true},
		{"an older gRPC", lines, []string{commands[0], "go get " + grpc + "@v1.26.0"}, "removed " + repository, false},
		{"vendor is older than go.mod", lines, []string{commands[0], "go mod tidy", "go mod vendor", "go mod edit -droprequire=" + grpc, "go build ./..."}, "inconsistent vendoring", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			goMod := filepath.Join(dir, "go.mod")
			run(t, dir, environ, "go", "mod", "init", "example.com/greeter")
			write(t, goMod, read(t, goMod)+c.lines)
			write(t, filepath.Join(dir, "main.go"), program)
			last := len(c.commands) - 1
			for _, command := range c.commands[:last] {
				run(t, dir, environ, "bash", "-euc", command)
			}
			command := exec.CommandContext(t.Context(), "bash", "-euc", c.commands[last])
			command.Dir, command.Env = dir, environ
			if out, err := command.CombinedOutput(); !strings.Contains(string(out), c.message) || (err != nil) != c.fails {
				t.Errorf("%s: %v\n%s\nwant %q", c.commands[last], err, out, c.message)
			}
		})
		found = append(found, c.message)
	}
	for _, page := range []string{"docs/modules.md", "docs/modules_zh.md"} {
		var rows []string
		for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(read(t, filepath.Join(root, page)), -1) {
			rows = append(rows, m[1])
		}
		if !slices.Equal(rows, found) {
			t.Errorf("%s has the messages\n%s\nwant\n%s", page, strings.Join(rows, "\n"), strings.Join(found, "\n"))
		}
	}
}
