// Probe looks at the cluster from inside a pod and prints what it sees as JSON.
//
//	probe services NAME...   upstream's registry plugin: ListServices, and GetService of each name
//	probe get URL TIMES      the answers to TIMES requests, each on a connection of its own
//	probe call [-upstream] [-retries N] [-name NAME] CALLERS PAUSE
//	                         CALLERS that call go-micro-srv for ever, each PAUSE after its
//	                         last answer; one line a second
//	probe fetch [-fresh] URL CALLERS PAUSE
//	                         the same with an URL
//	probe greeter            go-micro-srv, but it takes 2 s to greet "slow"
//	probe page               go-micro-web, but /download takes 5 s
//	probe never              runs, and never is ready
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) > 1 && args[0] == "services":
		return services(args[1:])
	case len(args) == 3 && args[0] == "get":
		return get(args[1], args[2])
	case len(args) > 0 && args[0] == "call":
		return call(args[1:])
	case len(args) > 0 && args[0] == "fetch":
		return fetch(args[1:])
	case len(args) == 1 && args[0] == "greeter":
		return greeter()
	case len(args) == 1 && args[0] == "page":
		return page()
	case len(args) == 1 && args[0] == "never":
		select {}
	}
	return fmt.Errorf("running with %q: want what the package comment lists", args)
}

func services(names []string) error {
	r := kubernetes.NewRegistry()
	seen := struct {
		List []*registry.Service
		Get  map[string][]*registry.Service
	}{Get: map[string][]*registry.Service{}}
	var err error
	if seen.List, err = r.ListServices(); err != nil {
		return fmt.Errorf("listing services: %w", err)
	}
	for _, n := range names {
		if seen.Get[n], err = r.GetService(n); err != nil {
			return fmt.Errorf("getting service %q: %w", n, err)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(seen)
}

func get(url, times string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var bodies []string
	for range n {
		resp, err := c.Get(url)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("getting %q: %s, %v", url, resp.Status, err)
		}
		bodies = append(bodies, string(body))
	}
	return json.NewEncoder(os.Stdout).Encode(bodies)
}
