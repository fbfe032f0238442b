package main

import (
	"fmt"
	"strings"
)

// node is the number of a Kubernetes node of the cluster. The first one, 1, runs the control plane, and the packets
// between the others go through its network namespace.
type node int

const firstNode = node(1)

const (
	maxNodes = 9 // several of them, with pods, need a large machine

	zones     = "abc" // the nodes are in these zones in turn
	zoneLabel = "topology.kubernetes.io/zone"
)

func (n node) name() string {
	if n == firstNode {
		return "k8s-micro"
	}
	return fmt.Sprintf("k8s-micro-%d", n)
}

func (n node) zone() string { return zones[(int(n)-1)%len(zones):][:1] }

// nodeEtc returns the path of a configuration file of a node.
func (c *cluster) nodeEtc(n node, name string) string {
	if n == firstNode {
		return c.path("etc", name)
	}
	return c.path("etc", n.name(), name)
}

// nodeLogs returns the directory of the logs of a node.
func (c *cluster) nodeLogs(n node) string {
	if n == firstNode {
		return c.path("log")
	}
	return c.path("log", n.name())
}

// pidFile contains the process id of a further node's init in the PID namespace of the first node.
func (c *cluster) pidFile(n node) string { return c.path(n.name() + ".pid") }

// offFile keeps a further node that has ended from starting again while it exists, as test/faults wants it.
func (c *cluster) offFile(n node) string { return c.path(n.name() + ".off") }

// nodes lists the nodes of a cluster that is more than a control plane.
func (s state) nodes() (all []node) {
	for n := range max(1, s.Nodes) {
		all = append(all, firstNode+node(n))
	}
	return all
}

// describeNodes lists the names and zones of several nodes.
func describeNodes(nodes []node) string {
	var each []string
	for _, n := range nodes {
		each = append(each, fmt.Sprintf("%s in zone %s", n.name(), n.zone()))
	}
	return strings.Join(each, ", ")
}
