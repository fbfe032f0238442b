// Package docs reads the project's READMEs, and runs what they tell a reader to run.
//
// What stands above or on the first line of a block says what it is:
//
//   - sh: typed after the blocks above it, at the top of the checkout, and every
//     command of it succeeds;
//   - sh fails: it is meant to be refused;
//   - sh no-run: for the reader's own machine, not run here;
//   - text, after an sh block: what that prints. A line that is ··· stands for
//     lines left out, ··· inside a line for a part of it;
//   - any, below a line that is one file's path in backquotes and a colon: lines
//     of that file. `go test ./test/docs -update` copies whole files anew.
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
	File string // the file whose lines it shows, "" when none
	Line int    // of its first line of text, from 0
}

var (
	fence = regexp.MustCompile("^```(.*)$")
	shows = regexp.MustCompile("^`([^`]+)`(（[^）]*）| \\([^)]*\\))?[:：]$")
)

// Blocks returns the blocks of a README, and its other lines.
func Blocks(text string) (all []Block, prose []string, err error) {
	lines := strings.Split(text, "\n")
	above := ""
	for i := 0; i < len(lines); i++ {
		m := fence.FindStringSubmatch(lines[i])
		if m == nil {
			prose = append(prose, lines[i])
			if strings.TrimSpace(lines[i]) != "" {
				above = lines[i]
			}
			continue
		}
		b := Block{Kind: m[1], Line: i + 1}
		end := i + 1
		for end < len(lines) && lines[end] != "```" {
			end++
		}
		if end == len(lines) {
			return nil, nil, fmt.Errorf("line %d: a block without end", i+1)
		}
		b.Text = strings.Join(lines[i+1:end], "\n")
		if f := shows.FindStringSubmatch(above); f != nil {
			b.File = f[1]
		}
		all, i, above = append(all, b), end, ""
	}
	return all, prose, nil
}
