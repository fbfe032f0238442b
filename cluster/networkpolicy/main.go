// Networkpolicy enforces the NetworkPolicies of a cluster with IPv4 for the pods of one node.
//
//	networkpolicy -kubeconfig FILE -node NAME -service-cidr CIDR -health ADDRESS
//
// It runs the controller of network policies of kube-router (https://www.kube-router.io), and nothing else of kube-router: neither its
// routing nor its proxy for Services, with which the program would have five times as many packages. The controller writes rules of
// iptables and sets of addresses with the programs iptables and ipset, which it expects in PATH.
//
// The path /healthz of the address in -health answers 200 as soon as the node enforces the policies.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"github.com/cloudnativelabs/kube-router/v2/pkg/utils"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "networkpolicy:", err)
		os.Exit(1)
	}
}

func run() error {
	kubeconfig := flag.String("kubeconfig", "", "file with the address and the credentials of the API server")
	health := flag.String("health", "", "address of the health check")
	config := options.NewKubeRouterConfig()
	flag.StringVar(&config.HostnameOverride, "node", "", "name of the Kubernetes node")
	services := flag.String("service-cidr", "", "addresses of Services")
	flag.Parse()
	config.ClusterIPCIDRs, config.EnableIPv4 = []string{*services}, true
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	if err := checkKernel(ctx); err != nil {
		return err
	}
	access, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(access)
	if err != nil {
		return err
	}
	if err := awaitNode(ctx, client, config.HostnameOverride); err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods, namespaces := factory.Core().V1().Pods().Informer(), factory.Core().V1().Namespaces().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	iptables, ipsets, err := netpol.NewIPTablesHandlers(config)
	if err != nil {
		return err
	}
	controller, err := netpol.NewNetworkPolicyController(client, config, pods, policies, namespaces, &sync.Mutex{}, iptables, ipsets)
	if err != nil {
		return err
	}
	for informer, handler := range map[cache.SharedInformer]cache.ResourceEventHandler{
		pods: controller.PodEventHandler, namespaces: controller.NamespaceEventHandler, policies: controller.NetworkPolicyEventHandler,
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())

	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !enforced(iptables[corev1.IPv4Protocol]) {
			http.Error(w, "the rules are not complete", http.StatusServiceUnavailable)
		}
	})
	failed := make(chan error, 1)
	go func() {
		failed <- (&http.Server{Addr: *health, ReadHeaderTimeout: time.Second}).ListenAndServe()
		stop()
	}()
	heartbeats := make(chan *healthcheck.ControllerHeartbeat)
	go func() {
		for range heartbeats { // the health check of kube-router, which is not used here, would read them
		}
	}()
	var ended sync.WaitGroup
	ended.Add(1)
	controller.Run(heartbeats, ctx.Done(), &ended)
	select {
	case err := <-failed:
		return fmt.Errorf("serving the health check: %w", err)
	default:
		return nil
	}
}

// checkKernel tries what the controller writes only for pods with policies. The controller itself would print a line in its log, and let
// all packets pass.
func checkKernel(ctx context.Context) error {
	name := fmt.Sprint("K8S-MICRO-", os.Getpid())
	rule := func(words ...string) []string {
		return append([]string{"iptables", "-w", "-A", name, "-m", "set", "--match-set", name, "src"}, words...)
	}
	var first error
	for _, command := range [][]string{
		{"ipset", "create", name, "hash:net"}, {"iptables", "-w", "-N", name},
		rule("-m", "limit", "--limit", "10/minute", "-j", "NFLOG"), rule("-m", "mark", "!", "--mark", "0x10000/0x10000", "-j", "REJECT"),
		{"iptables", "-w", "-F", name}, {"iptables", "-w", "-X", name}, {"ipset", "destroy", name},
	} {
		if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil && first == nil {
			first = fmt.Errorf("checking whether this kernel can enforce network policies: %s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return first
}

// awaitNode waits until kubelet has registered the node with its address, which the controller reads once.
func awaitNode(ctx context.Context, client kubernetes.Interface, name string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err == nil && slices.ContainsFunc(node.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Type == corev1.NodeInternalIP }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the address of node %q: %w", name, errors.Join(err, ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// enforced reports whether the controller has written its rules at least once: this one is the last of each chain.
func enforced(iptables utils.IPTablesHandler) bool {
	rules, err := iptables.List("filter", "KUBE-ROUTER-FORWARD")
	return err == nil && slices.ContainsFunc(rules, func(r string) bool { return strings.Contains(r, "0x20000/0x20000 -j ACCEPT") })
}
