// Command probe runs inside the cluster, or with a kubeconfig outside of it, calls services and prints the results as JSON.
//
//	probe services NAME...   ListServices, and GetService of each name, through go-micro's registry plugin
//	probe connect ADDRESS... the errors of TCP connections to the addresses, "" for a connection
//	probe get URL TIMES      the bodies of TIMES responses, each over a new connection
//	probe call [-upstream] [-retries N] [-name NAME] [-clients N] [-independent] [-ignore-zones] [-samples] CALLERS PAUSE
//	                         CALLERS goroutines call go-micro-srv until the pod ends and
//	                         pause after each call; one line per second, and one on stderr for each ejection; with
//	                         -samples also lines with metrics, as test/alerts reads them; with -independent each caller
//	                         begins a call after a random pause, and does not wait for the answers
//	probe fetch [-new-connections] URL CALLERS PAUSE
//	                         the same with HTTP requests to a URL
//	probe greeter            serves as go-micro-srv, but takes 2 s to greet "slow", and is slow or failing
//	                         after a signal
//	probe orders VERSION     serves test/orders
//	probe order [-client pod|go-micro|ADDRESS] [-retries N] [-version VERSION] CALLERS PAUSE
//	                         calls test/orders as probe call does: with pod/, with go-micro's client and plugin, or with
//	                         grpc-go at an address; with a version only its instances, and only what it alone has
//	probe page               serves as go-micro-web, with a /download that takes 5 s
//	probe attack [URL]       attacks the registry, and a web service at the URL, until the pod ends; one line
//	                         per second
//	probe shop NAME [CONFIGMAP...]
//	                         serves as one of the services of preflight/testdata/mended, and prints the ConfigMaps
//	probe capture TIME PORT TEXT   reads the packets of TCP port PORT on all interfaces, and counts those that contain TEXT; on the
//	                         node, as root
//	probe never              runs and never becomes ready
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/orders"
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
	case len(args) > 1 && args[0] == "connect":
		return connect(args[1:])
	case len(args) == 3 && args[0] == "get":
		return get(args[1], args[2])
	case len(args) > 0 && args[0] == "call":
		return call(args[1:])
	case len(args) > 0 && args[0] == "fetch":
		return fetch(args[1:])
	case len(args) == 1 && args[0] == "greeter":
		return greeter()
	case len(args) == 2 && args[0] == "orders":
		return orders.Serve(args[1])
	case len(args) > 0 && args[0] == "order":
		return order(args[1:])
	case len(args) == 1 && args[0] == "page":
		return page()
	case len(args) > 0 && args[0] == "attack":
		return attack(args[1:])
	case len(args) > 1 && args[0] == "shop":
		return shop(args[1], args[2:])
	case len(args) == 4 && args[0] == "capture":
		return capture(args[1], args[2], args[3])
	case len(args) == 1 && args[0] == "never":
		select {}
	}
	return fmt.Errorf("running with arguments %q: unknown command; test/e2e/probe/main.go lists the commands", args)
}

func services(names []string) error {
	r := kubernetes.NewRegistry()
	contents := struct {
		List []*registry.Service
		Get  map[string][]*registry.Service
	}{Get: map[string][]*registry.Service{}}
	var err error
	if contents.List, err = r.ListServices(); err != nil {
		return fmt.Errorf("listing services: %w", err)
	}
	for _, n := range names {
		if contents.Get[n], err = r.GetService(n); err != nil {
			return fmt.Errorf("getting service %q: %w", n, err)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(contents)
}

func connect(addresses []string) error {
	problems := make([]string, len(addresses))
	var all sync.WaitGroup
	for i, address := range addresses {
		all.Go(func() {
			conn, err := net.DialTimeout("tcp", address, 2*time.Second)
			if err != nil {
				problems[i] = err.Error()
				return
			}
			conn.Close()
		})
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(problems)
}

func get(url, times string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var bodies []string
	for range n {
		resp, err := client.Get(url)
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
