package configwatch

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// grantMore also grants what Follow needs of other objects.
func (n *namespace) grantMore(resource string, names ...string) {
	n.Grant("more-"+resource, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{resource}, ResourceNames: names, Verbs: []string{"get", "list", "watch"}})
}

// patch merges data into a ConfigMap.
func (n *namespace) patch(name, data string) {
	n.t.Helper()
	if _, err := n.Admin.CoreV1().ConfigMaps(n.Name).Patch(name, types.MergePatchType, []byte(`{"data":`+data+`}`)); err != nil {
		n.t.Fatal(err)
	}
}

func TestBaseAndSecretAreFollowedToo(t *testing.T) {
	n := newNamespace(t)
	n.grantMore("configmaps", "base")
	n.grantMore("secrets", "db")
	n.setData(map[string]string{"level": "debug"})
	if _, err := n.Admin.CoreV1().ConfigMaps(n.Name).Create(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "base"}, Data: map[string]string{"level": "info", "region": "north"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Admin.CoreV1().Secrets(n.Name).Create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Data: map[string][]byte{
		"password": []byte("one"), "binary": {0xff}, "bad.json": []byte("xyzzy")}}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	e := n.Environment("reader")
	base, secret, override := newConfigMap(e, "", "base"), newSource(e, kindSecret, "", "db"), newConfigMap(e, "", mapName)
	l := startLoop(t, override, fixedSource{data: `{"home": "/", "region": "none"}`}, base, secret)
	const limit = 10 * time.Second
	cfg, _ := l.next(limit, "the current configuration")
	expectJSON(t, cfg, `{"home": "/", "region": "north", "level": "debug", "password": "one", "bad.json": "xyzzy"}`)
	l.expectNothing("without a change")

	n.patch("base", `{"region": "south", "level": "error"}`)
	cfg, took := l.next(limit, "an edit of the base")
	t.Logf("edit of the base seen %s after the write", took)
	expectJSON(t, cfg, `{"home": "/", "region": "south", "level": "debug", "password": "one", "bad.json": "xyzzy"}`)

	if _, err := n.Admin.CoreV1().Secrets(n.Name).Patch("db", types.MergePatchType, []byte(`{"stringData":{"password":"two"}}`)); err != nil {
		t.Fatal(err)
	}
	cfg, _ = l.next(limit, "an edit of the Secret")
	if got := cfg.Get("password").String(""); got != "two" {
		t.Errorf("the password is %q", got)
	}

	n.deleteMap()
	cfg, _ = l.next(limit, "the deletion of the override")
	if got := cfg.Get("level").String(""); got != "error" {
		t.Errorf("without the override the level is %q, want that of the base", got)
	}
	if err := n.Admin.CoreV1().Secrets(n.Name).Delete("db", nil); err != nil {
		t.Fatal(err)
	}
	cfg, _ = l.next(limit, "the deletion of the Secret")
	expectJSON(t, cfg, `{"home": "/", "region": "south", "level": "error"}`)
	if countLogLines(t, begin, "Secret", n.Name+"/db", "was deleted") != 1 {
		t.Error("the deletion of the Secret is not in the log")
	}
	if n := countLogLines(t, begin, `"bad.json"`, `Secret "db"`, "cannot be parsed"); n != 1 {
		t.Errorf("%d lines of the log name the key that cannot be parsed, want 1", n)
	}
	for _, value := range []string{"xyzzy", "'x'", "two"} {
		if countLogLines(t, begin, "[configmap]", value) != 0 {
			t.Errorf("the log contains %q of a value of the Secret", value)
		}
	}

	if err := base.Close(); err != nil { // of any of them
		t.Fatal(err)
	}
	l.expectEnd(limit, "Close of the base")
}

