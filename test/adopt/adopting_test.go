// Package adopt tests what a service in another repository gets: the modules of this
// repository as a module proxy serves them, the steps of docs/adopting.md, and go-micro's
// etcd registry, which needs one of the modules in third_party/.
package adopt

import (
	"bufio"
	"debug/buildinfo"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/docs"
	_ "google.golang.org/genproto/googleapis/type/date" // keeps this module in go.mod, which says why
)

const (
	root       = "../.."
	repository = "github.com/jiangjiancc/go_micro_k8s"
)

// TestAdopting follows docs/adopting.md in a new module: it adds the lines of go.mod, runs
// the commands and builds the services of the page, once for each of the two etcd modules.
func TestAdopting(t *testing.T) {
	if testing.Short() {
		t.Skip("it fills a module cache of its own, which takes half a minute")
	}
	blocks, _, err := docs.Blocks(read(t, filepath.Join(root, "docs/adopting.md")))
	if err != nil {
		t.Fatal(err)
	}
	program := read(t, filepath.Join(root, "pod/example_service_test.go"))
	program = strings.Replace(program, "package pod_test", "package main", 1) + "\nfunc main() { ExampleLifecycle() }\n"
	// Modules of others come from the module cache and, if they are not there, from the usual proxy. The checksum
	// database does not know the modules of this checkout.
	cache := t.TempDir()
	environ := append(os.Environ(), "GOWORK=off", "GOFLAGS=-trimpath -modcacherw", "GOSUMDB=off", "GOMODCACHE="+cache,
		fmt.Sprintf("GOPROXY=file://%s,file://%s/cache/download,%s", publish(t), goEnv(t, "GOMODCACHE"), goEnv(t, "GOPROXY")))

	var lines string
	var commands []string
	for _, b := range blocks {
		if b.File == "go.mod" {
			lines = strings.ReplaceAll(b.Text, "···", "")
		} else if b.Kind == "sh no-run" && !strings.HasPrefix(b.Text, "go run ") {
			commands = append(commands, b.Text)
		}
	}
	for _, module := range []string{"etcd", "etcd-client"} {
		t.Run(module, func(t *testing.T) {
			dir := t.TempDir()
			goMod := filepath.Join(dir, "go.mod")
			run(t, dir, environ, "go", "mod", "init", "example.com/greeter")
			write(t, filepath.Join(dir, "deployment.yaml"), read(t, filepath.Join(root, "preflight/testdata/deployment-registry-from-env.yaml")))
			ran := 0
			for i, b := range blocks {
				switch {
				case b.File == "go.mod":
					write(t, goMod, read(t, goMod)+lines)
				case b.File == "pod/example_service_test.go":
					write(t, filepath.Join(dir, "main.go"), program) // test/docs compares the block with the file
				case b.Kind == "sh no-run" && strings.HasPrefix(b.Text, "go run "):
					ran++
					c := exec.CommandContext(t.Context(), "bash", "-euc", b.Text)
					c.Dir, c.Env = dir, environ
					out, err := c.CombinedOutput()
					text := regexp.MustCompile(`(?m)^go: .*\n`).ReplaceAllString(string(out), "") // the names of downloaded modules
					if err == nil || text != blocks[i+1].Text+"\n" {
						t.Errorf("running %s: %v, and the output is\n%s\nwant\n%s", b.Text, err, text, blocks[i+1].Text)
					}
				case b.Kind == "sh no-run":
					ran++
					run(t, dir, environ, "bash", "-euxc", strings.ReplaceAll(b.Text, "/third_party/etcd@", "/third_party/"+module+"@"))
				}
			}
			if ran != 3 {
				t.Errorf("the page has %d blocks of commands, want 3: the modules, the build, the manifest", ran)
			}
			run(t, dir, environ, "go", "mod", "tidy", "-diff")
			keepModules(t, cache)

			resolved := read(t, goMod)
			line := regexp.MustCompile(`(?m)^replace github\.com/coreos/etcd => ` + regexp.QuoteMeta(repository+"/third_party/"+module) + ` v\S+$`)
			if !line.MatchString(resolved) {
				t.Errorf("go.mod does not match %s:\n%s", line, resolved)
			}
			binary := filepath.Join(dir, "greeter")
			build, err := buildinfo.ReadFile(binary)
			if err != nil {
				t.Fatal(err)
			}
			client := false
			for _, m := range build.Deps {
				client = client || m.Path == "go.etcd.io/etcd/client/v3"
			}
			if client != (module == "etcd-client") {
				t.Errorf("the program contains an etcd client: %v", client)
			}
			if client {
				testClientConnects(t, binary)
			} else {
				testRegistrationNamesRemedy(t, binary, "127.0.0.1:2379")
				testRegistrationNamesRemedy(t, binary, "etcd.example:2379", "MICRO_REGISTRY_ADDRESS=etcd.example")
			}
		})
	}
	t.Run("messages", func(t *testing.T) { testMessages(t, environ, lines, program, commands) })
}

