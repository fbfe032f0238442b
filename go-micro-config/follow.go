package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/jiangjiancc/go_micro_k8s/pod/configwatch"
	"github.com/micro/go-micro/v2/config/source/env"
)

func printChanges(configMap *configwatch.ConfigMap) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	for cfg, err := range configMap.Follow(ctx, env.NewSource()) {
		if err != nil {
			return err
		}
		fmt.Println(cfg.Map())
	}
	return nil
}
