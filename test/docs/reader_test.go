package docs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// example is a README in which three backquotes are ”'.
func example(text string) string { return strings.ReplaceAll(text, "'''", "```") }

func TestReader(t *testing.T) {
	for _, c := range []struct {
		name, readme string
		want         string // in the error, "" for none
	}{
		{"right output", `
'''sh
echo hello
'''
'''text
hello
'''`, ""},
		{"wrong output", `
'''sh
echo hello
'''
'''text
hullo
'''`, "README.md:3: running\necho hello\nthe README shows\nhullo\nwhere this is printed:\nhello"},
		{"all wrong outputs are told", `
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
'''`, "not all"},
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
		{"a text under another block is not its output", `
'''sh
echo one
'''
'''yaml
a: b
'''
'''text
two
'''`, ""},
		{"output on stderr is output, without a line's end too", `
'''sh
printf wrong >&2
'''
'''text
wrong
'''`, ""},
		{"lines left out", `
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
		{"lines left out that are none", `
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
		{"lines left out, in another order", `
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
		{"a part of a line left out", `
'''sh
echo from 1 to 9
'''
'''text
from ··· to 9
'''`, ""},
		{"a failing command ends it", `
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
		{"a command that is not there", `
'''sh
no-such-command
'''`, "status 127"},
		{"a command that should fail", `
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
		{"a command that should fail and does not", `
'''sh fails
true
'''`, "status 0"},
		{"not run", `
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
		{"what one block sets the next one has", `
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
		{"a command that reads does not eat the next", `
'''sh
cat
'''
'''sh
echo next
'''
'''text
next
'''`, ""},
		{"the cluster's own name", `
'''sh
echo $CLUSTER $PWD/.cluster/demo/kubeconfig $KUBECONFIG $MAKELEVEL | sed 's/fake/&/'
'''
'''text
fake ~/k8s-micro/.cluster/demo/kubeconfig
'''`, ""},
		{"what is volatile", `
'''sh
echo 'go-micro-srv-c5cf784f6-7nkzc      1/1     Running     0          16s   10.244.0.3   k8s-micro   <none>'
echo '2026-11-23 19:59:56  file=pod/registrar.go:171 level=info Registered go-micro-srv-e80defbf-d21e-4ac8-aff0-7f887d29b1ec'
echo 'map[go:map[micro:map[srv:tcp://10.96.84.144:9100]] home:/]'
'''
'''text
go-micro-srv-6dcf6dd547-g9xdt   1/1   Running   0   4m9s   10.244.0.12   k8s-micro   <none>
2020-04-28 03:31:03  file=pod/registrar.go:9 level=info Registered go-micro-srv-5c1ae799-d6be-48aa-b56c-be3457508bc5
map[go:map[micro:map[srv:map[port:9100]]] home:/]
'''`, ""},
		{"what is not", `
'''sh
echo 'go-micro-srv-c5cf784f6-7nkzc   1/1   Running   0   16s   10.244.0.3'
'''
'''text
go-micro-web-c5cf784f6-7nkzc   1/1   Running   0   16s   10.244.0.3
'''`, "shows\ngo-micro-web"},
		{"a block that looks is typed again", `
'''sh
kubectl logs later
'''
'''text
run 3
'''`, ""},
		{"until patience ends", `
'''sh
kubectl logs later
'''
'''text
run 1000
'''`, "shows\nrun 1000"},
		{"one that changes something is not", `
'''sh
kubectl apply -f later
'''
'''text
run 2
'''`, "printed:\nrun 1"},
		{"a command without an end", `
'''sh
sleep 60
'''`, "takes more than 8s"},
		{"a block without an end", `
'''sh
true`, "without end"},
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
			err := Reader{Checkout: dir, Cluster: "fake", Patience: 6 * time.Second, Limit: 8 * time.Second,
				Environ: []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "KUBECONFIG=another", "MAKELEVEL=1"}}.Read("README.md")
			if c.want == "" && err != nil {
				t.Error(err)
			} else if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
