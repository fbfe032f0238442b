package docs

import (
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

var update = flag.Bool("update", false, "copy the files into the blocks that show them, and write the Chinese pictures")

const root = "../.."

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func parse(t *testing.T, name string) (all []Block, prose []string) {
	t.Helper()
	all, prose, err := Blocks(read(t, name))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return all, prose
}

func TestSameBlocksInBothLanguages(t *testing.T) {
	en, _ := parse(t, "README.md")
	zh, _ := parse(t, "README_zh.md")
	for i := range max(len(en), len(zh)) {
		if i >= len(en) || i >= len(zh) {
			t.Fatalf("README.md has %d blocks, README_zh.md %d", len(en), len(zh))
		}
		if en[i].Text != zh[i].Text || en[i].Kind != zh[i].Kind || en[i].File != zh[i].File {
			t.Errorf("block %d differs: README.md:%d and README_zh.md:%d", i+1, en[i].Line, zh[i].Line)
		}
	}
}

func TestSameHeadingsInBothLanguages(t *testing.T) {
	heading := regexp.MustCompile(`^(#+) `)
	var levels [2][]string
	for i, name := range []string{"README.md", "README_zh.md"} {
		_, prose := parse(t, name)
		for _, l := range prose {
			if m := heading.FindStringSubmatch(l); m != nil {
				levels[i] = append(levels[i], m[1])
			}
		}
	}
	if !slices.Equal(levels[0], levels[1]) {
		t.Errorf("the levels of the headings differ:\n%q\n%q", levels[0], levels[1])
	}
}

func TestBlocksMatchFiles(t *testing.T) {
	for _, name := range []string{"README.md", "README_zh.md"} {
		lines := strings.Split(read(t, name), "\n")
		shown := 0
		all, _ := parse(t, name)
		slices.Reverse(all) // from the end, so that -update does not move the lines of blocks not yet replaced
		for _, b := range all {
			if b.File == "" {
				continue
			}
			shown++
			text, err := os.ReadFile(filepath.Join(root, b.File))
			if err != nil {
				t.Errorf("%s:%d: %v", name, b.Line, err)
				continue
			}
			if strings.Contains("\n"+string(text)+"\n", "\n"+b.Text+"\n") {
				continue
			}
			if whole := strings.Split(strings.TrimRight(string(text), "\n"), "\n"); *update {
				lines = slices.Replace(lines, b.Line, b.Line+strings.Count(b.Text, "\n")+1, whole...)
			} else {
				t.Errorf("%s:%d: the block differs from %s; `go test ./test/docs -update` copies the file", name, b.Line, b.File)
			}
		}
		if shown < 10 {
			t.Errorf("%s shows %d files, want at least 10", name, shown)
		}
		if *update {
			if err := os.WriteFile(filepath.Join(root, name), []byte(strings.Join(lines, "\n")), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCodeIsEnglish(t *testing.T) {
	han := func(r rune) bool { return unicode.Is(unicode.Han, r) }
	for _, name := range []string{"README.md", "README_zh.md"} {
		all, _ := parse(t, name)
		for _, b := range all {
			if strings.ContainsFunc(b.Text, han) {
				t.Errorf("%s:%d: the block contains Han characters", name, b.Line)
			}
		}
	}
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard",
		"*.go", "*.mod", "*.proto", "*.yaml", "*.yml", "*.sh", "*Dockerfile", "*Makefile", ".ci/*")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatalf("listing the checkout's files: %v", err)
	}
	files := strings.Split(strings.TrimRight(string(out), "\x00"), "\x00")
	if len(files) < 50 {
		t.Errorf("found %d files of code, want at least 50", len(files))
	}
	for _, f := range files {
		if b, err := os.ReadFile(filepath.Join(root, f)); err == nil && strings.ContainsFunc(string(b), han) { // err means that the file is deleted and not committed
			t.Errorf("%s contains Han characters", f)
		}
	}
}

// anchors returns the anchors that GitHub generates for a file's headings.
func anchors(t *testing.T, name string) map[string]bool {
	heading := regexp.MustCompile(`^#+ +(.+?) *$`)
	link := regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`)
	drop := regexp.MustCompile(`[^\p{L}\p{M}\p{N}\p{Pc}\- ]`)
	all := map[string]bool{}
	_, prose := parse(t, name) // without blocks, whose comments are not headings
	for _, line := range prose {
		m := heading.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		a := strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(link.ReplaceAllString(m[1], "$1")), ""), " ", "-")
		unique := a
		for n := 1; all[unique]; n++ {
			unique = a + "-" + strconv.Itoa(n)
		}
		all[unique] = true
	}
	return all
}

func TestLinksResolve(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)|(?:src|href|srcset)="([^"]+)"`)
	for _, name := range []string{"README.md", "README_zh.md", "CONTRIBUTING.md", "SECURITY.md"} {
		_, prose := parse(t, name)
		inside := 0
		for _, m := range link.FindAllStringSubmatch(strings.Join(prose, "\n"), -1) {
			if strings.HasPrefix(m[1]+m[2], "https://") {
				continue
			}
			file, anchor, has := strings.Cut(m[1]+m[2], "#")
			if file == "" {
				file = name
				inside++
			}
			if _, err := os.Stat(filepath.Join(root, file)); err != nil {
				t.Errorf("%s: %v", name, err)
			} else if has && !anchors(t, file)[anchor] {
				t.Errorf("%s: %s has no heading for #%s", name, file, anchor)
			}
		}
		if strings.HasPrefix(name, "README") && inside < 10 {
			t.Errorf("%s has %d links to its own headings, want at least 10", name, inside)
		}
	}
}

// TestSecurityNamesTests checks that every test that SECURITY.md names exists.
func TestSecurityNamesTests(t *testing.T) {
	defined := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(b, -1) {
			defined[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`\bTest[A-Z]\w*`).FindAllString(read(t, "SECURITY.md"), -1)
	if len(names) < 10 {
		t.Errorf("SECURITY.md names %d tests, want at least 10", len(names))
	}
	for _, name := range names {
		if !defined[name] {
			t.Errorf("SECURITY.md names %s, which does not exist", name)
		}
	}
}
