package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	microconfig "github.com/micro/go-micro/v2/config"
	"github.com/micro/go-micro/v2/config/source"
	dlog "github.com/micro/go-micro/v2/debug/log"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const mapName = "go-micro-config"

// newMapSpace is a space whose service account has what k8s/configmap-rbac.yaml
// grants, or just these verbs of it.
func newMapSpace(t *testing.T, verbs ...string) *space {
	t.Helper()
	s := newSpace(t)
	if len(verbs) == 0 {
		verbs = []string{"get", "list", "watch"}
	}
	_, err := admin.RbacV1().Roles(s.name).Create(&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "micro-config"},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{mapName}, Verbs: verbs}}})
	if err == nil {
		_, err = admin.RbacV1().RoleBindings(s.name).Create(&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "micro-config"},
			RoleRef:  rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "Role", Name: "micro-config"},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "micro-services", Namespace: s.name}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	soon(t, 10*time.Second, "the role being known to the API server", func() error {
		for _, verb := range verbs {
			r, err := admin.AuthorizationV1().SubjectAccessReviews().Create(&authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
				User:               "system:serviceaccount:" + s.name + ":micro-services",
				ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: s.name, Resource: "configmaps", Name: mapName, Verb: verb}}})
			if err != nil || !r.Status.Allowed {
				return fmt.Errorf("verb %q: %v", verb, err)
			}
		}
		return nil
	})
	return s
}

