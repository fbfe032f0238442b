// Package docs tests the documents: README.md, the pages in docs/, and their
// Chinese versions. It parses their fenced blocks, runs the commands of each
// document in one shell and compares the output with the document.
//
// The word after the opening fence says what a block is:
//
//   - sh: commands that run in the order of the document, in one shell, in the
//     root directory of the checkout. Every command must succeed.
//   - sh fails: commands that must fail.
//   - sh no-run: commands for the reader's own machine, which the test does not run.
//   - text, after an sh block: the output of that block. The line ··· stands for
//     omitted lines, and ··· inside a line for an omitted part of the line.
//   - any word, below a line that consists of a file's path in backquotes and a
//     colon: that file. The line ··· stands for omitted lines; a block without it
//     shows the whole file, and `go test ./test/docs -update` replaces it.
package docs

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// Pages returns the English documents of a checkout, relative to it: README.md
// and those in docs/. The Chinese version of x.md is x_zh.md.
func Pages(checkout string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(checkout, "docs", "*.md"))
	if err != nil {
		return nil, err
	}
	all := []string{"README.md"}
	for _, f := range found {
		if !strings.HasSuffix(f, "_zh.md") {
			all = append(all, "docs/"+filepath.Base(f))
		}
	}
	if len(all) == 1 {
		return nil, errors.New("finding the documents: docs/ has none")
	}
	return all, nil
}

// shows reports whether a block shows a file: all of it, or with lines ··· in
// place of omitted lines, of which there must be at least one.
func shows(block, file string) bool {
	pattern := ""
	for line := range strings.SplitSeq(block, "\n") {
		if line == "···" {
			pattern += `(?:.*\n)+?`
		} else {
			pattern += regexp.QuoteMeta(line) + `\n`
		}
	}
	return regexp.MustCompile("^" + pattern + "$").MatchString(file + "\n")
}

// Block is one fenced block of a document.
type Block struct {
	Kind string // sh, sh no-run, text, yaml …
	Text string
	File string // the file that the block shows, "" if none
	Line int    // the line number of its first line of text, from 0
}

var (
	fence    = regexp.MustCompile("^```(.*)$")
	filePath = regexp.MustCompile("^`([^`]+)`(（[^）]*）| \\([^)]*\\))?[:：]$")
)

// Blocks returns the fenced blocks of a document and all lines outside of them.
func Blocks(text string) (all []Block, prose []string, err error) {
	lines := strings.Split(text, "\n")
	lineAbove := ""
	for i := 0; i < len(lines); i++ {
		m := fence.FindStringSubmatch(lines[i])
		if m == nil {
			prose = append(prose, lines[i])
			if strings.TrimSpace(lines[i]) != "" {
				lineAbove = lines[i]
			}
			continue
		}
		b := Block{Kind: m[1], Line: i + 1}
		end := i + 1
		for end < len(lines) && lines[end] != "```" {
			end++
		}
		if end == len(lines) {
			return nil, nil, fmt.Errorf("line %d: the block has no closing fence", i+1)
		}
		b.Text = strings.Join(lines[i+1:end], "\n")
		if f := filePath.FindStringSubmatch(lineAbove); f != nil {
			b.File = f[1]
		}
		all, i, lineAbove = append(all, b), end, ""
	}
	return all, prose, nil
}
