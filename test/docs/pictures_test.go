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

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
)

// TestPictures checks media/. Each picture is an SVG and a Chinese copy, in which
// -update replaces the labels with those of media/zh.txt. All pictures share one
// style, support light and dark mode, and are readable on a phone. Package plot has drawn two
// of them; -update draws that of make faults again from its recording.
func TestPictures(t *testing.T) {
	const calls = "media/faults.svg"
	drawn, err := faults.Draw(root, []byte(read(t, "test/faults/calls.csv")))
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(filepath.Join(root, calls), drawn, 0o644); err != nil {
			t.Fatal(err)
		}
	} else if read(t, calls) != string(drawn) {
		t.Errorf("%s does not show test/faults/calls.csv; `go test ./test/docs -update` draws it", calls)
	}
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
		if strings.HasSuffix(f, "_zh.svg") {
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
	if pictures < 6 {
		t.Errorf("found %d pictures, want at least 6", pictures)
	}
}