// testRegistrationNamesRemedy expects that a service with MICRO_REGISTRY=etcd logs the error
// of the module that contains no client.
func testRegistrationNamesRemedy(t *testing.T, binary, address string, environ ...string) {
	t.Helper()
	want := fmt.Sprintf("Server register error: calling etcd at %q: ", address)
	for line := range start(t, binary, environ...) {
		if _, text, ok := strings.Cut(line, want); ok {
			if !strings.Contains(text, "no etcd client") || !strings.Contains(text, repository+"/third_party/etcd-client") {
				t.Errorf("the log does not name the cause and the remedy: %s", line)
			}
			return
		}
	}
	t.Errorf("the log does not contain %q", want)
}

// testClientConnects expects that a service with MICRO_REGISTRY=etcd connects to its address.
func testClientConnects(t *testing.T, binary string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := listener.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	start(t, binary, "MICRO_REGISTRY_ADDRESS="+listener.Addr().String())
	c, err := listener.Accept()
	if err != nil {
		t.Fatalf("waiting for a connection of the etcd client: %v", err)
	}
	c.Close()
}

// start starts a service with MICRO_REGISTRY=etcd and returns the lines of its log. They end
// after 30 s or with the test.
func start(t *testing.T, binary string, environ ...string) <-chan string {
	t.Helper()
	c := exec.CommandContext(t.Context(), binary)
	c.Env = append(environ, "MICRO_REGISTRY=etcd", "MICRO_SERVER_ADDRESS=127.0.0.1:0")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = c.Stdout
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines, done := make(chan string), make(chan struct{})
	kill := time.AfterFunc(30*time.Second, func() { _ = c.Process.Kill() })
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			select {
			case lines <- s.Text():
			case <-done:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(done)
		kill.Stop()
		_ = c.Process.Kill()
		for range lines { // until the reader has ended
		}
		_ = c.Wait()
	})
	return lines
}

// publish returns the directory of a module proxy that serves the files of this checkout as
// the branch main of the repository. As a real proxy does, it lets go read them with git.
func publish(t *testing.T) string {
	t.Helper()
	checkout, cache, config := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "gitconfig")
	write(t, config, fmt.Sprintf("[user]\nname = test\nemail = test@example.com\n[url \"file://%s\"]\ninsteadOf = https://%s\n", checkout, repository))
	environ := append(os.Environ(), "GIT_CONFIG_GLOBAL="+config, "GOPROXY=direct", "GOSUMDB=off", "GOFLAGS=-modcacherw", "GOMODCACHE="+cache)

	list := run(t, root, environ, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	for name := range strings.SplitSeq(strings.TrimRight(list, "\x00"), "\x00") {
		text, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) { // deleted and not committed
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(checkout, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(checkout, name), string(text))
	}
	for _, arguments := range []string{"init -q -b main", "add -A", "commit -q -m main"} {
		run(t, checkout, environ, "git", strings.Fields(arguments)...)
	}
	for _, module := range []string{repository, repository + "/preflight", repository + "/third_party/etcd", repository + "/third_party/etcd-client"} {
		run(t, t.TempDir(), environ, "go", "mod", "download", module+"@main")
		versions := filepath.Join(cache, "cache/download", module, "@v")
		info, err := filepath.Glob(filepath.Join(versions, "*.info"))
		if err != nil || len(info) != 1 {
			t.Fatalf("downloading %s: versions %q, %v", module, info, err)
		}
		write(t, filepath.Join(versions, "main.info"), read(t, info[0])) // what a proxy answers for the branch
	}
	return filepath.Join(cache, "cache/download")
}

// keepModules downloads the modules of others in a module cache into the user's, where the next
// run finds them without a network. go.sum does not list all of them.
func keepModules(t *testing.T, cache string) {
	t.Helper()
	arguments := []string{"mod", "download"}
	err := filepath.WalkDir(filepath.Join(cache, "cache/download"), func(file string, _ os.DirEntry, err error) error {
		name, zip := strings.CutSuffix(strings.TrimPrefix(file, filepath.Join(cache, "cache/download")+"/"), ".zip")
		if path, version, ok := strings.Cut(name, "/@v/"); ok && zip && !strings.HasPrefix(path, repository) {
			upper := regexp.MustCompile(`![a-z]`) // the cache writes A as !a
			arguments = append(arguments, upper.ReplaceAllStringFunc(path+"@"+version, func(s string) string { return strings.ToUpper(s[1:]) }))
		}
		return err
	})
	if err != nil || len(arguments) < 50 {
		t.Fatalf("looking for modules in %s: found %q, %v", cache, arguments, err)
	}
	run(t, t.TempDir(), os.Environ(), "go", arguments...)
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	return strings.TrimSpace(run(t, root, os.Environ(), "go", "env", name))
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// run runs a command and returns its output without its messages, which it shows if the command fails.
func run(t *testing.T, dir string, environ []string, name string, arguments ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, arguments...)
	c.Dir, c.Env = dir, environ
	out, err := c.Output()
	if err != nil {
		messages := ""
		if e, ok := err.(*exec.ExitError); ok {
			messages = string(e.Stderr)
		}
		t.Fatalf("%s %q: %v\n%s%s", name, arguments, err, out, messages)
	}
	return string(out)
}
