package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// instruction is one instruction of a Dockerfile, which may extend over several lines.
type instruction struct {
	line       int    // where it starts, from 1
	name, args string // the name in upper case
	text       string // both as written, without line breaks
}

var (
	directive    = regexp.MustCompile(`^#\s*(syntax|escape|check)\s*=`)
	continuation = regexp.MustCompile(`\\[ \t]*$`)
	label        = regexp.MustCompile(`^([^\s="'$\\]+)=(?:"([^"$\\]*)"|([^\s"'$\\]*))(?:\s+|$)`)
)

// parse splits a Dockerfile into its instructions.
func parse(dockerfile string) (all []instruction, err error) {
	text, start := "", 0
	end := func() {
		if text = strings.TrimSpace(text); text != "" {
			name := strings.Fields(text)[0]
			all = append(all, instruction{start, strings.ToUpper(name), strings.TrimSpace(text[len(name):]), text})
		}
		text = ""
	}
	for i, line := range strings.Split(dockerfile, "\n") {
		line = strings.TrimSuffix(line, "\r")
		trimmed := strings.TrimSpace(line)
		if directive.MatchString(trimmed) {
			return nil, fmt.Errorf("line %d: %q changes the language of the file, which is not supported: leave the line out, or use docker build", i+1, trimmed)
		}
		if trimmed == "" || trimmed[0] == '#' { // also within an instruction
			continue
		}
		if text == "" {
			start = i + 1
		}
		if at := continuation.FindStringIndex(line); at != nil {
			text += line[:at[0]]
			continue
		}
		text += line
		end()
	}
	end()
	return all, nil
}

// words splits arguments at spaces. Docker would expand variables in them, and remove
// quotes and escapes.
func (i instruction) words() ([]string, error) {
	if at := strings.IndexAny(i.args, `$"'\`); at >= 0 {
		return nil, fmt.Errorf("%s %s: the character %c is not supported: write plain words without variables, quotes and escapes, or use docker build", i.name, i.args, i.args[at])
	}
	return strings.Fields(i.args), nil
}

// labels returns the pairs of LABEL.
func (i instruction) labels() (map[string]string, error) {
	pairs := map[string]string{}
	for rest := i.args; rest != "" || len(pairs) == 0; {
		m := label.FindStringSubmatch(rest)
		if m == nil {
			return nil, fmt.Errorf("LABEL %s is not supported: write key=\"value\" without variables and escapes, or use docker build", rest)
		}
		pairs[m[1]] = m[2] + m[3] // one of the two is empty
		rest = rest[len(m[0]):]
	}
	return pairs, nil
}

// execForm returns the words of CMD and ENTRYPOINT.
func (i instruction) execForm() ([]string, error) {
	var parsed []*string
	if !strings.HasPrefix(i.args, "[") || json.Unmarshal([]byte(i.args), &parsed) != nil || slices.Contains(parsed, nil) {
		return nil, fmt.Errorf("%[1]s in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, %[1]s [\"/server\"]", i.name)
	}
	words := []string{} // not nil: an empty array is a command too
	for _, w := range parsed {
		words = append(words, *w)
	}
	return words, nil
}

// unsupported returns the error of an instruction that Build does not know.
func (i instruction) unsupported() error {
	switch i.name {
	case "RUN":
		return errors.New("RUN needs a running container, which this builder does not have: make the file before the build and COPY it, or use docker build")
	case "ADD":
		return errors.New("ADD is not supported: COPY the file, or use docker build")
	case "ENV":
		return errors.New("ENV is not supported: set the variable in the pod's manifest, or use docker build")
	case "HEALTHCHECK":
		return errors.New("HEALTHCHECK is ignored by Kubernetes: write probes in the pod's manifest")
	}
	return fmt.Errorf("%s is not supported: this builder knows FROM scratch, LABEL, COPY, EXPOSE, USER, CMD and ENTRYPOINT; leave it out, or use docker build", i.name)
}
