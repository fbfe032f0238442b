package docs

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPictures checks media/. Each picture but those of make faults is a hand-written SVG and a Chinese
// copy, in which -update replaces the labels with those of media/zh.txt. All
// pictures share one style, support light and dark mode, and are readable on a phone.
func TestPictures(t *testing.T) {
	chinese := map[string]string{}
	for line := range strings.Lines(read(t, "media/zh.txt")) {
		if en, zh, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			chinese[en] = zh
		} else if !strings.HasPrefix(line, "#") {
			t.Errorf("media/zh.txt: the line %q has no tab", line)
		}
	}
	files, err := filepath.Glob(filepath.Join(root, "media/*.svg"))
	if err != nil {
		t.Fatal(err)
	}
	label := regexp.MustCompile(`>([^<>]+)</(text|title|desc)>`)
	style := regexp.MustCompile(`(?s)<style>.*</defs>`)
	used, pictures := map[string]bool{}, 0
	var commonStyle string
	for _, f := range files {
		f = strings.TrimPrefix(f, root+"/")
		if strings.HasSuffix(f, "_zh.svg") || strings.HasPrefix(f, "media/faults-") { // test/faults/plot draws these from a recording
			continue
		}
		pictures++
		english := read(t, f)
		translated := label.ReplaceAllStringFunc(english, func(l string) string {
			m := label.FindStringSubmatch(l)
			zh, ok := chinese[m[1]]
			if !ok {
				return l
			}
			used[m[1]] = true
			return ">" + zh + "</" + m[2] + ">"
		})
		copyName := strings.TrimSuffix(f, ".svg") + "_zh.svg"
		if *update {
			if err := os.WriteFile(filepath.Join(root, copyName), []byte(translated), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if read(t, copyName) != translated {
			t.Errorf("%s differs from %s with the labels of media/zh.txt; `go test ./test/docs -update` writes it", copyName, f)
		}
		for d := xml.NewDecoder(strings.NewReader(translated)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", copyName, err)
			}
		}
		for _, want := range []string{`viewBox="0 0 720 `, "font: 28px ", "@media (prefers-color-scheme: dark)", "<title ", "<desc "} {
			if !strings.Contains(english, want) {
				t.Errorf("%s does not contain %q", f, want)
			}
		}
		if strings.Contains(english, "font-size") || strings.Contains(english, "href") {
			t.Errorf("%s contains font-size or href: all text has one size, and nothing is loaded from elsewhere", f)
		}
		if commonStyle == "" {
			commonStyle = style.FindString(english)
		}
		if style.FindString(english) != commonStyle {
			t.Errorf("the style of %s differs from that of %s", f, files[0])
		}
	}
	for en := range chinese {
		if !used[en] {
			t.Errorf("media/zh.txt translates %q, which no picture contains", en)
		}
	}
	if pictures < 4 {
		t.Errorf("found %d pictures, want at least 4", pictures)
	}
}
