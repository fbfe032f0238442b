package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/jiangjiancc/go_micro_k8s/pod/configwatch"
	"github.com/micro/go-micro/v2/config/source"
	"github.com/micro/go-micro/v2/config/source/env"
)

// printChanges prints the environment, replaced by the values of base, replaced by those of configMap.
func printChanges(configMap *configwatch.ConfigMap, base ...source.Source) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	for cfg, err := range configMap.Follow(ctx, append([]source.Source{env.NewSource()}, base...)...) {
		if err != nil {
			return err
		}
		fmt.Println(cfg.Map())
	}
	return nil
}
