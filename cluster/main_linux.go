package main

import "github.com/jiangjiancc/go_micro_k8s/cluster/signer"

// subprocesses are the internal commands with which this program starts itself as another
// process. Users do not run them. The package comment describes how the processes end.
var subprocesses = map[string]func(args []string) error{
	"supervisor":           supervisor,         // started by up, on the host
	"cgroup-cleaner":       cgroupCleaner,      // started by the supervisor, on the host
	"init":                 initProcess,        // started by the supervisor, process 1 of the node
	"node-manager":         nodeManager,        // started by init, in the node
	"further-init":         furtherInit,        // started by the node manager, process 1 of a further node
	"further-node-manager": furtherNodeManager, // started by further-init, in its node
	"pod-signer":           signer.Main,        // started by the node manager, in the node
	"runc":                 runc,               // started by containerd, in the node, for each command of a container
}
