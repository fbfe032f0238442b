package configwatch_test

import (
	"context"
	"fmt"
	"os/signal"
	"syscall"

	"github.com/jiangjiancc/go_micro_k8s/pod/configwatch"
	"github.com/micro/go-micro/v2/config/source/env"
)

// The body of the loop runs with the current configuration, and again after each change
// of the ConfigMap, until SIGTERM.
func ExampleConfigMap_Follow() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	for cfg, err := range configwatch.New("", "go-micro-config").Follow(ctx, env.NewSource()) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(cfg.Get("DB_HOST").String("localhost"), cfg.Get("app.yaml", "db", "port").Int(5432))
	}
}

// A base, a Secret and an override are followed together. If two hold the same key, the later one wins.
func ExampleNewSecret() {
	base, password := configwatch.New("", "base"), configwatch.NewSecret("", "database")
	for cfg, err := range configwatch.New("", "override").Follow(context.Background(), base, password) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(cfg.Get("DB_HOST").String("localhost"), len(cfg.Get("password").String("")))
	}
}