// data creates the ConfigMap, or replaces its data.
func (s *space) data(data map[string]string) {
	s.t.Helper()
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: mapName}, Data: data}
	_, err := admin.CoreV1().ConfigMaps(s.name).Update(m)
	if apierrors.IsNotFound(err) {
		_, err = admin.CoreV1().ConfigMaps(s.name).Create(m)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) removeMap() {
	s.t.Helper()
	if err := admin.CoreV1().ConfigMaps(s.name).Delete(mapName, &metav1.DeleteOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// fixed is a source of one content.
type fixed struct {
	source.Source
	data string
}

func (f fixed) Read() (*source.ChangeSet, error) {
	return &source.ChangeSet{Data: []byte(f.data), Format: "json"}, nil
}

// yielded is what Follow yields at one time.
type yielded struct {
	cfg microconfig.Config
	err error
}

// loop ranges over Follow. Its body hands over what is yielded, and waits until
// the test has taken it.
type loop struct {
	t     *testing.T
	given chan yielded
	stop  context.CancelFunc
	ended chan struct{}
}

func startLoop(t *testing.T, c *ConfigMap, before ...source.Source) *loop {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &loop{t, make(chan yielded), cancel, make(chan struct{})}
	go func() {
		defer close(l.ended)
		for cfg, err := range c.Follow(ctx, before...) {
			select {
			case l.given <- yielded{cfg, err}:
			case <-ctx.Done(): // and on, as a reader that does not care
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-l.ended
	})
	return l
}

// next is what is yielded within a time; like a real loop's, its error ends the test.
func (l *loop) next(limit time.Duration, what string) (microconfig.Config, time.Duration) {
	l.t.Helper()
	begin := time.Now()
	select {
	case y := <-l.given:
		if y.err != nil {
			l.t.Fatalf("%s: %v", what, y.err)
		}
		return y.cfg, time.Since(begin)
	case <-l.ended:
		l.t.Fatalf("%s: the loop has ended", what)
	case <-time.After(limit):
		l.t.Fatalf("%s: not within %s", what, limit)
	}
	return nil, 0
}

// nothing checks that nothing is yielded for a while.
func (l *loop) nothing(what string) {
	l.t.Helper()
	select {
	case y := <-l.given:
		l.t.Errorf("%s: yielded %v %v", what, y.cfg.Map(), y.err)
	case <-l.ended:
		l.t.Errorf("%s: the loop has ended", what)
	case <-time.After(300 * time.Millisecond):
	}
}

// over checks that the loop ends by itself.
func (l *loop) over(limit time.Duration, what string) {
	l.t.Helper()
	select {
	case y := <-l.given:
		l.t.Fatalf("%s: yielded %v %v", what, y.cfg, y.err)
	case <-l.ended:
	case <-time.After(limit):
		l.t.Fatalf("%s: the loop goes on after %s", what, limit)
	}
}

// wants compares a configuration with a map, written as JSON.
func wants(t *testing.T, cfg microconfig.Config, want string) {
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

// logged counts the lines of the log since a time that hold all these texts.
func logged(t *testing.T, since time.Time, texts ...string) (n int) {
	t.Helper()
	records, err := dlog.DefaultLog.Read(dlog.Since(since))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		all := true
		for _, text := range texts {
			all = all && strings.Contains(fmt.Sprint(r.Message), text)
		}
		if all {
			n++
		}
	}
	return n
}

func TestFollowYieldsEachChangeOfTheConfigMap(t *testing.T) {
	s := newMapSpace(t)
	begin := time.Now()
	const limit = 2 * time.Second
	s.data(map[string]string{"DB_HOST": "192.168.0.1", "who": "map"})
	l := startLoop(t, newConfigMap(s.inside("reader"), "", mapName),
		fixed{data: `{"home": "/", "who": "first", "db": {"a": 1}}`}, fixed{data: `{"who": "second", "db": {"b": 2}}`})

	first, _ := l.next(limit, "the present configuration")
	wants(t, first, `{"DB_HOST": "192.168.0.1", "who": "map", "home": "/", "db": {"a": 1, "b": 2}}`)
	if got := first.Get("DB_HOST").String(""); got != "192.168.0.1" {
		t.Errorf("DB_HOST is %q", got)
	}
	l.nothing("without a change")

	s.data(map[string]string{"DB_HOST": "192.168.0.2"})
	cfg, took := l.next(limit, "an edit")
	t.Logf("edit seen %s after the write", took)
	wants(t, cfg, `{"DB_HOST": "192.168.0.2", "who": "second", "home": "/", "db": {"a": 1, "b": 2}}`)

	if _, err := admin.CoreV1().ConfigMaps(s.name).Patch(mapName, types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}},"binaryData":{"x":"AA=="}}`)); err != nil {
		t.Fatal(err)
	}
	l.nothing("a label, and binaryData")

	s.removeMap()
	cfg, took = l.next(limit, "the deletion")
	t.Logf("deletion seen %s after the write", took)
	wants(t, cfg, `{"who": "second", "home": "/", "db": {"a": 1, "b": 2}}`)
	if logged(t, begin, s.name+"/"+mapName, "is gone") != 1 {
		t.Error("the deletion is not in the log")
	}

	s.data(map[string]string{"DB_HOST": "192.168.0.3"})
	cfg, took = l.next(limit, "it being created again")
	t.Logf("creation seen %s after the write", took)
	if got := cfg.Get("DB_HOST").String(""); got != "192.168.0.3" {
		t.Errorf("DB_HOST is %q", got)
	}
	wants(t, first, `{"DB_HOST": "192.168.0.1", "who": "map", "home": "/", "db": {"a": 1, "b": 2}}`) // it is the reader's to keep
}

func TestValuesAreScalarsOrTheFilesTheyHold(t *testing.T) {
	s := newMapSpace(t)
	s.data(map[string]string{
		"DB_HOST": "192.168.0.1", "PORT": "9100", "DEBUG": "true", "TIMEOUT": "3s", "EMPTY": "", "PAIR": "host=db\nport=1",
		"app.yaml": "db:\n  host: db-1\n  ports: [1, 2]\n1: one\ntrue: yes\n? [a]\n: b\n", // a key that is a list: not JSON
		"app.yml":  "db:\n  host: db-1\n  port: 5432\n1: one\n2.5: two\n",
		"app.json": `{"db": {"host": "db-2"}, "big": 1000000}`,
		"bad.json": `{"db":`, "bad.yaml": "a: [", "list.yaml": "- a\n- b\n", "empty.yaml": "", "nan.yaml": "a: .nan",
	})
	begin := time.Now()
	c := newConfigMap(s.inside("reader"), s.name, mapName)
	for range 2 {
		if _, err := c.Read(); err != nil {
			t.Fatal(err)
		}
	}
	l := startLoop(t, c)
	cfg, _ := l.next(2*time.Second, "the configuration")
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
		t.Errorf("a file's number is %d", n)
	}
	if n := cfg.Get("app.json", "big").Int(0); n != 1000000 {
		t.Errorf("a file's number is %d", n)
	}
	if n := cfg.Get("PORT").Int(0); n != 9100 {
		t.Errorf("PORT is %d", n)
	}
	if !cfg.Get("DEBUG").Bool(false) || cfg.Get("TIMEOUT").Duration(0) != 3*time.Second {
		t.Errorf("DEBUG and TIMEOUT of %s", cfg.Bytes())
	}
	if l := cfg.Get("list.yaml").StringSlice(nil); len(l) != 2 {
		t.Errorf("a file's list is %q", l)
	}
	for _, key := range []string{"bad.json", "bad.yaml", "nan.yaml", "app.yaml"} {
		if n := logged(t, begin, fmt.Sprintf("%q", key)); n != 1 {
			t.Errorf("%q does not parse: %d lines in the log, want 1", key, n)
		}
	}
}

func TestFollowThroughAnAPIServerKilledAndBack(t *testing.T) {
	s := newMapSpace(t)
	s.data(map[string]string{"n": "1"})
	begin := time.Now()
	l := startLoop(t, newConfigMap(s.inside("reader"), "", mapName))
	l.next(2*time.Second, "before")
	kill(t, apiServer(t), syscall.SIGKILL)
	soon(t, 30*time.Second, "the API server coming back", func() error {
		_, err := admin.CoreV1().ConfigMaps(s.name).Get(mapName, metav1.GetOptions{})
		return err
	})
	l.nothing("it being away, and back")
	s.data(map[string]string{"n": "2"})
	cfg, took := l.next(5*time.Second, "a change after its return")
	wants(t, cfg, `{"n": "2"}`)
	t.Logf("seen %s after the write; %d lines in the log", took, logged(t, begin, s.name+"/"+mapName))
	s.removeMap()
	cfg, _ = l.next(2*time.Second, "the deletion")
	wants(t, cfg, `{}`)
}

func TestFollowThroughACutWatch(t *testing.T) {
	s := newMapSpace(t)
	s.data(map[string]string{"n": "0"})
	u, _ := url.Parse(config.Host)
	w := newWire(t, u.Host)
	l := startLoop(t, newConfigMap(through(s.inside("reader"), w), "", mapName))
	l.next(2*time.Second, "before")
	change := func(i int) { // deleted and created again: as one change, when the watch is cut
		s.removeMap()
		s.data(map[string]string{"n": fmt.Sprint(i)})
	}
	for i := range 3 {
		w.cut()
		change(i + 1)
		compact(t) // where the watch was is gone: 410
		w.mend()
		cfg, took := l.next(3*time.Second, "a change after the mend")
		wants(t, cfg, fmt.Sprintf(`{"n": "%d"}`, i+1))
		t.Logf("seen %s after the mend", took)
	}
	w.cut()
	s.removeMap()
	w.mend()
	cfg, _ := l.next(3*time.Second, "a deletion after the mend")
	wants(t, cfg, `{}`)
}

func TestFollowWithoutTheVerbWatchIsLateButRight(t *testing.T) {
	s := newMapSpace(t, "get", "list")
	s.data(map[string]string{"n": "1"})
	begin := time.Now()
	l := startLoop(t, newConfigMap(s.inside("reader"), "", mapName))
	l.next(2*time.Second, "the present configuration")
	for n := range 3 {
		s.data(map[string]string{"n": fmt.Sprint("new ", n)})
		l.next(3*time.Second, "a change")
	}
	if n, all := logged(t, begin, `verb "watch" on configmaps`, "k8s/configmap-rbac.yaml"), logged(t, begin, s.name); n != 1 || all != 1 {
		t.Errorf("%d lines in the log name the missing verb, of %d, want 1", n, all)
	}
}

func TestSlowReaderGetsTheLatest(t *testing.T) {
	s := newMapSpace(t)
	s.data(map[string]string{"n": "0"})
	c := newConfigMap(s.inside("reader"), "", mapName)
	slow, quick := startLoop(t, c), startLoop(t, c)
	slow.next(2*time.Second, "the present configuration")
	quick.next(2*time.Second, "the present configuration")
	s.data(map[string]string{"n": "1"})
	quick.next(2*time.Second, "the first change")
	for n := range 100 { // while the slow one is in its body, and has not taken the first
		s.data(map[string]string{"n": fmt.Sprint(n + 2)})
	}
	for cfg := microconfig.Config(nil); cfg == nil || cfg.Get("n").String("") != "101"; {
		cfg, _ = quick.next(2*time.Second, "the last change")
	}
	cfg, _ := slow.next(2*time.Second, "what it had in hand")
	for n := 0; cfg.Get("n").String("") != "101"; n++ {
		if n == 2 {
			t.Fatalf("two readings later it has %s still", cfg.Bytes())
		}
		cfg, _ = slow.next(2*time.Second, "the latest")
	}
	slow.nothing("after the latest")
}

// newSpace looks for what is left.
func TestNothingIsLeftOfALoopThatEnds(t *testing.T) {
	s := newMapSpace(t)
	s.data(map[string]string{"n": "1"})
	c := newConfigMap(s.inside("reader"), "", mapName)
	t.Run("its context ends while it waits", func(t *testing.T) {
		l := startLoop(t, c)
		l.next(2*time.Second, "the present configuration")
		l.stop()
		l.over(time.Second, "the end of its context")
	})
	t.Run("its context ends in its body", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n := 0
		for _, err := range c.Follow(ctx) {
			if err != nil {
				t.Error(err)
			}
			n++
			cancel()
			s.data(map[string]string{"n": "2"})
		}
		if n != 1 {
			t.Errorf("%d rounds, want 1", n)
		}
	})
	t.Run("its context has ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for cfg, err := range c.Follow(ctx) {
			t.Errorf("yielded %v %v", cfg, err)
		}
	})
	t.Run("it breaks", func(t *testing.T) {
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
		l.next(2*time.Second, "the present configuration")
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		l.over(time.Second, "Close")
		if _, err := c.Read(); err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("Read after Close: %v", err)
		}
		if _, err := c.Watch(); err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("Watch after Close: %v", err)
		}
	})
}

func TestWatcherOfTheSource(t *testing.T) {
	s := newMapSpace(t)
	s.data(map[string]string{"n": "1"})
	c := newConfigMap(s.inside("reader"), "", mapName)
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
			case <-time.After(2 * time.Second):
				t.Fatalf("Next: nothing, want %s", want)
			}
		}
		s.data(map[string]string{"n": "2"})
		step(`{"n":"2"}`)
		s.removeMap()
		step(`{}`)
		s.data(map[string]string{"n": "1"})
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
	s.data(map[string]string{"n": "3"}) // between Read and Watch
	w, err := c.Watch()
	if err != nil {
		t.Fatal(err)
	}
	if set, err := w.Next(); err != nil || string(set.Data) != `{"n":"3"}` {
		t.Errorf("Next: %v %v, want what changed since Read", set, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Next(); !errors.Is(err, source.ErrWatcherStopped) {
		t.Errorf("Next after Close: %v", err)
	}
}

func TestFirstReadThatFailsSaysWhatToDoAndEnds(t *testing.T) {
	s := newMapSpace(t)
	without := newMapSpace(t, "list", "watch")
	without.data(map[string]string{"n": "1"})
	outside := s.inside("reader")
	outside.Getenv = func(string) string { return "" }
	empty := s.inside("reader")
	empty.ServiceAccountDir = t.TempDir()
	u, _ := url.Parse(config.Host)
	down := newWire(t, u.Host)
	down.l.Close()
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	for _, c := range []struct {
		name    string
		m       *ConfigMap
		missing bool
		want    []string
	}{
		{"no such ConfigMap", newConfigMap(s.inside("reader"), "", mapName), true, []string{s.name + "/" + mapName, "not found", "create it"}},
		{"no right to read it", newConfigMap(without.inside("reader"), "", mapName), false, []string{"forbidden", `verb "get" on configmaps`, "k8s/configmap-rbac.yaml", without.name}},
		{"another namespace's", newConfigMap(s.inside("reader"), without.name, mapName), false, []string{"forbidden", without.name + "/" + mapName}},
		{"not in a cluster", newConfigMap(outside, "", mapName), false, []string{mapName, "not in a pod", "KUBECONFIG"}},
		{"no service account", newConfigMap(empty, "", mapName), false, []string{mapName, "serviceAccountName"}},
		{"no API server", newConfigMap(through(s.inside("reader"), down), "", mapName), false, []string{"connection refused", "up?"}},
		{"no name", newConfigMap(s.inside("reader"), "", ""), false, []string{"name may not be empty"}},
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
					t.Errorf("unwrapped, %v is %v", err, status)
				}
			}
			_, err := c.m.Read()
			check(err)
			n := 0
			for cfg, err := range c.m.Follow(t.Context()) {
				n++
				check(err)
				if cfg != nil {
					t.Errorf("yielded %v", cfg)
				}
			}
			if n != 1 {
				t.Errorf("%d rounds, want 1", n)
			}
			if w, err := c.m.Watch(); err == nil || w != nil {
				t.Errorf("Watch: %v %v", w, err)
			}
		})
	}
	t.Run("a source before it", func(t *testing.T) {
		s.data(map[string]string{"n": "1"})
		m := newConfigMap(s.inside("reader"), "", mapName)
		for _, err := range m.Follow(t.Context(), newConfigMap(empty, "", "other")) {
			if err == nil || !strings.Contains(err.Error(), "other") {
				t.Errorf("Follow: %v", err)
			}
		}
		for _, err := range m.Follow(t.Context(), fixed{data: "{"}) {
			if err == nil || !strings.Contains(err.Error(), "merging") {
				t.Errorf("Follow: %v", err)
			}
		}
	})
}

func TestFollowThroughAFrozenAPIServer(t *testing.T) {
	s := newMapSpace(t)
	s.data(map[string]string{"n": "1"})
	c := newConfigMap(s.inside("reader"), "", mapName)
	l := startLoop(t, c)
	l.next(2*time.Second, "before")
	pid := apiServer(t)
	kill(t, pid, syscall.SIGSTOP)
	thaw := sync.OnceFunc(func() { kill(t, pid, syscall.SIGCONT) })
	defer thaw()
	begin := time.Now()
	for cfg, err := range c.Follow(t.Context()) {
		if err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("a start while it is frozen: %v %v", cfg, err)
		}
	}
	took := time.Since(begin)
	if took > 8*time.Second {
		t.Errorf("it took %s to fail", took)
	}
	t.Logf("a start while it is frozen fails after %s", took)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin = time.Now()
	for cfg, err := range c.Follow(ctx) {
		t.Errorf("a start that is called off: %v %v", cfg, err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("a start that is called off took %s", took)
	}
	l.nothing("while it is frozen")
	thaw()
	soon(t, 30*time.Second, "the API server answering", func() error {
		_, err := admin.CoreV1().ConfigMaps(s.name).Get(mapName, metav1.GetOptions{})
		return err
	})
	s.data(map[string]string{"n": "2"})
	cfg, took := l.next(10*time.Second, "a change after the thaw")
	wants(t, cfg, `{"n": "2"}`)
	t.Logf("seen %s after the write", took)
}

func TestVariableThatBreaksTheConfigurationIsSaid(t *testing.T) {
	s := newMapSpace(t)
	t.Setenv("GOOD", "a value")
	t.Setenv("BAD", `"`)
	s.data(map[string]string{"x": "${GOOD}"})
	begin := time.Now()
	l := startLoop(t, newConfigMap(s.inside("reader"), "", mapName))
	cfg, _ := l.next(2*time.Second, "the present configuration")
	if got := cfg.Get("x").String(""); got != "a value" {
		t.Errorf("x is %q", got)
	}
	s.data(map[string]string{"x": "${BAD}"})
	l.nothing("a value that breaks it")
	if n := logged(t, begin, s.name, "${NAME}", "keeping"); n != 1 {
		t.Errorf("%d lines in the log, want 1", n)
	}
	s.data(map[string]string{"x": "good"})
	cfg, _ = l.next(2*time.Second, "one that does not")
	wants(t, cfg, `{"x": "good"}`)
}

func FuzzParse(f *testing.F) {
	f.Add("a.yaml", "db:\n  host: x\n1: one\ntrue: yes\n? [a]\n: b\n")
	f.Add("a.yml", "&a [*a]")
	f.Add("a.yaml", "<<: {a: 1}\nd: 2001-12-14\nn: .inf\n!!binary x: y")
	f.Add("a.json", `{"a": 1e400, "a": [null]}`)
	f.Add("a", "b=c\nd")
	f.Fuzz(func(t *testing.T, key, value string) {
		c := newConfigMap(apiserver.Environment{}, "", mapName)
		cfg, err := newSnapshot(c.changeSet(map[string]string{key: value}))
		if err != nil {
			return // a ${NAME}
		}
		cfg.Get(key).String("")
		if _, err := json.Marshal(cfg.Map()); err != nil {
			t.Error(err)
		}
	})
}
