package docs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// example replaces each three single quotes in a document by three backquotes.
func example(text string) string { return strings.ReplaceAll(text, "'''", "```") }

func TestReader(t *testing.T) {
	for _, c := range []struct {
		name, readme string
		want         string // in the error, "" for none
	}{
		{"equal output", `
'''sh
echo hello
'''
'''text
hello
'''`, ""},
		{"different output", `
'''sh
echo hello
'''
'''text
hullo
'''`, "README.md:3: running\necho hello\nthe README shows\nhullo\nbut the output is:\nhello"},
		{"the number of pods, of which some may be ending", `
'''sh
echo Found 3 pods, using pod/go-micro-client-54ffd54669-kdnk9
'''
'''text
Found 2 pods, using pod/go-micro-client-866754dcc-btqzm
'''`, ""},
		{"all differences are reported", `
'''sh
echo one
'''
'''text
two
'''
'''sh
echo three
'''
'''text
four
'''`, "shows\nfour"},
		{"less shown than printed", `
'''sh
echo one; echo two
'''
'''text
one
'''`, "more than the README shows"},
		{"a line too many shown", `
'''sh
echo one
'''
'''text
one
two
'''`, "shows\ntwo"},
		{"no output shown", `
'''sh
echo whatever
'''`, ""},
		{"prose between a block and its output", `
'''sh
echo one
'''

prints, always:

'''text
two
'''`, "shows\ntwo"},
		{"text under another block is not output", `
'''sh
echo one
'''
'''yaml
a: b
'''
'''text
two
'''`, ""},
		{"stderr counts, also without a final newline", `
'''sh
printf wrong >&2
'''
'''text
wrong
'''`, ""},
		{"omitted lines", `
'''sh
seq 9
'''
'''text
···
3
4
···
7
···
'''`, ""},
		{"omission of no lines", `
'''sh
seq 2
'''
'''text
···
1
···
2
···
'''`, ""},
		{"omitted lines, wrong order", `
'''sh
seq 9
'''
'''text
···
7
···
3
···
'''`, "shows\n3"},
		{"omitted part of a line", `
'''sh
echo from 1 to 9
'''
'''text
from ··· to 9
'''`, ""},
		{"a failing command ends the run", `
'''sh
false
echo goes on
'''
'''sh
echo the next
'''
'''text
nothing
'''`, "ends with status 1 and prints\n"},
		{"a failing command in the middle", `
'''sh
echo before
ls /nowhere
echo after
'''`, "before\nls:"},
		{"unknown command", `
'''sh
no-such-command
'''`, "status 127"},
		{"expected failure", `
'''sh fails
echo forbidden; exit 7
'''
'''text
forbidden
'''
'''sh
echo goes on
'''
'''text
goes on
'''`, ""},
		{"expected failure that succeeds", `
'''sh fails
true
'''`, "status 0"},
		{"no-run block", `
'''sh no-run
touch ran; exit 1
'''
'''text
whatever
'''
'''sh
ls ran 2>/dev/null || echo not there
'''
'''text
not there
'''`, ""},
		{"state carries over to the next block", `
'''sh
export exported="it's"
variable=here
cd sub
'''
'''sh
bash -c 'echo "$exported $1 ${PWD##*/}"' bash $variable
'''
'''text
it's here sub
'''`, ""},
		{"a command that reads stdin does not read the next block", `
'''sh
cat
'''
'''sh
echo next
'''
'''text
next
'''`, ""},
		{"cluster name", `
'''sh
echo $CLUSTER $PWD/.cluster/demo/kubeconfig $KUBECONFIG $MAKELEVEL | sed 's/fake/&/'
'''
'''text
fake ~/k8s-micro/.cluster/demo/kubeconfig
'''`, ""},
		{"variable parts of the output", `
'''sh
echo 'go-micro-srv-c5cf784f6-7nkzc      1/1     Running     0          16s   10.244.0.3   k8s-micro   <none>'
echo '2026-11-23 19:59:56  level=info Registered go-micro-srv-e80defbf-d21e-4ac8-aff0-7f887d29b1ec'
echo 'map[go:map[micro:map[srv:tcp://10.96.84.144:9100]] home:/]'
'''
'''text
go-micro-srv-6dcf6dd547-g9xdt   1/1   Running   0   4m9s   10.244.0.12   k8s-micro   <none>
2020-04-28 03:31:03  level=info Registered go-micro-srv-5c1ae799-d6be-48aa-b56c-be3457508bc5
map[go:map[micro:map[srv:map[port:9100]]] home:/]
'''`, ""},
		{"other differences", `
'''sh
echo 'go-micro-srv-c5cf784f6-7nkzc   1/1   Running   0   16s   10.244.0.3'
'''
'''text
go-micro-web-c5cf784f6-7nkzc   1/1   Running   0   16s   10.244.0.3
'''`, "shows\ngo-micro-web"},
		{"a read-only block is retried", `
'''sh
kubectl logs later
'''
'''text
run 3
'''`, ""},
		{"until RetryFor has passed", `
'''sh
kubectl logs later
'''
'''text
run 1000
'''`, "shows\nrun 1000"},
		{"a block with changes is not retried", `
'''sh
kubectl apply -f later
'''
'''text
run 2
'''`, "output is:\nrun 1"},
		{"a command that does not end", `
'''sh
sleep 60
'''`, "does not end within 8s"},
		{"a block without a closing fence", `
'''sh
true`, "no closing fence"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write := func(name, text string, mode os.FileMode) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
				t.Fatal(err)
			}
			write("README.md", example(c.readme), 0o644)
			write("kubectl", "#!/bin/sh\necho x >>runs; echo run $(wc -l <runs)\n", 0o755)
			err := Reader{Checkout: dir, Cluster: "fake", RetryFor: 6 * time.Second, Limit: 8 * time.Second,
				Environ: []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "KUBECONFIG=another", "MAKELEVEL=1"}}.Read("README.md")
			if c.want == "" && err != nil {
				t.Error(err)
			} else if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
