package configwatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/config"
	"github.com/micro/go-micro/v2/config/source"
	dlog "github.com/micro/go-micro/v2/debug/log"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

const mapName = "go-micro-config"

// namespace is a namespace with at most one ConfigMap.
type namespace struct {
	*kubetest.Namespace
	t *testing.T
}

// newNamespace creates a namespace whose service account may do what
// k8s/configmap-rbac.yaml grants, or only the given verbs.
func newNamespace(t *testing.T, verbs ...string) *namespace {
	t.Helper()
	n := &namespace{kubetest.NewNamespace(t), t}
	if len(verbs) == 0 {
		verbs = []string{"get", "list", "watch"}
	}
	n.Grant("micro-config", rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{mapName}, Verbs: verbs})
	return n
}

// setData creates the ConfigMap, or replaces its data.
func (n *namespace) setData(data map[string]string) {
	n.t.Helper()
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: mapName}, Data: data}
	_, err := n.Admin.CoreV1().ConfigMaps(n.Name).Update(m)
	if apierrors.IsNotFound(err) {
		_, err = n.Admin.CoreV1().ConfigMaps(n.Name).Create(m)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *namespace) deleteMap() {
	n.t.Helper()
	if err := n.Admin.CoreV1().ConfigMaps(n.Name).Delete(mapName, &metav1.DeleteOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

// fixedSource is a source whose content does not change.
type fixedSource struct {
	source.Source
	data string
}

func (f fixedSource) Read() (*source.ChangeSet, error) {
	return &source.ChangeSet{Data: []byte(f.data), Format: "json"}, nil
}

// element is one element that Follow yields.
type element struct {
	cfg config.Config
	err error
}

// loop ranges over Follow. Its body sends each element to the test and waits until the
// test receives it.
type loop struct {
	t        *testing.T
	elements chan element
	stop     context.CancelFunc
	done     chan struct{}
}

func startLoop(t *testing.T, c *ConfigMap, before ...source.Source) *loop {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &loop{t, make(chan element), cancel, make(chan struct{})}
	go func() {
		defer close(l.done)
		for cfg, err := range c.Follow(ctx, before...) {
			select {
			case l.elements <- element{cfg, err}:
			case <-ctx.Done(): // the body ignores the end of the context, so Follow must end the loop
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-l.done
	})
	return l
}

// next returns the configuration of the next element. An element with an error ends the
// test.
func (l *loop) next(limit time.Duration, what string) (config.Config, time.Duration) {
	l.t.Helper()
	begin := time.Now()
	select {
	case got := <-l.elements:
		if got.err != nil {
			l.t.Fatalf("%s: %v", what, got.err)
		}
		return got.cfg, time.Since(begin)
	case <-l.done:
		l.t.Fatalf("%s: the loop has ended", what)
	case <-time.After(limit):
		l.t.Fatalf("%s: not within %s", what, limit)
	}
	return nil, 0
}

// expectNothing checks that Follow yields nothing for 300 ms.
func (l *loop) expectNothing(what string) {
	l.t.Helper()
	select {
	case got := <-l.elements:
		l.t.Errorf("%s: yielded %v %v", what, got.cfg.Map(), got.err)
	case <-l.done:
		l.t.Errorf("%s: the loop has ended", what)
	case <-time.After(300 * time.Millisecond):
	}
}

// expectEnd checks that the loop ends.
func (l *loop) expectEnd(limit time.Duration, what string) {
	l.t.Helper()
	select {
	case got := <-l.elements:
		l.t.Fatalf("%s: yielded %v %v", what, got.cfg, got.err)
	case <-l.done:
	case <-time.After(limit):
		l.t.Fatalf("%s: the loop still runs after %s", what, limit)
	}
}

// expectJSON compares a configuration with a map in JSON.
func expectJSON(t *testing.T, cfg config.Config, want string) {
	t.Helper()
	var w map[string]any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(w)
	if string(cfg.Bytes()) != string(b) {
		t.Errorf("configuration %s, want %s", cfg.Bytes(), b)
	}
}

// countLogLines returns the number of log lines since a time that contain all texts.
func countLogLines(t *testing.T, since time.Time, texts ...string) (n int) {
	t.Helper()
	records, err := dlog.DefaultLog.Read() // which ignores dlog.Since
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		all := !r.Timestamp.Before(since)
		for _, text := range texts {
			all = all && strings.Contains(fmt.Sprint(r.Message), text)
		}
		if all {
			n++
		}
	}
	return n
}

func TestFollowYieldsEachChange(t *testing.T) {
	n := newNamespace(t)
	begin := time.Now()
	const limit = 10 * time.Second
	n.setData(map[string]string{"DB_HOST": "192.168.0.1", "who": "map"})
	l := startLoop(t, newConfigMap(n.Environment("reader"), "", mapName),
		fixedSource{data: `{"home": "/", "who": "first", "db": {"a": 1}}`}, fixedSource{data: `{"who": "second", "db": {"b": 2}}`})

	first, _ := l.next(limit, "the current configuration")
	expectJSON(t, first, `{"DB_HOST": "192.168.0.1", "who": "map", "home": "/", "db": {"a": 1, "b": 2}}`)
	if got := first.Get("DB_HOST").String(""); got != "192.168.0.1" {
		t.Errorf("DB_HOST is %q", got)
	}
	l.expectNothing("without a change")

	n.setData(map[string]string{"DB_HOST": "192.168.0.2"})
	cfg, took := l.next(limit, "an edit")
	t.Logf("edit seen %s after the write", took)
	expectJSON(t, cfg, `{"DB_HOST": "192.168.0.2", "who": "second", "home": "/", "db": {"a": 1, "b": 2}}`)

	if _, err := n.Admin.CoreV1().ConfigMaps(n.Name).Patch(mapName, types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}},"binaryData":{"x":"AA=="}}`)); err != nil {
		t.Fatal(err)
	}
	l.expectNothing("a label, and binaryData")

	n.deleteMap()
	cfg, took = l.next(limit, "the deletion")
	t.Logf("deletion seen %s after the write", took)
	expectJSON(t, cfg, `{"who": "second", "home": "/", "db": {"a": 1, "b": 2}}`)
	if countLogLines(t, begin, n.Name+"/"+mapName, "was deleted") != 1 {
		t.Error("the deletion is not in the log")
	}

	n.setData(map[string]string{"DB_HOST": "192.168.0.3"})
	cfg, took = l.next(limit, "the new ConfigMap")
	t.Logf("creation seen %s after the write", took)
	if got := cfg.Get("DB_HOST").String(""); got != "192.168.0.3" {
		t.Errorf("DB_HOST is %q", got)
	}
	expectJSON(t, first, `{"DB_HOST": "192.168.0.1", "who": "map", "home": "/", "db": {"a": 1, "b": 2}}`) // the first snapshot has not changed
}

func TestValuesAreStringsOrTrees(t *testing.T) {
	n := newNamespace(t)
	n.setData(map[string]string{
		"DB_HOST": "192.168.0.1", "PORT": "9100", "DEBUG": "true", "TIMEOUT": "3s", "EMPTY": "", "PAIR": "host=db\nport=1",
		"app.yaml": "db:\n  host: db-1\n  ports: [1, 2]\n1: one\ntrue: yes\n? [a]\n: b\n", // not JSON, because one key is a list
		"app.yml":  "db:\n  host: db-1\n  port: 5432\n1: one\n2.5: two\n",
		"app.json": `{"db": {"host": "db-2"}, "big": 1000000}`,
		"bad.json": `{"db":`, "bad.yaml": "a: [", "list.yaml": "- a\n- b\n", "empty.yaml": "", "nan.yaml": "a: .nan",
	})
	begin := time.Now()
	c := newConfigMap(n.Environment("reader"), n.Name, mapName)
	for range 2 {
		if _, err := c.Read(); err != nil {
			t.Fatal(err)
		}
	}
	l := startLoop(t, c)
	cfg, _ := l.next(10*time.Second, "the configuration")
	for _, tt := range []struct {
		path []string
		want string
	}{
		{[]string{"DB_HOST"}, "192.168.0.1"},
		{[]string{"EMPTY"}, ""},
		{[]string{"PAIR"}, "host=db\nport=1"},
		{[]string{"app.yml", "db", "host"}, "db-1"},
		{[]string{"app.yml", "1"}, "one"},
		{[]string{"app.yml", "2.5"}, "two"},
		{[]string{"app.json", "db", "host"}, "db-2"},
		{[]string{"bad.json"}, `{"db":`},
		{[]string{"bad.yaml"}, "a: ["},
		{[]string{"nan.yaml"}, "a: .nan"},
		{[]string{"app.yaml"}, "db:\n  host: db-1\n  ports: [1, 2]\n1: one\ntrue: yes\n? [a]\n: b\n"},
	} {
		if got := cfg.Get(tt.path...).String("none"); got != tt.want {
			t.Errorf("%q is %q, want %q", tt.path, got, tt.want)
		}
	}
	if n := cfg.Get("app.yml", "db", "port").Int(0); n != 5432 {
		t.Errorf("the number in the file is %d", n)
	}
	if n := cfg.Get("app.json", "big").Int(0); n != 1000000 {
		t.Errorf("the number in the file is %d", n)
	}
	if n := cfg.Get("PORT").Int(0); n != 9100 {
		t.Errorf("PORT is %d", n)
	}
	if !cfg.Get("DEBUG").Bool(false) || cfg.Get("TIMEOUT").Duration(0) != 3*time.Second {
		t.Errorf("DEBUG and TIMEOUT of %s", cfg.Bytes())
	}
	if l := cfg.Get("list.yaml").StringSlice(nil); len(l) != 2 {
		t.Errorf("the list in the file is %q", l)
	}
	for _, key := range []string{"bad.json", "bad.yaml", "nan.yaml", "app.yaml"} {
		if n := countLogLines(t, begin, fmt.Sprintf("%q", key)); n != 1 {
			t.Errorf("%q cannot be parsed: %d lines in the log, want 1", key, n)
		}
	}
}

func TestFollowSurvivesKilledAPIServer(t *testing.T) {
	n := newNamespace(t)
	n.setData(map[string]string{"n": "1"})
	begin := time.Now()
	l := startLoop(t, newConfigMap(n.Environment("reader"), "", mapName))
	l.next(10*time.Second, "before")
	n.Kill(t)
	kubetest.Eventually(t, 30*time.Second, "the API server serves again", func() error {
		_, err := n.Admin.CoreV1().ConfigMaps(n.Name).Get(mapName, metav1.GetOptions{})
		return err
	})
	l.expectNothing("while the API server is away, and after its return")
	n.setData(map[string]string{"n": "2"})
	cfg, took := l.next(10*time.Second, "a change after its return")
	expectJSON(t, cfg, `{"n": "2"}`)
	t.Logf("seen %s after the write; %d lines in the log", took, countLogLines(t, begin, n.Name+"/"+mapName))
	n.deleteMap()
	cfg, _ = l.next(10*time.Second, "the deletion")
	expectJSON(t, cfg, `{}`)
}

func TestFollowSurvivesCutWatch(t *testing.T) {
	n := newNamespace(t)
	n.setData(map[string]string{"n": "0"})
	relay := n.StartRelay(t)
	l := startLoop(t, newConfigMap(relay.Through(n.Environment("reader")), "", mapName))
	l.next(10*time.Second, "before")
	change := func(i int) { // Follow sees both changes if the API server still knows them, otherwise only the result
		n.deleteMap()
		n.setData(map[string]string{"n": fmt.Sprint(i)})
	}
	for i := range 3 {
		relay.Cut()
		change(i + 1)
		n.Compact(t)
		relay.Restore()
		cfg, took := l.next(10*time.Second, "a change after Restore")
		if string(cfg.Bytes()) == "{}" {
			cfg, _ = l.next(10*time.Second, "the creation after the deletion")
		}
		expectJSON(t, cfg, fmt.Sprintf(`{"n": "%d"}`, i+1))
		t.Logf("seen %s after Restore", took)
	}
	relay.Cut()
	n.deleteMap()
	relay.Restore()
	cfg, _ := l.next(10*time.Second, "a deletion after Restore")
	expectJSON(t, cfg, `{}`)
}

func TestFollowWithoutVerbWatchYieldsChangesLate(t *testing.T) {
	n := newNamespace(t, "get", "list")
	n.setData(map[string]string{"n": "1"})
	begin := time.Now()
	l := startLoop(t, newConfigMap(n.Environment("reader"), "", mapName))
	l.next(10*time.Second, "the current configuration")
	for i := range 3 {
		n.setData(map[string]string{"n": fmt.Sprint("new ", i)})
		l.next(10*time.Second, "a change")
	}
	if lines, all := countLogLines(t, begin, `verb "watch" on configmaps`, "k8s/configmap-rbac.yaml"), countLogLines(t, begin, n.Name); lines != 1 || all != 1 {
		t.Errorf("%d lines in the log name the missing verb, of %d, want 1", lines, all)
	}
}

func TestSlowLoopGetsTheLatest(t *testing.T) {
	n := newNamespace(t)
	n.setData(map[string]string{"n": "0"})
	c := newConfigMap(n.Environment("reader"), "", mapName)
	slow, quick := startLoop(t, c), startLoop(t, c)
	slow.next(10*time.Second, "the current configuration")
	quick.next(10*time.Second, "the current configuration")
	n.setData(map[string]string{"n": "1"})
	quick.next(10*time.Second, "the first change")
	for i := range 100 { // meanwhile the body of the slow loop still runs with an old element
		n.setData(map[string]string{"n": fmt.Sprint(i + 2)})
	}
	for cfg := config.Config(nil); cfg == nil || cfg.Get("n").String("") != "101"; {
		cfg, _ = quick.next(10*time.Second, "the last change")
	}
	cfg, _ := slow.next(10*time.Second, "the element that its body already has")
	for n := 0; cfg.Get("n").String("") != "101"; n++ {
		if n == 2 {
			t.Fatalf("two elements later the slow loop still has %s", cfg.Bytes())
		}
		cfg, _ = slow.next(10*time.Second, "the latest")
	}
	slow.expectNothing("after the latest")
}

// newNamespace checks at the end of the test that no goroutine is left.
func TestFollowLeavesNothingBehind(t *testing.T) {
	n := newNamespace(t)
	n.setData(map[string]string{"n": "1"})
	c := newConfigMap(n.Environment("reader"), "", mapName)
	t.Run("its context ends while it waits", func(t *testing.T) {
		l := startLoop(t, c)
		l.next(10*time.Second, "the current configuration")
		l.stop()
		l.expectEnd(10*time.Second, "the end of its context")
	})
	t.Run("its context ends in the body", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		rounds := 0
		for _, err := range c.Follow(ctx) {
			if err != nil {
				t.Error(err)
			}
			rounds++
			cancel()
			n.setData(map[string]string{"n": "2"})
		}
		if rounds != 1 {
			t.Errorf("%d elements, want 1", rounds)
		}
	})
	t.Run("its context has ended before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for cfg, err := range c.Follow(ctx) {
			t.Errorf("yielded %v %v", cfg, err)
		}
	})
	t.Run("the loop breaks", func(t *testing.T) {
		for _, err := range c.Follow(t.Context()) {
			if err != nil {
				t.Error(err)
			}
			break
		}
	})
	t.Run("a read", func(t *testing.T) {
		if _, err := c.Read(); err != nil {
			t.Error(err)
		}
	})
	t.Run("the ConfigMap is closed", func(t *testing.T) {
		l := startLoop(t, c)
		l.next(10*time.Second, "the current configuration")
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		l.expectEnd(10*time.Second, "Close")
		if _, err := c.Read(); err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("Read after Close: %v", err)
		}
		if _, err := c.Watch(); err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("Watch after Close: %v", err)
		}
	})
}

func TestWatcher(t *testing.T) {
	n := newNamespace(t)
	n.setData(map[string]string{"n": "1"})
	c := newConfigMap(n.Environment("reader"), "", mapName)
	if err := c.Write(&source.ChangeSet{}); err == nil || !strings.Contains(err.Error(), "not supported") || c.String() != "configmap" {
		t.Errorf("Write: %v; String: %s", err, c)
	}
	for _, read := range []bool{false, true} {
		if read {
			set, err := c.Read()
			if err != nil || set.Format != "json" || set.Source != "configmap" || set.Checksum != set.Sum() {
				t.Fatalf("Read: %v %+v", err, set)
			}
		}
		w, err := c.Watch()
		if err != nil {
			t.Fatal(err)
		}
		step := func(want string) {
			t.Helper()
			got := make(chan string, 1)
			go func() {
				set, err := w.Next()
				if err != nil {
					got <- err.Error()
				} else {
					got <- string(set.Data)
				}
			}()
			select {
			case g := <-got:
				if g != want {
					t.Errorf("Next: %s, want %s", g, want)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("Next: nothing, want %s", want)
			}
		}
		n.setData(map[string]string{"n": "2"})
		step(`{"n":"2"}`)
		n.deleteMap()
		step(`{}`)
		n.setData(map[string]string{"n": "1"})
		step(`{"n":"1"}`)

		ended := make(chan error, 1)
		go func() { _, err := w.Next(); ended <- err }()
		for range 2 {
			if err := w.Stop(); err != nil {
				t.Error(err)
			}
		}
		if err := <-ended; !errors.Is(err, source.ErrWatcherStopped) {
			t.Errorf("Next after Stop: %v", err)
		}
		if _, err := w.Next(); !errors.Is(err, source.ErrWatcherStopped) {
			t.Errorf("Next after Stop: %v", err)
		}
	}
	if _, err := c.Read(); err != nil {
		t.Fatal(err)
	}
	n.setData(map[string]string{"n": "3"}) // between Read and Watch
	w, err := c.Watch()
	if err != nil {
		t.Fatal(err)
	}
	if set, err := w.Next(); err != nil || string(set.Data) != `{"n":"3"}` {
		t.Errorf("Next: %v %v, want the content that changed after Read", set, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Next(); !errors.Is(err, source.ErrWatcherStopped) {
		t.Errorf("Next after Close: %v", err)
	}
}

func TestFailedFirstReadEndsWithRemedy(t *testing.T) {
	n := newNamespace(t)
	without := newNamespace(t, "list", "watch")
	without.setData(map[string]string{"n": "1"})
	outside := n.Environment("reader")
	outside.Getenv = func(string) string { return "" }
	empty := n.Environment("reader")
	empty.ServiceAccountDir = t.TempDir()
	down := n.StartRelay(t)
	down.Close()
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	for _, c := range []struct {
		name    string
		m       *ConfigMap
		missing bool
		want    []string
	}{
		{"no such ConfigMap", newConfigMap(n.Environment("reader"), "", mapName), true, []string{n.Name + "/" + mapName, "not found", "create it"}},
		{"no right to read it", newConfigMap(without.Environment("reader"), "", mapName), false, []string{"forbidden", `verb "get" on configmaps`, "k8s/configmap-rbac.yaml", without.Name}},
		{"ConfigMap in another namespace", newConfigMap(n.Environment("reader"), without.Name, mapName), false, []string{"forbidden", without.Name + "/" + mapName}},
		{"not in a cluster", newConfigMap(outside, "", mapName), false, []string{mapName, "not in a pod", "KUBECONFIG"}},
		{"no service account", newConfigMap(empty, "", mapName), false, []string{mapName, "serviceAccountName"}},
		{"no API server", newConfigMap(down.Through(n.Environment("reader")), "", mapName), false, []string{"connection refused", "up?"}},
		{"no name", newConfigMap(n.Environment("reader"), "", ""), false, []string{"name may not be empty"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := func(err error) {
				t.Helper()
				for _, want := range c.want {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%v does not name %q", err, want)
					}
				}
				var status *apierrors.StatusError
				if c.missing != (errors.As(err, &status) && apierrors.IsNotFound(status)) {
					t.Errorf("%v wraps %v, want NotFound: %v", err, status, c.missing)
				}
			}
			_, err := c.m.Read()
			check(err)
			if w, err := c.m.Watch(); err == nil || w != nil {
				t.Errorf("Watch: %v %v", w, err)
			}
			if apiserver.Unreachable(err) { // Follow waits for the API server
				return
			}
			rounds := 0
			for cfg, err := range c.m.Follow(t.Context()) {
				rounds++
				check(err)
				if cfg != nil {
					t.Errorf("yielded %v", cfg)
				}
			}
			if rounds != 1 {
				t.Errorf("%d elements, want 1", rounds)
			}
		})
	}
	t.Run("a source before the ConfigMap fails", func(t *testing.T) {
		n.setData(map[string]string{"n": "1"})
		m := newConfigMap(n.Environment("reader"), "", mapName)
		for _, err := range m.Follow(t.Context(), newConfigMap(empty, "", "other")) {
			if err == nil || !strings.Contains(err.Error(), "other") {
				t.Errorf("Follow: %v", err)
			}
		}
		for _, err := range m.Follow(t.Context(), fixedSource{data: "{"}) {
			if err == nil || !strings.Contains(err.Error(), "merging") {
				t.Errorf("Follow: %v", err)
			}
		}
	})
}

func TestFollowSurvivesFrozenAPIServer(t *testing.T) {
	n := newNamespace(t)
	n.setData(map[string]string{"n": "1"})
	c := newConfigMap(n.Environment("reader"), "", mapName)
	l := startLoop(t, c)
	l.next(10*time.Second, "before")
	thaw := n.Freeze(t)
	begin := time.Now()
	if set, err := c.Read(); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("Read while the API server is frozen: %v %v", set, err)
	}
	took := time.Since(begin)
	if took > 10*time.Second {
		t.Errorf("Read took %s to fail", took)
	}
	t.Logf("Read while the API server is frozen fails after %s", took)
	late := startLoop(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin = time.Now()
	for cfg, err := range c.Follow(ctx) {
		t.Errorf("Follow with a cancelled context: %v %v", cfg, err)
	}
	if took := time.Since(begin); took > 4*time.Second { // it waits at most 5 s for the API server
		t.Errorf("Follow with a cancelled context took %s", took)
	}
	l.expectNothing("while the API server is frozen")
	late.expectNothing("while the API server is frozen")
	thaw()
	cfg, _ := late.next(20*time.Second, "the configuration after the thaw")
	expectJSON(t, cfg, `{"n": "1"}`)
	kubetest.Eventually(t, 30*time.Second, "the API server answers", func() error {
		_, err := n.Admin.CoreV1().ConfigMaps(n.Name).Get(mapName, metav1.GetOptions{})
		return err
	})
	n.setData(map[string]string{"n": "2"})
	cfg, took = l.next(10*time.Second, "a change after the thaw")
	expectJSON(t, cfg, `{"n": "2"}`)
	t.Logf("seen %s after the write", took)
}

func TestVariableThatBreaksConfigurationIsLogged(t *testing.T) {
	n := newNamespace(t)
	t.Setenv("GOOD", "a value")
	t.Setenv("BAD", `"`)
	n.setData(map[string]string{"x": "${GOOD}"})
	begin := time.Now()
	l := startLoop(t, newConfigMap(n.Environment("reader"), "", mapName))
	cfg, _ := l.next(10*time.Second, "the current configuration")
	if got := cfg.Get("x").String(""); got != "a value" {
		t.Errorf("x is %q", got)
	}
	n.setData(map[string]string{"x": "${BAD}"})
	kubetest.Eventually(t, 10*time.Second, "one line in the log", func() error {
		if lines := countLogLines(t, begin, n.Name, "${NAME}", "keeping"); lines != 1 {
			return fmt.Errorf("%d lines", lines)
		}
		return nil
	})
	l.expectNothing("a value that breaks the JSON")
	n.setData(map[string]string{"x": "good"})
	cfg, _ = l.next(10*time.Second, "a value that does not break the JSON")
	expectJSON(t, cfg, `{"x": "good"}`)
}

func FuzzParse(f *testing.F) {
	f.Add("a.yaml", "db:\n  host: x\n1: one\ntrue: yes\n? [a]\n: b\n")
	f.Add("a.yml", "&a [*a]")
	f.Add("a.yaml", "<<: {a: 1}\nd: 2001-12-14\nn: .inf\n!!binary x: y")
	f.Add("a.json", `{"a": 1e400, "a": [null]}`)
	f.Add("a", "b=c\nd")
	f.Fuzz(func(t *testing.T, key, value string) {
		c := newConfigMap(apiserver.Environment{}, "", mapName)
		cfg, err := newSnapshot(&misreadings{}, c.changeSet(map[string]string{key: value}, true))
		if err != nil {
			return // the value holds a ${NAME} that breaks the JSON
		}
		cfg.Get(key).String("")
		if _, err := json.Marshal(cfg.Map()); err != nil {
			t.Error(err)
		}
	})
}
