package configwatch

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/config"
	"github.com/micro/go-micro/v2/config/source"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fakeConfigMap starts a fake API server with one ConfigMap that does not change.
func fakeConfigMap(t *testing.T, data map[string]string) apiserver.Environment {
	t.Helper()
	m := corev1.ConfigMap{TypeMeta: metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: mapName}, Data: data}
	_, env := kubetest.StartFake(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Query().Get("watch") != "":
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, mapName):
			_ = json.NewEncoder(w).Encode(m)
		default:
			_ = json.NewEncoder(w).Encode(corev1.ConfigMapList{TypeMeta: metav1.TypeMeta{Kind: "ConfigMapList", APIVersion: "v1"}, Items: []corev1.ConfigMap{m}})
		}
	}))
	return env
}

// first returns the first configuration that Follow yields.
func first(t *testing.T, c *ConfigMap, before ...source.Source) config.Config {
	t.Helper()
	for cfg, err := range c.Follow(t.Context(), before...) {
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	t.Fatal("Follow has ended")
	return nil
}

const (
	snowflake = "1234567890123456789"  // does not fit in a float64
	unsigned  = "18446744073709551615" // fits in 64 bits without a sign
	long      = "123456789012345678901234567890"
)

func TestIntegersKeepAllDigits(t *testing.T) {
	data := map[string]string{
		"a.json":    fmt.Sprintf(`{"shop": {"id": %s, "max": %s, "long": %s, "ids": [%s]}, "one": 1.0, "thousand": 1e3, "third": 0.25}`, snowflake, unsigned, long, snowflake),
		"a.yaml":    fmt.Sprintf("shop:\n  id: %s\n  max: %s\n  ids: [-%s]\nmask: 0xFFFFFFFFFFFFFFFF\n", snowflake, unsigned, snowflake),
		"long.yaml": "shop: {id: " + long + "}", "huge.json": `{"f": 1e400}`,
	}
	begin := time.Now()
	env := fakeConfigMap(t, data)
	yamlFile := formatted{"yaml", "id: " + snowflake}
	followed := first(t, newConfigMap(env, "", mapName), newConfigMap(env, "", mapName), fixedSource{data: `{"earlier": ` + snowflake + `}`}, yamlFile)
	m := newConfigMap(env, "", mapName)
	defer m.Close() // go-micro's configuration watches for a second after its own Close
	read, err := config.NewConfig(config.WithSource(m))
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	for name, cfg := range map[string]config.Config{"Follow": followed, "go-micro's own configuration": read} {
		for _, key := range []string{"a.json", "a.yaml"} {
			if got := fmt.Sprint(cfg.Get(key, "shop", "id").Int(0)); got != snowflake {
				t.Errorf("%s: the integer in %s is %s, want %s", name, key, got, snowflake)
			}
			if got := string(cfg.Get(key, "shop", "max").Bytes()); got != unsigned {
				t.Errorf("%s: the integer in %s is %s, want %s", name, key, got, unsigned)
			}
			if got := string(cfg.Get(key, "shop", "ids").Bytes()); !strings.Contains(got, snowflake) {
				t.Errorf("%s: the list in %s is %s, want %s in it", name, key, got, snowflake)
			}
		}
		if got := string(cfg.Get("a.json", "shop", "long").Bytes()); got != long {
			t.Errorf("%s: the integer of more than 64 bits is %s, want %s", name, got, long)
		}
		if got := string(cfg.Get("a.yaml", "mask").Bytes()); got != unsigned {
			t.Errorf("%s: 0xFFFFFFFFFFFFFFFF is %s, want %s", name, got, unsigned)
		}
		if one, thousand, third := cfg.Get("a.json", "one").Int(0), cfg.Get("a.json", "thousand").Int(0), cfg.Get("a.json", "third").Float64(0); one != 1 || thousand != 1000 || third != 0.25 {
			t.Errorf("%s: 1.0, 1e3 and 0.25 are %d, %d and %v", name, one, thousand, third)
		}
		for _, key := range []string{"long.yaml", "huge.json"} { // as every value that cannot be parsed
			if got := cfg.Get(key).String("a tree"); got != data[key] {
				t.Errorf("%s: %s is %q, want its text", name, key, got)
			}
		}
	}
	var scanned struct {
		Shop struct {
			ID  int64
			Max uint64
		}
	}
	if err := followed.Get("a.json").Scan(&scanned); err != nil || fmt.Sprint(scanned.Shop.ID, scanned.Shop.Max) != snowflake+" "+unsigned {
		t.Errorf("scanned %v, %v", scanned, err)
	}
	for _, key := range []string{"earlier", "id"} {
		if got := fmt.Sprint(followed.Get(key).Int(0)); got != snowflake {
			t.Errorf("the integer %q of another source is %s, want %s", key, got, snowflake)
		}
	}
	if n := len(kubetest.LogLines(t, begin, `"long.yaml"`, "more than 64 bits; write it in quotes")); n != 3 { // three ConfigMaps have read it
		t.Errorf("%d lines of the log name the key of the integer that YAML cannot hold, want 3", n)
	}
	if n := len(kubetest.LogLines(t, begin, `"a.json"`)) + len(kubetest.LogLines(t, begin, `"a.yaml"`)); n != 0 {
		t.Errorf("%d lines of the log about good values", n)
	}
}

// formatted is a source in another format than JSON.
type formatted struct{ format, data string }

func (f formatted) Read() (*source.ChangeSet, error) {
	return &source.ChangeSet{Data: []byte(f.data), Format: f.format, Source: f.format}, nil
}
func (formatted) Write(*source.ChangeSet) error  { return nil }
func (formatted) Watch() (source.Watcher, error) { return nil, source.ErrWatcherStopped }
func (f formatted) String() string               { return f.format }

func TestFormatsOfEarlierSources(t *testing.T) {
	env := fakeConfigMap(t, map[string]string{"name": "map"})
	for _, f := range []formatted{
		{"json", "\ufeff" + `{"db": {"port": 1}, "name": "x"}`}, {"yaml", "db: {port: 1}\nname: x"}, {"yml", "db: {port: 1}\nname: x"},
		{"toml", "name = \"x\"\n[db]\nport = 1"}, {"unknown", `{"db": {"port": 1}}`}, {"json", ""},
	} {
		cfg := first(t, newConfigMap(env, "", mapName), f)
		if got := cfg.Get("db", "port").Int(0); cfg.Get("name").String("") != "map" || got != 1 && f.data != "" {
			t.Errorf("with %s before the ConfigMap the configuration is %s", f.format, cfg.Bytes())
		}
	}
	for _, f := range []formatted{{"json", "[1]"}, {"yaml", "text"}, {"toml", "="}} {
		for cfg, err := range newConfigMap(env, "", mapName).Follow(t.Context(), f) {
			if err == nil || !strings.Contains(err.Error(), "merging") {
				t.Errorf("%s %q: %v, %v", f.format, f.data, cfg, err)
			}
		}
	}
}

// Notepad and PowerShell write a byte order mark, and kubectl create configmap --from-file keeps it.
func TestByteOrderMarkIsNoPartOfTree(t *testing.T) {
	env := fakeConfigMap(t, map[string]string{"a.json": "\ufeff{\"db\": {\"host\": \"db-1\"}}", "a.yaml": "\ufeffdb:\n  host: db-1\n", "two.json": `{"a": 1} {"b": 2}`})
	cfg := first(t, newConfigMap(env, "", mapName))
	for _, key := range []string{"a.json", "a.yaml"} {
		if got := cfg.Get(key, "db", "host").String(""); got != "db-1" {
			t.Errorf("%s is read as %s", key, cfg.Get(key).Bytes())
		}
	}
	if got := cfg.Get("two.json").String("a tree"); got != `{"a": 1} {"b": 2}` {
		t.Errorf("two documents are read as %q, want the text", got)
	}
}

func TestLaterSourceWins(t *testing.T) {
	env := fakeConfigMap(t, map[string]string{
		"text.json": `{"a": 1}`, "tree.json": "text", "both.json": `{"b": {"d": 2}}`, "list.json": `[3]`, "null.json": "null", "empty": "", "false.json": "false",
	})
	cfg := first(t, newConfigMap(env, "", mapName), fixedSource{data: `{"text.json": "x", "tree.json": {"a": {"b": 1}}, "both.json": {"a": 1, "b": {"c": 1, "d": 1}},
		"list.json": {"a": 1}, "null.json": "x", "empty": "x", "false.json": true, "only": "x"}`})
	expectJSON(t, cfg, `{"text.json": {"a": 1}, "tree.json": "text", "both.json": {"a": 1, "b": {"c": 1, "d": 2}}, "list.json": [3], "null.json": null, "empty": "", "false.json": false, "only": "x"}`)
}

// A sidecar that starts resets or refuses connections, or answers 503, for some seconds.
func TestFollowWaitsForSidecar(t *testing.T) {
	env := fakeConfigMap(t, map[string]string{"n": "1"})
	server := net.JoinHostPort(env.Getenv("KUBERNETES_SERVICE_HOST"), env.Getenv("KUBERNETES_SERVICE_PORT"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sidecar := kubetest.StartRelay(t, l, func() (net.Conn, error) { return net.Dial("tcp", server) })
	sidecar.Cut()
	begin := time.Now()
	sources := []source.Source{newConfigMap(sidecar.Through(env), "", mapName)} // the sources before it are read through the sidecar, too
	loop := startLoop(t, newConfigMap(sidecar.Through(env), "", mapName), sources...)
	time.Sleep(time.Second)
	loop.expectNothing("while the sidecar starts")
	sidecar.Restore()
	cfg, _ := loop.next(20*time.Second, "after the start of the sidecar")
	expectJSON(t, cfg, `{"n": "1"}`)
	for _, text := range []string{"retrying", "works"} {
		if lines := kubetest.LogLines(t, begin, mapName, "ading ", text); len(lines) != 1 {
			t.Errorf("the log has %d lines with %q, want 1: %q", len(lines), text, lines)
		}
	}
}

// While it waits for the API server Follow ends with its context, and with Close.
func TestFollowEndsWhileItWaits(t *testing.T) {
	_, env := kubetest.StartFake(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "30")
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	for _, name := range []string{"context", "Close"} {
		c := newConfigMap(env, "", mapName)
		l := startLoop(t, c)
		l.expectNothing("while the API server is overloaded")
		if name == "context" {
			l.stop()
		} else {
			_ = c.Close()
		}
		l.expectEnd(10*time.Second, name)
	}
}
