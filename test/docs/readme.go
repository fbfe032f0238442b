// Package docs tests the READMEs. It parses their fenced blocks, runs the
// commands in one shell and compares the output with the README.
//
// The word after the opening fence says what a block is:
//
//   - sh: commands that run in the order of the README, in one shell, in the
//     root directory of the checkout. Every command must succeed.
//   - sh fails: commands that must fail.
//   - sh no-run: commands for the reader's own machine, which the test does not run.
//   - text, after an sh block: the output of that block. The line ··· stands for
//     omitted lines, and ··· inside a line for an omitted part of the line.
//   - any word, below a line that consists of a file's path in backquotes and a
//     colon: consecutive lines of that file. `go test ./test/docs -update` replaces
//     a block that differs with the whole file.
package docs

import (
	"fmt"
	"regexp"
	"strings"
)

// Block is one fenced block of a README.
type Block struct {
	Kind string // sh, sh no-run, text, yaml …
	Text string
	File string // the file whose lines the block shows, "" if none
	Line int    // the line number of its first line of text, from 0
}

var (
	fence    = regexp.MustCompile("^```(.*)$")
	filePath = regexp.MustCompile("^`([^`]+)`(（[^）]*）| \\([^)]*\\))?[:：]$")
)

// Blocks returns the fenced blocks of a README and all lines outside of them.
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
