// Kube is etcd, the Kubernetes components, CoreDNS and kubectl in one binary.
//
// The components have 2,800 packages in common, so one binary takes minutes to
// build where eight would take an hour. The name of the program selects the
// component (a symlink named kubectl is kubectl), otherwise the first argument
// does: kube kube-apiserver --etcd-servers=...
//
// When the environment variable KUBE_EXIT_WITH_FD is N, the process exits at the
// end of file of file descriptor N. N is a pipe whose other end belongs to the
// process that started this one, so this process never outlives it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

// Each component sets global state, so a process must construct only the command
// that it runs.
var commands = map[string]func() *cobra.Command{
	"coredns":                 newCoreDNS,
	"etcd":                    newEtcd,
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-proxy":              proxy.NewProxyCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
}

func main() {
	name := filepath.Base(os.Args[0])
	if commands[name] == nil && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		name = os.Args[0]
	}
	command := commands[name]
	if command == nil {
		var names []string
		for n := range commands {
			names = append(names, n)
		}
		slices.Sort(names)
		fmt.Fprintf(os.Stderr, "usage: kube %s [flags]\n", strings.Join(names, "|"))
		os.Exit(2)
	}
	if fd, err := strconv.Atoi(os.Getenv("KUBE_EXIT_WITH_FD")); err == nil {
		go func() {
			_, _ = io.Copy(io.Discard, os.NewFile(uintptr(fd), "pipe"))
			os.Exit(1)
		}()
	}
	os.Exit(cli.Run(command()))
}
