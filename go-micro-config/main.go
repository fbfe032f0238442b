// Command go-micro-config prints its configuration once, as one map, and ends: the environment,
// nested at each underscore, merged with the ConfigMap go-micro-config of namespace go-micro.
//
//	-follow   stay, and print the map again after each change of the ConfigMap, until SIGTERM or
//	          SIGINT; values are then as they stand there, and files that they hold are trees
//
// It listens on no port. It runs in a pod, whose service account k8s/configmap-rbac.yaml allows to
// read and follow the ConfigMap, and needs what Kubernetes gives every pod: KUBERNETES_SERVICE_HOST
// and KUBERNETES_SERVICE_PORT. When it cannot load, or the API server does not answer for 5 seconds,
// it says why on stderr and exits 1; asked to end, 0; not understanding its arguments, 2.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2/config"
	"github.com/micro/go-micro/v2/config/source/env"
	"github.com/micro/go-plugins/config/source/configmap/v2"
)

var (
	DefaultNamespace  = "go-micro"
	DefaultConfigName = "go-micro-config"
)

func main() {
	follow := flag.Bool("follow", false, "stay, and print the map again after each change of the ConfigMap")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "reading arguments: unexpected %q; -h lists what there is\n", flag.Arg(0))
		os.Exit(2)
	}
	run := printOnce
	if *follow {
		run = printChanges
	}
	if err := run(pod.NewConfigMap(DefaultNamespace, DefaultConfigName)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func printOnce(configMap *pod.ConfigMap) error {
	if _, err := configMap.Read(); err != nil { // a preflight: the plugin neither says what to do nor has a time limit
		return err
	}
	cfg, err := config.NewConfig()
	if err != nil {
		return fmt.Errorf("creating the configuration: %w", err)
	}
	err = load(cfg, env.NewSource(), configmap.NewSource(
		configmap.WithName(DefaultConfigName),
		configmap.WithNamespace(DefaultNamespace)))
	if err != nil {
		return fmt.Errorf("merging environment and ConfigMap %q: %w", DefaultNamespace+"/"+DefaultConfigName, err)
	}
	fmt.Println(cfg.Map())
	return nil
}
