// Command go-micro-config prints its configuration once, as one map, and ends: the environment,
// nested at each underscore, merged with the ConfigMap go-micro-config of namespace go-micro.
//
// It listens on no port. It runs in a pod, whose service account k8s/configmap-rbac.yaml allows to
// read the ConfigMap, and needs what Kubernetes gives every pod: KUBERNETES_SERVICE_HOST and
// KUBERNETES_SERVICE_PORT. When it cannot load it says why on stderr and exits 1.
package main

import (
	"fmt"
	"os"

	"github.com/micro/go-micro/v2/config"
	"github.com/micro/go-micro/v2/config/source/env"
	"github.com/micro/go-plugins/config/source/configmap/v2"
)

var (
	DefaultNamespace  = "go-micro"
	DefaultConfigName = "go-micro-config"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	cfg, err := config.NewConfig()
	if err != nil {
		return fmt.Errorf("creating the configuration: %w", err)
	}
	configMap := configmap.NewSource(
		configmap.WithName(DefaultConfigName),
		configmap.WithNamespace(DefaultNamespace))
	if _, err := configMap.Read(); err != nil { // a preflight: Load keeps only the text of an error
		return fmt.Errorf("loading ConfigMap %q: %w; %s", DefaultNamespace+"/"+DefaultConfigName, err, remedy(err))
	}
	if err := cfg.Load(env.NewSource(), configMap); err != nil {
		return fmt.Errorf("merging environment and ConfigMap %q: %w", DefaultNamespace+"/"+DefaultConfigName, err)
	}
	fmt.Println(cfg.Map())
	return nil
}
