package adopt

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// TestMain makes the test binary a service if the variable SERVICE is set. The service says what it is made of, and ends.
func TestMain(m *testing.M) {
	if os.Getenv("SERVICE") == "" {
		os.Exit(m.Run())
	}
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	client := pod.NewClient(registry, grpcc.NewClient())
	own := fmt.Sprintf("%T", client.Options().Selector)
	service := micro.NewService(micro.Name("greeter"), micro.Server(grpcs.NewServer()), micro.Client(client), micro.Registry(registry), pod.Lifecycle(registry))
	service.Init()
	used := service.Client().Options()
	fmt.Printf("registry of pod: %t, client: %s, selector of pod: %t\n", service.Options().Registry == registry, service.Client(), fmt.Sprintf("%T", used.Selector) == own)
	fmt.Println(service.Run()) // fails: this is no pod
}

// TestVariables shows what docs/manifests.md says of the variables and flags of go-micro.
func TestVariables(t *testing.T) {
	const unchanged = "registry of pod: true, client: grpc, selector of pod: true\n"
	for setting, want := range map[string]string{
		"":                                unchanged,
		"MICRO_REGISTRY=kubernetes":       unchanged,
		"--registry=kubernetes":           unchanged,
		"MICRO_BROKER=nats":               unchanged,
		"MICRO_CLIENT=grpc":               unchanged,
		"MICRO_SERVER=grpc":               unchanged,
		"MICRO_REGISTER_TTL=60":           unchanged,
		"MICRO_REGISTRY=memory":           "registry of pod: false, client: grpc, selector of pod: false\n",
		"--registry=memory":               "registry of pod: false",
		"MICRO_SELECTOR=static":           "registry of pod: true, client: grpc, selector of pod: false\n",
		"MICRO_SELECTOR=dns":              "selector of pod: false\n",
		"MICRO_SELECTOR=router":           "selector of pod: false\n",
		"MICRO_SELECTOR=cache":            "Selector cache not found\n",
		"MICRO_CLIENT=mucp":               "client: mucp",
		"MICRO_SERVER=mucp":               "the service runs another server than that of micro.NewService",
		"MICRO_PLUGIN=/kafka.so":          "level=fatal plugin", // ": not implemented"; with cgo, as with the race detector, ".Open: realpath failed"
		"MICRO_REGISTER_TTL=60s":          `could not parse "60s"`,
		"MICRO_REGISTER_INTERVAL=30s":     `could not parse "30s"`,
		"MICRO_CLIENT_RETRIES=three":      `could not parse "three"`,
		"MICRO_CLIENT_POOL_SIZE=1.5":      `could not parse "1.5"`,
		"MICRO_CLIENT_REQUEST_TIMEOUT=30": "failed to parse client_request_timeout: 30",
		"MICRO_CLIENT_POOL_TTL=60":        "failed to parse client_pool_ttl: 60",
	} {
		c := exec.CommandContext(t.Context(), os.Args[0])
		c.Env = []string{"SERVICE=1", "MICRO_SERVER_ADDRESS=127.0.0.1:0", "HOME=" + t.TempDir()}
		if strings.HasPrefix(setting, "--") {
			c.Args = append(c.Args, setting)
		} else {
			c.Env = append(c.Env, setting)
		}
		if strings.HasPrefix(want, "registry of pod: false") {
			c.Env = append(c.Env, "MICRO_SERVER_ADDRESS=none") // a service that does not register on its pod runs until it is stopped
		}
		out, _ := c.CombinedOutput() // every service fails: this is no pod
		if !strings.Contains(string(out), want) {
			t.Errorf("with %q the service prints\n%s\nwant %q", setting, out, want)
		}
	}
}
