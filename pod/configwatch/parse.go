package configwatch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/micro/go-micro/v2/config/reader"
	"github.com/micro/go-micro/v2/config/source"
	"sigs.k8s.io/yaml"
)

// byteOrderMark is what some editors write at the beginning of a file. RFC 8259 lets a parser of JSON ignore it.
var byteOrderMark = []byte("\ufeff")

// parse decodes a value in the format that the extension of its key names. A tree holds
// integers as json.Number, which has all digits, and other numbers as float64.
func parse(key, value string) (any, error) {
	switch path.Ext(key) {
	case ".json":
		return parseJSON([]byte(value))
	case ".yaml", ".yml":
		return parseYAML([]byte(value))
	}
	return value, nil
}

func parseJSON(text []byte) (tree any, err error) {
	text = bytes.TrimPrefix(text, byteOrderMark)
	var document json.RawMessage
	if err := json.Unmarshal(text, &document); err != nil { // a Decoder would ignore what follows the document
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		return nil, err
	}
	return mapNumbers(tree, number)
}

// longInteger finds an integer that does not fit in 64 bits.
var longInteger = regexp.MustCompile(`[0-9][0-9_]{19}`)

func parseYAML(text []byte) (tree any, err error) {
	if err := yaml.Unmarshal(text, &tree, func(d *json.Decoder) *json.Decoder { d.UseNumber(); return d }); err != nil {
		return nil, err
	}
	hasLongInteger := longInteger.Match(text)
	return mapNumbers(tree, func(n json.Number) (any, error) {
		_, notSigned := n.Int64()
		_, notUnsigned := strconv.ParseUint(n.String(), 10, 64)
		f, _ := n.Float64()
		if hasLongInteger && notSigned != nil && notUnsigned != nil && math.Abs(f) >= 1<<63 { // the YAML library has rounded it
			return nil, errors.New("it has an integer of more than 64 bits; write it in quotes")
		}
		return number(n)
	})
}

// number keeps the digits of an integer. Other numbers become float64, so that go-micro's
// Int accepts 1.0 and 1e3; an error reports one that is out of range.
func number(n json.Number) (any, error) {
	if !strings.ContainsAny(n.String(), ".eE") {
		return n, nil
	}
	return n.Float64()
}

// exactAsText returns an integer beyond 2^53 as a string. go-micro's own configuration
// reads numbers as float64, which cannot hold such integers. Its Get(...).Int accepts a string.
func exactAsText(n json.Number) (any, error) {
	const limit = 1 << 53
	if i, err := n.Int64(); err != nil || i < -limit || i > limit {
		return n.String(), nil
	}
	return n, nil
}

// mapNumbers replaces each number of a tree by the result of convert.
func mapNumbers(tree any, convert func(json.Number) (any, error)) (_ any, err error) {
	switch t := tree.(type) {
	case json.Number:
		return convert(t)
	case map[string]any:
		for k, v := range t {
			if t[k], err = mapNumbers(v, convert); err != nil {
				return nil, err
			}
		}
	case []any:
		for i, v := range t {
			if t[i], err = mapNumbers(v, convert); err != nil {
				return nil, err
			}
		}
	}
	return tree, nil
}

// parseSource decodes what a source of go-micro's configuration returned.
func parseSource(set *source.ChangeSet) (map[string]any, error) {
	if len(set.Data) == 0 {
		return nil, nil
	}
	var tree any
	var err error
	switch codec := reader.NewOptions().Encoding[set.Format]; {
	case set.Format == "yaml" || set.Format == "yml":
		tree, err = parseYAML(set.Data)
	case set.Format == "json" || codec == nil: // go-micro reads a format that it does not know as JSON
		tree, err = parseJSON(set.Data)
	default:
		var decoded map[string]any
		err = codec.Decode(set.Data, &decoded)
		return decoded, err
	}
	if err != nil {
		return nil, err
	}
	m, ok := tree.(map[string]any)
	if !ok && tree != nil {
		return nil, fmt.Errorf("the source %q holds a %T instead of keys and values", set.Source, tree)
	}
	return m, nil
}

// merge copies the values of from into the tree into. Two trees are merged; of two other values
// the later one, which is from's, wins.
func merge(into, from map[string]any) {
	for k, v := range from {
		earlier, isTree := into[k].(map[string]any)
		later, isTreeToo := v.(map[string]any)
		if isTree && isTreeToo {
			merge(earlier, later)
		} else {
			into[k] = v
		}
	}
}
