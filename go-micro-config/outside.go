package main

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/jiangjiancc/go_micro_k8s/pod/configwatch"
	"github.com/micro/go-micro/v2/config/source"
	"k8s.io/client-go/rest"
)

// outside is the plugin's source. Outside of a pod, where the plugin finds no API server, it reads the ConfigMap through the
// kubeconfig instead, and gives the values as the plugin does. configmap.WithConfigPath would not do: it takes one file, and
// its client-go of 2020 knows neither proxy-url nor the credential plugins of today.
type outside struct{ source.Source }

func (o outside) Read() (*source.ChangeSet, error) {
	set, err := o.Source.Read()
	if !errors.Is(err, rest.ErrNotInCluster) {
		return set, err
	}
	if set, err = configwatch.New(DefaultNamespace, DefaultConfigName).Read(); err != nil {
		return nil, err
	}
	var values map[string]any // strings, and trees of the keys that end in .json, .yaml or .yml, which stay as they are
	if err = json.Unmarshal(set.Data, &values); err != nil {
		return nil, err
	}
	for key, value := range values {
		if text, ok := value.(string); ok {
			lines := map[string]string{}
			for line := range strings.SplitSeq(text, "\n") {
				name, value, _ := strings.Cut(line, "=")
				lines[name] = value
			}
			values[key] = lines
		}
	}
	set.Data, err = json.Marshal(values)
	set.Checksum = set.Sum()
	return set, err
}
