// Package docs checks that README.md and README_zh.md say the same, and say what
// the files say.
//
// A block below a line that is one file's path in backquotes and a colon equals
// lines of that file; `go test ./test/docs -update` copies whole files anew.
package docs

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

var update = flag.Bool("update", false, "write the files' present text into the blocks that show whole files")

const root = "../.."

// block is one fenced block of a README.
type block struct {
	kind, text string
	file       string // the file it shows, "" when none
	line       int    // of its first line of text, from 0
}

var (
	fence = regexp.MustCompile("^```(.*)$")
	shows = regexp.MustCompile("^`([^`]+)`(（[^）]*）| \\([^)]*\\))?[:：]$")
)

func read(t *testing.T, name string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(b), "\n")
}

func blocks(t *testing.T, name string) (all []block) {
	t.Helper()
	lines := read(t, name)
	above := ""
	for i := 0; i < len(lines); i++ {
		m := fence.FindStringSubmatch(lines[i])
		if m == nil {
			if strings.TrimSpace(lines[i]) != "" {
				above = lines[i]
			}
			continue
		}
		b := block{kind: m[1], line: i + 1}
		end := i + 1
		for end < len(lines) && lines[end] != "```" {
			end++
		}
		if end == len(lines) {
			t.Fatalf("%s:%d: a block without end", name, i+1)
		}
		b.text = strings.Join(lines[i+1:end], "\n")
		if f := shows.FindStringSubmatch(above); f != nil {
			b.file = f[1]
		}
		all, i, above = append(all, b), end, ""
	}
	return all
}

func TestBothLanguagesHaveTheSameBlocks(t *testing.T) {
	en, zh := blocks(t, "README.md"), blocks(t, "README_zh.md")
	for i := range max(len(en), len(zh)) {
		if i >= len(en) || i >= len(zh) {
			t.Fatalf("README.md has %d blocks, README_zh.md %d", len(en), len(zh))
		}
		if en[i].text != zh[i].text || en[i].kind != zh[i].kind || en[i].file != zh[i].file {
			t.Errorf("block %d differs: README.md:%d and README_zh.md:%d", i+1, en[i].line, zh[i].line)
		}
	}
}

func TestBothLanguagesHaveTheSameHeadings(t *testing.T) {
	heading := regexp.MustCompile(`^(#+) `)
	var levels [2][]string
	for i, name := range []string{"README.md", "README_zh.md"} {
		in := false
		for _, l := range read(t, name) {
			if fence.MatchString(l) {
				in = !in
			}
			if m := heading.FindStringSubmatch(l); m != nil && !in {
				levels[i] = append(levels[i], m[1])
			}
		}
	}
	if !slices.Equal(levels[0], levels[1]) {
		t.Errorf("levels of headings:\n%q\n%q", levels[0], levels[1])
	}
}

func TestBlocksEqualTheirFiles(t *testing.T) {
	for _, name := range []string{"README.md", "README_zh.md"} {
		lines := read(t, name)
		shown := 0
		all := blocks(t, name)
		slices.Reverse(all) // so that -update keeps the line numbers above
		for _, b := range all {
			if b.file == "" {
				continue
			}
			shown++
			text, err := os.ReadFile(filepath.Join(root, b.file))
			if err != nil {
				t.Errorf("%s:%d: %v", name, b.line, err)
				continue
			}
			if strings.Contains("\n"+string(text)+"\n", "\n"+b.text+"\n") {
				continue
			}
			if whole := strings.Split(strings.TrimRight(string(text), "\n"), "\n"); *update {
				lines = slices.Replace(lines, b.line, b.line+strings.Count(b.text, "\n")+1, whole...)
			} else {
				t.Errorf("%s:%d: the block is not in %s; go test ./test/docs -update copies the file", name, b.line, b.file)
			}
		}
		if shown < 10 {
			t.Errorf("%s shows %d files: is this test blind?", name, shown)
		}
		if *update {
			if err := os.WriteFile(filepath.Join(root, name), []byte(strings.Join(lines, "\n")), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCodeIsEnglish(t *testing.T) {
	for _, name := range []string{"README.md", "README_zh.md"} {
		for _, b := range blocks(t, name) {
			if i := strings.IndexFunc(b.text, func(r rune) bool { return unicode.Is(unicode.Han, r) }); i >= 0 {
				t.Errorf("%s:%d: a block holds Han characters", name, b.line)
			}
		}
	}
}

func TestLinksResolve(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading := regexp.MustCompile(`(?m)^#+ (.+)$`)
	drop := regexp.MustCompile(`[^\p{L}\p{N}\- _]`)
	for _, name := range []string{"README.md", "README_zh.md", "CONTRIBUTING.md", "SECURITY.md"} {
		text := strings.Join(read(t, name), "\n")
		anchors := map[string]bool{}
		for _, m := range heading.FindAllStringSubmatch(text, -1) {
			title := regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`).ReplaceAllString(m[1], "$1")
			anchors["#"+strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(title), ""), " ", "-")] = true
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, _, _ := strings.Cut(m[1], "#")
			switch {
			case strings.HasPrefix(m[1], "http"):
			case strings.HasPrefix(m[1], "#"):
				if !anchors[m[1]] {
					t.Errorf("%s: no heading for %q", name, m[1])
				}
			default:
				if _, err := os.Stat(filepath.Join(root, target)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}
