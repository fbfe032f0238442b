package docs

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Reader runs the commands of a document in one shell and compares their output
// with the document.
type Reader struct {
	Checkout string        // the root directory of the checkout
	Cluster  string        // the cluster's name, which replaces demo
	Environ  []string      // the environment of the shell
	RetryFor time.Duration // how long a read-only block is repeated until its output matches; 30 s by default
	Limit    time.Duration // the longest time that one block may take; 5 minutes by default
	Log      func(format string, args ...any)
}

// variable lists the parts of the output that differ from run to run. They are
// replaced, in this order, in the output and in the document. The order of lines does
// not differ, because the API server lists objects by name.
var variable = []struct{ pattern, replacement string }{
	{`[^\s=]*/\.cluster/[\w-]+/`, "CHECKOUT/.cluster/NAME/"},
	{`cluster "[\w-]+"`, "cluster NAME"},
	{`(make cluster-\w+) CLUSTER=[\w-]+$`, "$1"}, // printed unless the cluster is called demo
	{`\[ *\d+\.\ds\]`, "[SECONDS]"},
	{`\d+\.\d MB, sha256:[0-9a-f]{12}`, "SIZE, DIGEST"},
	{`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`, "TIME"},
	{`\b(go-micro-[a-z-]+)-[0-9a-z]{8,10}-[0-9a-z]{5}\b`, "$1-HASH-POD"},
	{`^Found \d+ pods,`, "Found PODS,"}, // kubectl logs also counts those that are ending
	{`pod-template-hash=[0-9a-z]{8,10}`, "pod-template-hash=HASH"},
	{`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{1,12}`, "UUID"}, // kubectl describe truncates it
	{`\b127\.0\.0\.1:\d+`, "LOOPBACK"},
	{`\b10\.(96|244)\.\d+\.\d+\b`, "IP"},             // of a Service or a pod
	{`\bgo:map\[.*?( home:|$)`, "go:map[SERVICES$1"}, // two variables collide, and either may win
	{`\bkubernetes:map\[.*?( path:|$)`, "kubernetes:map[SERVICES$1"},
	{` deleted from [\w-]+ namespace$`, " deleted"}, // only newer versions of kubectl print this
	{` {2,}`, "  "}, // the width of a column depends on the longest name
	{`  (\d+[dhms]){1,2}(  |$)`, "  AGE$2"},
	{` +$`, ""},
}

var (
	readOnly = regexp.MustCompile(`^(#|kubectl (get|describe|logs|top) )`)
	endless  = regexp.MustCompile(` (-f|-w|--follow|--watch)\b`)
)

// Read runs all sh blocks of a document in a new shell. It returns all differences
// between output and document together. A command that fails unexpectedly ends the run, because the
// following blocks build on it.
func (r Reader) Read(document string) error {
	text, err := os.ReadFile(filepath.Join(r.Checkout, document))
	if err != nil {
		return err
	}
	blocks, _, err := Blocks(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", document, err)
	}
	sh, err := r.open()
	if err != nil {
		return err
	}
	defer sh.close()
	var differences []error
	for i, b := range blocks {
		if b.Kind != "sh" && b.Kind != "sh fails" {
			continue
		}
		shown := "···"
		if i+1 < len(blocks) && blocks[i+1].Kind == "text" {
			shown = blocks[i+1].Text
		}
		begin := time.Now()
		deadline := begin.Add(cmp.Or(r.RetryFor, 30*time.Second))
		for {
			if err, fatal := sh.run(b, shown); err == nil {
				break
			} else if fatal {
				return errors.Join(append(differences, fmt.Errorf("%s:%d: %w", document, b.Line+1, err))...)
			} else if !onlyReads(b) || time.Now().After(deadline) {
				differences = append(differences, fmt.Errorf("%s:%d: %w", document, b.Line+1, err))
				break
			}
			time.Sleep(time.Second)
		}
		if r.Log != nil {
			r.Log("%5.1f s  %s:%d  %s", time.Since(begin).Seconds(), document, b.Line+1, strings.ReplaceAll(b.Text, "\n", "; "))
		}
	}
	return errors.Join(differences...)
}

// onlyReads reports whether a block changes nothing and ends by itself. Such a
// block is repeated until its output matches, as a reader would do.
func onlyReads(b Block) bool {
	for line := range strings.SplitSeq(b.Text, "\n") {
		if !readOnly.MatchString(line) || endless.MatchString(line) {
			return false
		}
	}
	return true
}