func TestMissingBaseAndForbiddenSecretAreErrors(t *testing.T) {
	n := newNamespace(t)
	n.grantMore("configmaps", "base", "none")
	n.setData(map[string]string{"level": "debug"})
	e := n.Environment("reader")
	for _, tt := range []struct {
		before *ConfigMap
		want   []string
	}{
		{newConfigMap(e, "", "none"), []string{`reading ConfigMap "` + n.Name + `/none"`, "not found", "disableNameSuffixHash: true"}},
		{newSource(e, kindSecret, "", "db"), []string{`reading Secret "` + n.Name + `/db"`, "forbidden", `lacks the verb "get" on secrets`, "resourceNames"}},
	} {
		rounds := 0
		for cfg, err := range newConfigMap(e, "", mapName).Follow(t.Context(), tt.before) {
			if rounds++; rounds > 1 {
				break
			}
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("yielded %v, %v, want an error with %q", cfg, err, want)
				}
			}
		}
		if rounds != 1 {
			t.Errorf("%s: %d elements, want one error", tt.before.name, rounds)
		}
	}
}

// The names that kustomize generates: https://kubectl.docs.kubernetes.io/references/kustomize/kustomization/configmapgenerator/
func TestHashInNameIsLogged(t *testing.T) {
	n := newNamespace(t)
	n.grantMore("configmaps", "shop-config-6fkb5t9f2m", "shop-config-production")
	for name, want := range map[string]int{"shop-config-6fkb5t9f2m": 1, "shop-config-production": 0} {
		if _, err := n.Admin.CoreV1().ConfigMaps(n.Name).Create(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		startLoop(t, newConfigMap(n.Environment("reader"), "", name)).next(10*time.Second, "the current configuration")
		if n := countLogLines(t, begin, fmt.Sprintf("%q", name), "disableNameSuffixHash: true", `"shop-config"`); n != want {
			t.Errorf("%s: %d lines in the log name the remedy, want %d", name, n, want)
		}
	}
}

// Code for the configmap plugin reads a map where there is a text, and YAML 1.1 has a boolean or a number where there
// seems to be a text: go-micro returns the default for both.
func TestMisreadingIsLoggedOnce(t *testing.T) {
	c := newConfigMap(apiserver.Environment{}, "", "m")
	reported := &misreadings{}
	begin := time.Now()
	for range 3 {
		cfg, err := newSnapshot(reported, c.changeSet(map[string]string{
			"mysql_url": "url=root@tcp(db:3306)/shop", "plain": "text", "empty": "",
			"app.yaml": "country: NO\nmode: 0644\nzip: 08123\nquoted: \"NO\"\ndb: {host: db-1}\nlist: [a]\n",
		}, true))
		if err != nil {
			t.Fatal(err)
		}
		if m := cfg.Get("mysql_url").StringMap(nil); m != nil {
			t.Errorf("the text is the map %q", m)
		}
		for _, path := range [][]string{{"app.yaml", "country"}, {"app.yaml", "mode"}, {"app.yaml", "zip"}, {"app.yaml"}, {"app.yaml", "list"}} {
			if got := cfg.Get(path...).String("default"); got != "default" {
				t.Errorf("%q is %q", path, got)
			}
		}
		for want, path := range map[string][]string{"text": {"plain"}, "": {"empty"}, "NO": {"app.yaml", "quoted"}, "db-1": {"app.yaml", "db", "host"}, "default": {"missing"}} {
			if got := cfg.Get(path...).String("default"); got != want {
				t.Errorf("%q is %q, want %q", path, got, want)
			}
		}
		if m := cfg.Get("app.yaml", "db").StringMap(nil); m["host"] != "db-1" {
			t.Errorf("the tree is the map %q", m)
		}
		cfg.Get("empty").StringMap(nil)
		cfg.Get("missing").StringMap(nil)
	}
	for key, remedy := range map[string]string{"mysql_url": "read it with String", "app.yaml.country": "in quotes", "app.yaml.mode": "in quotes", "app.yaml.zip": "in quotes", "app.yaml": "read its keys", "app.yaml.list": "read its keys"} {
		if n := countLogLines(t, begin, fmt.Sprintf("key %q", key), remedy); n != 1 {
			t.Errorf("%d lines of the log name %s and %q, want 1", n, key, remedy)
		}
	}
	if n := countLogLines(t, begin, "returns the default"); n != 6 {
		t.Errorf("%d lines in the log, want 6", n)
	}
}
