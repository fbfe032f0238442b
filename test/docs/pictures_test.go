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

// TestPictures checks media/: each picture is one SVG, written by hand, and one
// with the labels of media/zh.txt in their place, written by -update. They share
// their style, hold light and dark in one file, and stay readable on a phone.
func TestPictures(t *testing.T) {
	chinese := map[string]string{}
	for line := range strings.Lines(read(t, "media/zh.txt")) {
		if en, zh, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			chinese[en] = zh
		} else if !strings.HasPrefix(line, "#") {
			t.Errorf("media/zh.txt: no tab in %q", line)
		}
	}
	files, err := filepath.Glob(filepath.Join(root, "media/*.svg"))
	if err != nil {
		t.Fatal(err)
	}
	label := regexp.MustCompile(`>([^<>]+)</(text|title|desc)>`)
	style := regexp.MustCompile(`(?s)<style>.*</defs>`)
	used, pictures := map[string]bool{}, 0
	var common string
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
		other := strings.TrimSuffix(f, ".svg") + "_zh.svg"
		if *update {
			if err := os.WriteFile(filepath.Join(root, other), []byte(translated), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if read(t, other) != translated {
			t.Errorf("%s is not %s with the labels of media/zh.txt; go test ./test/docs -update writes it", other, f)
		}
		for d := xml.NewDecoder(strings.NewReader(translated)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", other, err)
			}
		}
		for _, want := range []string{`viewBox="0 0 720 `, "font: 28px ", "@media (prefers-color-scheme: dark)", "<title ", "<desc "} {
			if !strings.Contains(english, want) {
				t.Errorf("%s: no %q", f, want)
			}
		}
		if strings.Contains(english, "font-size") || strings.Contains(english, "href") {
			t.Errorf("%s: letters of another size, or something from outside", f)
		}
		if common == "" {
			common = style.FindString(english)
		}
		if style.FindString(english) != common {
			t.Errorf("%s: its style is not that of %s", f, files[0])
		}
	}
	for en := range chinese {
		if !used[en] {
			t.Errorf("media/zh.txt translates %q, which no picture says", en)
		}
	}
	if pictures < 4 {
		t.Errorf("%d pictures: is this test blind?", pictures)
	}
}
