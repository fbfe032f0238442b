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

// Reader types what a README says into one shell, and compares what that prints
// with what the README says it prints.
type Reader struct {
	Checkout string        // its top
	Cluster  string        // stands for demo, the README's
	Environ  []string      // the terminal's
	Patience time.Duration // for how long a block that only looks is typed again; 30 s by default
	Limit    time.Duration // for each block; 5 minutes by default
	Log      func(format string, args ...any)
}

// volatile differs from run to run. It is replaced, in this order, in what is
// printed and in what the README shows. No order of lines is among it: the API
// server lists objects by their names.
var volatile = []struct{ what, by string }{
	{`[^\s=]*/\.cluster/[\w-]+/`, "CHECKOUT/.cluster/NAME/"},
	{`cluster "[\w-]+"`, "cluster NAME"},
	{`\[ *\d+\.\ds\]`, "[SECONDS]"},
	{`\d+\.\d MB, sha256:[0-9a-f]{12}`, "SIZE, DIGEST"},
	{`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`, "TIME"},
	{`file=(\S+):\d+`, "file=$1:LINE"}, // moves with every change above it
	{`\b(go-micro-[a-z-]+)-[0-9a-z]{8,10}-[0-9a-z]{5}\b`, "$1-HASH-POD"},
	{`pod-template-hash=[0-9a-z]{8,10}`, "pod-template-hash=HASH"},
	{`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{1,12}`, "UUID"}, // describe cuts it off
	{`\b127\.0\.0\.1:\d+`, "LOOPBACK"},
	{`\b10\.(96|244)\.\d+\.\d+\b`, "IP"},             // of a Service, of a pod
	{`\bgo:map\[.*?( home:|$)`, "go:map[SERVICES$1"}, // which of two colliding variables wins
	{`\bkubernetes:map\[.*?( path:|$)`, "kubernetes:map[SERVICES$1"},
	{` deleted from [\w-]+ namespace$`, " deleted"}, // newer kubectls say so
	{` {2,}`, "  "}, // a column is as wide as its longest name
	{`  (\d+[dhms]){1,2}(  |$)`, "  AGE$2"},
	{` +$`, ""},
}

// looking is a command that changes nothing; unless it is following, it ends.
var (
	looking   = regexp.MustCompile(`^(#|kubectl (get|describe|logs|top) )`)
	following = regexp.MustCompile(` (-f|-w|--follow|--watch)\b`)
)

// Read types all sh blocks of a README. What is printed otherwise than shown is
// told together at the end; a command that fails ends the reading, since the next
// ones build on it.
func (r Reader) Read(readme string) error {
	text, err := os.ReadFile(filepath.Join(r.Checkout, readme))
	if err != nil {
		return err
	}
	blocks, _, err := Blocks(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", readme, err)
	}
	sh, err := r.open()
	if err != nil {
		return err
	}
	defer sh.close()
	var wrong []error
	for i, b := range blocks {
		if b.Kind != "sh" && b.Kind != "sh fails" {
			continue
		}
		shown := "···"
		if i+1 < len(blocks) && blocks[i+1].Kind == "text" {
			shown = blocks[i+1].Text
		}
		begin := time.Now()
		end := begin.Add(cmp.Or(r.Patience, 30*time.Second))
		for {
			if err, fatal := sh.compare(b, shown); err == nil {
				break
			} else if fatal {
				return errors.Join(append(wrong, fmt.Errorf("%s:%d: %w", readme, b.Line+1, err))...)
			} else if !looks(b) || time.Now().After(end) {
				wrong = append(wrong, fmt.Errorf("%s:%d: %w", readme, b.Line+1, err))
				break
			}
			time.Sleep(time.Second)
		}
		if r.Log != nil {
			r.Log("%5.1f s  %s:%d  %s", time.Since(begin).Seconds(), readme, b.Line+1, strings.ReplaceAll(b.Text, "\n", "; "))
		}
	}
	return errors.Join(wrong...)
}