// compareOutput returns an error that names the first line of the document that the
// output does not match.
func compareOutput(shown, printed string) error {
	printed = normalize(printed)
	pattern := "^"
	for line := range strings.SplitSeq(normalize(shown), "\n") {
		if line == "···" {
			pattern += `(?:.*\n)*`
			continue
		}
		pattern += strings.ReplaceAll(regexp.QuoteMeta(line), "···", ".*") + `\n`
		if !regexp.MustCompile(pattern).MatchString(printed + "\n") {
			return fmt.Errorf("the README shows\n%s\nbut the output is:\n%s", line, printed)
		}
	}
	if !regexp.MustCompile(pattern + "$").MatchString(printed + "\n") {
		return fmt.Errorf("the output has more than the README shows:\n%s", printed)
	}
	return nil
}

// normalize replaces the variable parts of a text.
func normalize(text string) string {
	text = strings.Trim(text, "\n")
	for _, v := range variable {
		text = regexp.MustCompile("(?m)"+v.pattern).ReplaceAllString(text, v.replacement)
	}
	return text
}

// shell is a running bash that prints the exit status after each block.
type shell struct {
	reader Reader
	cmd    *exec.Cmd
	in     *os.File
	out    *os.File
	output *bufio.Reader
}

const separator = '\036' // printed before and after the exit status

func (r Reader) open() (*shell, error) {
	inR, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer inR.Close()
	out, outW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	defer outW.Close()
	sh := &shell{reader: r, cmd: exec.Command("bash", "--noprofile", "--norc"), in: in, out: out, output: bufio.NewReader(out)}
	sh.cmd.Dir, sh.cmd.Stdin, sh.cmd.Stdout, sh.cmd.Stderr = r.Checkout, inR, outW, outW
	sh.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that close can kill the shell with all its children
	for _, e := range r.Environ {
		// Variables that a reader's terminal does not have, but a test under make or with a cluster has.
		if name, _, _ := strings.Cut(e, "="); name != "KUBECONFIG" && name != "MFLAGS" && !strings.HasPrefix(name, "MAKE") {
			sh.cmd.Env = append(sh.cmd.Env, e)
		}
	}
	sh.cmd.Env = append(sh.cmd.Env, "CLUSTER="+r.Cluster) // the Makefiles and the launcher default to demo
	if err := sh.cmd.Start(); err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	_, err = fmt.Fprintf(in, `trap 'printf "\%o%%d\%o" $?' EXIT`+"\n", separator, separator)
	return sh, err
}

func (sh *shell) close() {
	sh.in.Close()
	_ = syscall.Kill(-sh.cmd.Process.Pid, syscall.SIGKILL) // fails if the shell has already ended
	_ = sh.cmd.Wait()
	sh.out.Close()
}

// run runs one block and compares its output. After a fatal error the shell cannot
// run further blocks.
func (sh *shell) run(b Block, shown string) (err error, fatal bool) {
	text := strings.ReplaceAll(b.Text, ".cluster/demo/", ".cluster/"+sh.reader.Cluster+"/")
	quoted := "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	subshell := b.Kind == "sh fails" || onlyReads(b) // may fail without ending this shell
	if subshell {
		quoted = "(set -e; eval " + quoted + ") </dev/null"
	} else {
		quoted = "set -e; eval " + quoted + " </dev/null; set +e"
	}
	limit := cmp.Or(sh.reader.Limit, 5*time.Minute)
	if err := sh.out.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err, true
	}
	if _, err := fmt.Fprintf(sh.in, "%s; printf '\\%o%%d\\%o' $?\n", quoted, separator, separator); err != nil {
		return err, true
	}
	printed, err := sh.output.ReadString(separator)
	if err != nil {
		return fmt.Errorf("running\n%s\ndoes not end within %s; its output so far is\n%s", b.Text, limit, printed), true
	}
	printed = printed[:len(printed)-1]
	status, err := sh.output.ReadString(separator)
	if err != nil {
		return err, true
	}
	code, err := strconv.Atoi(status[:len(status)-1])
	if err != nil {
		return err, true
	}
	if (code != 0) != (b.Kind == "sh fails") {
		return fmt.Errorf("running\n%s\nends with status %d and prints\n%s", b.Text, code, printed), !subshell
	}
	if err := compareOutput(shown, printed); err != nil {
		return fmt.Errorf("running\n%s\n%w", b.Text, err), false
	}
	return nil, false
}
