package main

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

// TestPlot draws every fault of package faults in both languages and both themes.
func TestPlot(t *testing.T) {
	source, err := os.ReadFile("../faults.go")
	if err != nil {
		t.Fatal(err)
	}
	faults := regexp.MustCompile(`(?m)^\t\{"([a-z-]+)", `).FindAllStringSubmatch(string(source), -1)
	if len(faults) < 11 {
		t.Fatalf("found %d faults in ../faults.go, want at least 11", len(faults))
	}
	recording := "second,fault,client,succeeded,failed,p50_ms,p99_ms\n"
	for _, f := range faults {
		recording += "10.5,,go-micro,300,0,1,5\n11.0,,pod/,310,0,1,5\n12.5," + f[1] + ",go-micro,0,17,0,0\n13.0," + f[1] + ",pod/,305,0,1,5\n"
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "calls.csv")
	if err := os.WriteFile(file, []byte(recording), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{file, dir}); err != nil {
		t.Fatal(err)
	}
	for name, wanted := range map[string][]string{
		"faults-light.svg":    {">11  scaled to 1, 8 and 1<", ">300<", ">15<", "#ffffff"},
		"faults-dark.svg":     {">11  scaled to 1, 8 and 1<", "#0d1117"},
		"faults-light_zh.svg": {">11  ", ">300<"},
		"faults-dark_zh.svg":  {">11  ", "#0d1117"},
	} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(strings.NewReader(string(b))); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for _, want := range append(wanted, `viewBox="0 0 720 `, "<title ", "<desc ") {
			if !strings.Contains(strings.ToLower(string(b)), strings.ToLower(want)) {
				t.Errorf("%s does not contain %q", name, want)
			}
		}
		if strings.Count(string(b), "font-family:") > 1 {
			t.Errorf("%s still has the library's fonts", name)
		}
	}
}

func TestPlotRefusesOtherFiles(t *testing.T) {
	for _, content := range []string{"", "a,b\n1,2\n3,4\n", "second,fault,client,succeeded,failed,p50_ms,p99_ms\n1,,else,1,1,1,1\n2,,pod/,1,1,1,1\n"} {
		file := filepath.Join(t.TempDir(), "calls.csv")
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := run([]string{file, t.TempDir()}); err == nil {
			t.Errorf("%q is drawn", content)
		}
	}
}