// looks says that a block may be typed again until it shows what it should, as a
// reader would.
func looks(b Block) bool {
	for line := range strings.SplitSeq(b.Text, "\n") {
		if !looking.MatchString(line) || following.MatchString(line) {
			return false
		}
	}
	return true
}

// matches says where what is printed differs from what is shown, if it does.
func matches(shown, printed string) error {
	printed = steady(printed)
	pattern := "^"
	for line := range strings.SplitSeq(steady(shown), "\n") {
		if line == "···" {
			pattern += `(?:.*\n)*`
			continue
		}
		pattern += strings.ReplaceAll(regexp.QuoteMeta(line), "···", ".*") + `\n`
		if !regexp.MustCompile(pattern).MatchString(printed + "\n") {
			return fmt.Errorf("the README shows\n%s\nwhere this is printed:\n%s", line, printed)
		}
	}
	if !regexp.MustCompile(pattern + "$").MatchString(printed + "\n") {
		return fmt.Errorf("the README shows not all of what is printed:\n%s", printed)
	}
	return nil
}

// steady is a text without what is volatile.
func steady(text string) string {
	text = strings.Trim(text, "\n")
	for _, v := range volatile {
		text = regexp.MustCompile("(?m)"+v.what).ReplaceAllString(text, v.by)
	}
	return text
}

// shell is a bash that says, after each block, how that ended.
type shell struct {
	reader Reader
	cmd    *exec.Cmd
	in     *os.File
	out    *os.File
	said   *bufio.Reader
}

const separator = '\036' // around the exit status

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
	sh := &shell{reader: r, cmd: exec.Command("bash", "--noprofile", "--norc"), in: in, out: out, said: bufio.NewReader(out)}
	sh.cmd.Dir, sh.cmd.Stdin, sh.cmd.Stdout, sh.cmd.Stderr = r.Checkout, inR, outW, outW
	sh.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ends with what it has started
	for _, e := range r.Environ {
		// What a terminal does not have, but what runs under make or beside a cluster does.
		if name, _, _ := strings.Cut(e, "="); name != "KUBECONFIG" && name != "MFLAGS" && !strings.HasPrefix(name, "MAKE") {
			sh.cmd.Env = append(sh.cmd.Env, e)
		}
	}
	sh.cmd.Env = append(sh.cmd.Env, "CLUSTER="+r.Cluster) // the default of Makefiles and launcher is demo
	if err := sh.cmd.Start(); err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	_, err = fmt.Fprintf(in, `trap 'printf "\%o%%d\%o" $?' EXIT`+"\n", separator, separator)
	return sh, err
}

func (sh *shell) close() {
	sh.in.Close()
	_ = syscall.Kill(-sh.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	_ = sh.cmd.Wait()
	sh.out.Close()
}

// compare types one block. After a fatal error there is no shell to go on with.
func (sh *shell) compare(b Block, shown string) (err error, fatal bool) {
	text := strings.ReplaceAll(b.Text, ".cluster/demo/", ".cluster/"+sh.reader.Cluster+"/")
	quoted := "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	alone := b.Kind == "sh fails" || looks(b) // may fail: in a shell of its own, whose end is not this one's
	if alone {
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
	printed, err := sh.said.ReadString(separator)
	if err != nil {
		return fmt.Errorf("running\n%s\ntakes more than %s, after printing\n%s", b.Text, limit, printed), true
	}
	printed = printed[:len(printed)-1]
	status, err := sh.said.ReadString(separator)
	if err != nil {
		return err, true
	}
	code, err := strconv.Atoi(status[:len(status)-1])
	if err != nil {
		return err, true
	}
	if (code != 0) != (b.Kind == "sh fails") {
		return fmt.Errorf("running\n%s\nends with status %d and prints\n%s", b.Text, code, printed), !alone
	}
	if err := matches(shown, printed); err != nil {
		return fmt.Errorf("running\n%s\n%w", b.Text, err), false
	}
	return nil, false
}
