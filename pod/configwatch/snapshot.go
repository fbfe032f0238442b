package configwatch

import (
	"encoding/json"
	"errors"

	"github.com/micro/go-micro/v2/config"
	"github.com/micro/go-micro/v2/config/reader"
	jsonreader "github.com/micro/go-micro/v2/config/reader/json"
	"github.com/micro/go-micro/v2/config/source"
)

// snapshot is a configuration that never changes when its sources change. It replaces
// go-micro's own configuration, which has a data race (its loader's update reads what its
// watcher's Next writes), loses an update when two arrive at once, watches the other
// sources too, and keeps goroutines for a second after Close.
type snapshot struct{ reader.Values }

var _ config.Config = snapshot{}

var errSnapshot = errors.New("using a snapshot of the configuration: it cannot load or watch sources; give all sources to Follow")

// newSnapshot merges change sets: of two values with the same key the later one wins. go-micro's own merge
// rounds integers beyond 2^53, and keeps an earlier text where a later source has a tree.
func newSnapshot(sets ...*source.ChangeSet) (config.Config, error) {
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
	return snapshot{values}, nil
}

func (snapshot) Options() config.Options                 { return config.Options{} }
func (snapshot) Close() error                            { return nil }
func (snapshot) Sync() error                             { return nil }
func (snapshot) Init(...config.Option) error             { return errSnapshot }
func (snapshot) Load(...source.Source) error             { return errSnapshot }
func (snapshot) Watch(...string) (config.Watcher, error) { return nil, errSnapshot }
