// Command go-micro-config prints its configuration once, as one map, and exits. The configuration is
// the environment, nested at each underscore, merged with the ConfigMap go-micro-config of namespace
// go-micro.
//
//	-follow          keep running, and print the map again after each change of the ConfigMap, until
//	                 SIGTERM or SIGINT. Values are then plain strings, and JSON and YAML files in the
//	                 ConfigMap become trees.
//	-override NAME   as -follow, with a second ConfigMap, whose values replace those of the first;
//	                 a change of either prints the map again.
//
// The command listens on no port. It runs in a pod whose service account may read and watch the
// ConfigMap (k8s/configmap-rbac.yaml), and needs the variables KUBERNETES_SERVICE_HOST and
// KUBERNETES_SERVICE_PORT that every pod has. Outside of the cluster it needs a kubeconfig
// (docs/laptop.md). If it cannot load the configuration, or the API server does not answer for
// 5 seconds, it prints the reason on stderr and exits with 1; with -follow it waits for an API server
// that cannot be reached. It exits with 0 after a signal and with 2 on unknown arguments.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/jiangjiancc/go_micro_k8s/pod/configwatch"
	"github.com/micro/go-micro/v2/config"
	"github.com/micro/go-micro/v2/config/source/env"
	"github.com/micro/go-plugins/config/source/configmap/v2"
)

var (
	DefaultNamespace  = "go-micro"
	DefaultConfigName = "go-micro-config"
)

func main() {
	follow := flag.Bool("follow", false, "keep running, and print the map again after each change of the ConfigMap")
	override := flag.String("override", "", "as -follow, with the ConfigMap `NAME`, whose values replace those of "+DefaultConfigName)
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "reading arguments: unexpected %q; -h lists the flags\n", flag.Arg(0))
		os.Exit(2)
	}
	configMap := configwatch.New(DefaultNamespace, DefaultConfigName)
	run := func() error { return printOnce(configMap) }
	switch {
	case *override != "":
		run = func() error { return printChanges(configwatch.New(DefaultNamespace, *override), configMap) }
	case *follow:
		run = func() error { return printChanges(configMap) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func printOnce(configMap *configwatch.ConfigMap) error {
	if _, err := configMap.Read(); err != nil { // first, because the plugin's errors name no remedy and its requests have no time limit
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
