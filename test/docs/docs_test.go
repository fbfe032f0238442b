package docs

import (
	"flag"
	"fmt"
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

var update = flag.Bool("update", false, "copy files and measured numbers into the documents that show them, and write the Chinese pictures")

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

// pages returns the English documents: README.md and those in docs/.
func pages(t *testing.T) []string {
	t.Helper()
	all, err := Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 9 {
		t.Fatalf("found %d documents, want at least 9", len(all))
	}
	return all
}

// chinese returns the name of a document's Chinese version.
func chinese(page string) string { return strings.TrimSuffix(page, ".md") + "_zh.md" }

// bothLanguages returns all documents.
func bothLanguages(t *testing.T) (all []string) {
	for _, p := range pages(t) {
		all = append(all, p, chinese(p))
	}
	return all
}

func TestSameBlocksInBothLanguages(t *testing.T) {
	for _, page := range pages(t) {
		en, _ := parse(t, page)
		zh, _ := parse(t, chinese(page))
		if len(en) != len(zh) {
			t.Errorf("%s has %d blocks, %s %d", page, len(en), chinese(page), len(zh))
			continue
		}
		for i := range en {
			if en[i].Text != zh[i].Text || en[i].Kind != zh[i].Kind || en[i].File != zh[i].File {
				t.Errorf("block %d differs: %s:%d and %s:%d", i+1, page, en[i].Line, chinese(page), zh[i].Line)
			}
		}
	}
}

// TestSameStructureInBothLanguages compares the levels of the headings, the
// folded parts, and the number of columns of each table row.
func TestSameStructureInBothLanguages(t *testing.T) {
	structure := regexp.MustCompile(`^(#+ |<details>|</details>|\|.*)`)
	of := func(name string) (all []string) {
		_, prose := parse(t, name)
		for _, l := range prose {
			if m := structure.FindString(l); strings.HasPrefix(m, "|") {
				all = append(all, strings.Repeat("|", strings.Count(m, "|")))
			} else if m != "" {
				all = append(all, m)
			}
		}
		return all
	}
	for _, page := range pages(t) {
		if en, zh := of(page), of(chinese(page)); !slices.Equal(en, zh) {
			t.Errorf("headings, folded parts or tables of %s and %s differ:\n%q\n%q", page, chinese(page), en, zh)
		}
	}
}

func TestBlocksMatchFiles(t *testing.T) {
	for _, name := range bothLanguages(t) {
		lines := strings.Split(read(t, name), "\n")
		all, _ := parse(t, name)
		shown := 0
		slices.Reverse(all) // from the end, so that -update does not move the lines of blocks not yet replaced
		for _, b := range all {
			if b.File == "" {
				continue
			}
			shown++
			text := strings.TrimRight(read(t, b.File), "\n")
			if shows(b.Text, text) {
				continue
			}
			if *update && !strings.Contains(b.Text, "···") {
				end := b.Line + slices.Index(lines[b.Line:], "```") // not from b.Text, which is "" with one empty line and with none
				lines = slices.Replace(lines, b.Line, end, strings.Split(text, "\n")...)
			} else {
				t.Errorf("%s:%d: the block differs from %s; `go test ./test/docs -update` copies whole files, blocks with ··· are edited by hand", name, b.Line, b.File)
			}
		}
		if strings.HasPrefix(name, "README") && shown < 10 {
			t.Errorf("%s shows %d files, want at least 10", name, shown)
		}
		if *update {
			if err := os.WriteFile(filepath.Join(root, name), []byte(strings.Join(lines, "\n")), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestFalsifiedBlocksDiffer changes each block that shows a file and expects that
// the comparison notices.
func TestFalsifiedBlocksDiffer(t *testing.T) {
	for _, name := range bothLanguages(t) {
		all, _ := parse(t, name)
		for _, b := range all {
			if b.File == "" {
				continue
			}
			file := strings.TrimRight(read(t, b.File), "\n")
			lines := strings.Split(b.Text, "\n")
			for i, l := range lines {
				for what, changed := range map[string][]string{
					"changed":  slices.Replace(slices.Clone(lines), i, i+1, l+"x"),
					"added":    slices.Insert(slices.Clone(lines), i, "a line that is in no file"),
					"left out": slices.Delete(slices.Clone(lines), i, i+1),
				} {
					if l == "···" || what == "left out" && (i > 0 && lines[i-1] == "···" || i+1 < len(lines) && lines[i+1] == "···") {
						continue // the block stays true
					}
					if shows(strings.Join(changed, "\n"), file) {
						t.Errorf("%s:%d: with line %q %s the block still passes", name, b.Line+i+1, l, what)
					}
				}
			}
		}
	}
}

func TestShows(t *testing.T) {
	for _, c := range []struct {
		block string
		want  bool
	}{
		{"a\nb\nc\nd", true},
		{"a\nb\nc", false}, // a part without ···
		{"b\nc\nd", false},
		{"a\nb\nc\n···", true},
		{"···\nb\n···", true},
		{"···\nd", true},
		{"a\n···\nd", true},
		{"a\nd", false},
		{"a\nb\n···\nc\nd", false}, // ··· that stands for no line
		{"d\n···\na", false},
	} {
		if got := shows(c.block, "a\nb\nc\nd"); got != c.want {
			t.Errorf("%q: got %v, want %v", c.block, got, c.want)
		}
	}
}

// measured finds a link to where a number comes from: its text is the number, the
// title says which. The text of
//
//	[126 ns](../test/bench/RESULTS.md "pod/: pick an instance of 10")
//
// contains the first numbers of the column pod/ in that row, and that of
//
//	[4 failed](../test/e2e/faults_test.go "replica-frozen")
//
// the number of calls that may fail, and the throughput that must remain. The title "machine"
// stands for the first line of the results, which tells the day and the machine.
var measured = regexp.MustCompile(`\[([^\[\]]*)\]\((?:\.\./)?(test/(?:bench|faults|orders)/RESULTS\.md|test/e2e/faults_test\.go) "([^"]*)"\)`)

var number = regexp.MustCompile(`\d+(,\d{3})*(\.\d+)?( ?(ns|µs|ms|s|MiB|%)\b)?`)

// measurement returns the numbers that a link of measured stands for.
func measurement(file, text, title string) ([]string, error) {
	if strings.HasSuffix(file, ".go") {
		for _, m := range regexp.MustCompile(`\{"([^"]+)", (\d+), ([\d.]+),`).FindAllStringSubmatch(text, -1) {
			if m[1] == title {
				share, err := strconv.ParseFloat(m[3], 64)
				return []string{m[2], fmt.Sprintf("%.0f", 100*share)}, err
			}
		}
		return nil, fmt.Errorf("no fault %q", title)
	}
	if title == "machine" {
		first, _, _ := strings.Cut(text, "\n")
		return number.FindAllString(first, -1), nil
	}
	column, row, ok := strings.Cut(title, ": ")
	var header, previous []string // of the table that contains the line
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.TrimSuffix(strings.TrimSpace(line), " |"), " | ")
		if strings.HasPrefix(strings.ReplaceAll(line, " ", ""), "|---") {
			header = previous
		}
		previous = cells
		name, _, _ := strings.Cut(strings.TrimPrefix(cells[0], "| "), " (") // without the row's remark
		if !ok || name != row || len(cells) != len(header) {
			continue
		}
		i := slices.Index(header, column)
		if column == "plugin" { // short for go-micro's plugin, selector and client
			i = 1
		}
		if i > 0 {
			return number.FindAllString(cells[i], -1), nil
		}
	}
	return nil, fmt.Errorf("no row %q with this column", title)
}

// TestMeasuredNumbers compares the numbers in the documents with the benchmark's
// result and with the budgets of the fault test. With -update it copies them.
func TestMeasuredNumbers(t *testing.T) {
	for _, name := range bothLanguages(t) {
		before, found := read(t, name), 0
		after := measured.ReplaceAllStringFunc(before, func(link string) string {
			found++
			m := measured.FindStringSubmatch(link)
			want, err := measurement(m[2], read(t, m[2]), m[3])
			if err != nil {
				t.Errorf("%s: %s: %v", name, m[2], err)
				return link
			}
			got := number.FindAllString(m[1], -1)
			if len(got) == 0 || len(got) > len(want) {
				t.Errorf("%s: [%s] has %d numbers, %q in %s has %d", name, m[1], len(got), m[3], m[2], len(want))
				return link
			}
			i := -1
			text := number.ReplaceAllStringFunc(m[1], func(string) string { i++; return want[i] })
			if text != m[1] && !*update {
				t.Errorf("%s says %q, %s %q; `go test ./test/docs -update` copies the numbers", name, m[1], m[2], text)
			}
			return strings.Replace(link, "["+m[1]+"]", "["+text+"]", 1)
		})
		if strings.HasPrefix(name, "docs/guarantees") && found < 10 {
			t.Errorf("%s has %d measured numbers, want at least 10", name, found)
		}
		if *update && after != before {
			if err := os.WriteFile(filepath.Join(root, name), []byte(after), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCodeIsEnglish(t *testing.T) {
	han := func(r rune) bool { return unicode.Is(unicode.Han, r) }
	for _, name := range bothLanguages(t) {
		all, _ := parse(t, name)
		for _, b := range all {
			if strings.ContainsFunc(b.Text, han) {
				t.Errorf("%s:%d: the block contains Han characters", name, b.Line)
			}
		}
	}
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard",
		"*.go", "*.mod", "*.proto", "*.yaml", "*.yml", "*.sh", "*Dockerfile", "*Makefile", "*.mk", ".ci/*")
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
	link := regexp.MustCompile(`\]\(([^)\s]+)[^)]*\)|(?:src|href|srcset)="([^"]+)"`)
	linked := map[string]bool{}
	for _, name := range append(bothLanguages(t), "CONTRIBUTING.md", "SECURITY.md") {
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
			} else {
				file = filepath.Join(filepath.Dir(name), file)
			}
			linked[name+" "+file] = true
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
	for _, page := range pages(t)[1:] {
		for _, want := range []string{"README.md " + page, "README_zh.md " + chinese(page), page + " " + chinese(page), chinese(page) + " " + page} {
			if !linked[want] {
				t.Errorf("a link is missing: %s", strings.Replace(want, " ", " to ", 1))
			}
		}
	}
}

// TestManifestsPage runs the commands of docs/manifests.md, which need no cluster.
func TestManifestsPage(t *testing.T) {
	if err := (Reader{Checkout: root, Environ: os.Environ(), Log: t.Logf}).Read("docs/manifests.md"); err != nil {
		t.Error(err)
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
