// Command live reads samples on standard input and prints the alerts of the component at a path that fire on them, with all durations
// divided, as JSON. The end-to-end tests run it: go run -C test/alerts ./live ../../k8s/components/monitoring-operator 20
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/jiangjiancc/go_micro_k8s/test/alerts"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "replaying samples:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("the arguments are %q: want COMPONENT DIVISOR", args)
	}
	divisor, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	fired, err := alerts.Replay(context.Background(), args[0], divisor, os.Stdin)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(fired)
}
