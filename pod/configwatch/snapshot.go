package configwatch

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"

	"github.com/micro/go-micro/v2/config"
	"github.com/micro/go-micro/v2/config/reader"
	jsonreader "github.com/micro/go-micro/v2/config/reader/json"
	"github.com/micro/go-micro/v2/config/source"
	"github.com/micro/go-micro/v2/logger"
)

// snapshot is a configuration that never changes when its sources change. It replaces
// go-micro's own configuration, which has a data race (its loader's update reads what its
// watcher's Next writes), loses an update when two arrive at once, watches the other
// sources too, and keeps goroutines for a second after Close.
type snapshot struct {
	reader.Values
	reported *misreadings
}

var _ config.Config = snapshot{}

var errSnapshot = errors.New("using a snapshot of the configuration: it cannot load or watch sources; give all sources to Follow")

// newSnapshot merges change sets: of two values with the same key the later one wins. go-micro's own merge
// rounds integers beyond 2^53, and keeps an earlier text where a later source has a tree.
func newSnapshot(reported *misreadings, sets ...*source.ChangeSet) (config.Config, error) {
	merged := map[string]any{}
	for _, set := range sets {
		if set == nil {
			continue
		}
		tree, err := parseSource(set)
		if err != nil {
			return nil, err
		}
		merge(merged, tree)
	}
	text, err := json.Marshal(merged)
	if err != nil {
		return nil, err
	}
	values, err := jsonreader.NewReader().Values(&source.ChangeSet{Data: text, Format: "json"})
	if err != nil {
		return nil, err
	}
	if values.Map() == nil { // go-micro returns an empty configuration instead of an error
		return nil, errors.New("an environment variable that replaces its ${NAME} breaks the JSON; remove the quotes and backslashes from the variable")
	}
	return snapshot{values, reported}, nil
}

func (snapshot) Options() config.Options                 { return config.Options{} }
func (snapshot) Close() error                            { return nil }
func (snapshot) Sync() error                             { return nil }
func (snapshot) Init(...config.Option) error             { return errSnapshot }
func (snapshot) Load(...source.Source) error             { return errSnapshot }
func (snapshot) Watch(...string) (config.Watcher, error) { return nil, errSnapshot }

// Get returns a value that logs once when it is read as text or as a map of texts and is something else. go-micro
// returns the default then, without a word.
func (s snapshot) Get(path ...string) reader.Value {
	return value{s.Values.Get(path...), strings.Join(path, "."), s.reported}
}

// misreadings are the keys that the log has reported.
type misreadings struct{ keys sync.Map }

type value struct {
	reader.Value
	key      string
	reported *misreadings
}

// text returns the text that the value holds.
func (v value) text() (string, bool) {
	const other = "\x00"
	if s := v.Value.String(""); s != "" {
		return s, true
	}
	return "", v.Value.String(other) != other
}

func (v value) String(def string) string {
	s, isText := v.text()
	if isText {
		return s
	}
	switch b := v.Bytes(); {
	case len(b) == 0 || string(b) == "null": // there is no such key
	case b[0] == '{' || b[0] == '[':
		v.report("reading key %q as text returns the default: it is a tree; read its keys", v.key)
	default: // the log must not contain the value, which may be a Secret's
		v.report("reading key %q as text returns the default: it is a boolean or a number, as YAML 1.1 reads NO, on and 0644; if it is meant as text, write it in quotes", v.key)
	}
	return def
}

func (v value) StringMap(def map[string]string) map[string]string {
	if s, isText := v.text(); isText && s != "" {
		v.report("reading key %q as a map returns the default: it is a text, which this package does not split at = as the configmap plugin does; read it with String, or write YAML under a key that ends in .yaml", v.key)
	}
	return v.Value.StringMap(def)
}

func (v value) report(format string, args ...any) {
	if _, again := v.reported.keys.LoadOrStore(v.key, nil); !again {
		logger.Warnf("Config [configmap] "+format, args...)
	}
}
