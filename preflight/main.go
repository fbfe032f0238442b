// Command preflight reads the manifests of an existing Go-Micro service and prints what keeps the service from running
// with package pod. It needs no cluster and changes nothing:
//
//	go run github.com/jiangjiancc/go_micro_k8s/preflight@main -f deployment.yaml -f configmap.yaml
//	kubectl kustomize overlays/production | go run github.com/jiangjiancc/go_micro_k8s/preflight@main -f -
//
// Each finding is two lines: the file, the line, the problem and the kind of the finding in brackets, then the change.
// docs/manifests.md has a row for each kind. The exit status is 1 if there are findings, 0 if there are none, and
// 2 if the manifests cannot be read. Notes about what could not be checked go to stderr.
//
// The command reads workloads of all kinds, ConfigMaps, Secrets, Services, Namespaces, Roles, RoleBindings, and
// ServiceAccounts, and kustomizations for their generators. Objects of the same call belong together: give the
// ConfigMap of an envFrom in the same call. The name that the program registers is in its code, so whether the label app
// has that name is not checked.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	status, err := run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(status)
}

// finding is a problem at a line of a manifest.
type finding struct {
	at      place
	kind    string // one of kinds
	problem string
	change  string // what to write, and where
}

// kinds are the kinds of findings, in the order of the tables of docs/manifests.md.
var kinds = []string{
	"registry", "registry-address", "plugin", "selector", "client", "server", "broker", "advertise", "proxy", "number", "duplicate", "plain-value",
	"label-app", "match-labels", "service-account", "token", "rights", "pod-name", "pod-ip", "readiness", "liveness", "probe-port", "port", "low-port", "loopback",
	"image-tag", "host-network", "grace-period", "rollout", "shell", "restricted", "api-version", "service", "replicas",
	"properties", "yaml-words", "yaml-invalid", "hash-suffix",
}

// run returns the exit status, and an error for the reader if it is 2.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	flags := flag.NewFlagSet("preflight", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: preflight [-skip KIND,...] -f FILE... (a manifest, a directory of manifests, or - for standard input)")
		flags.PrintDefaults()
	}
	var files, skipped []string
	flags.Func("f", "`FILE`, a directory of manifests, or - for standard input; may be repeated", func(name string) error {
		files = append(files, name)
		return nil
	})
	flags.Func("skip", "`KIND` of findings that are meant, separated by commas; their kind is at the end of their line", func(list string) error {
		for kind := range strings.SplitSeq(list, ",") {
			if !slices.Contains(kinds, kind) {
				return fmt.Errorf("%q is none of %s", kind, strings.Join(kinds, ", "))
			}
			skipped = append(skipped, kind)
		}
		return nil
	})
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0, err
		}
		return 2, nil //nolint:nilerr // Parse has printed the error and the usage
	}
	files = append(files, flags.Args()...)
	if len(files) == 0 {
		flags.Usage()
		return 2, errors.New("reading manifests: no file is given: use -f FILE, or -f - for standard input")
	}
	m, err := read(files, stdin)
	if err != nil {
		return 2, err
	}
	findings, notes := m.check()
	findings = slices.DeleteFunc(findings, func(f finding) bool { return slices.Contains(skipped, f.kind) })
	for _, f := range findings {
		fmt.Fprintf(stdout, "%s: %s [%s]\n    %s\n", f.at, f.problem, f.kind, f.change)
	}
	for _, n := range notes {
		fmt.Fprintf(stderr, "note: %s\n", n)
	}
	if len(findings) > 0 {
		return 1, nil
	}
	return 0, nil
}

// check returns the findings in the order of the files and their lines.
func (m *manifests) check() ([]finding, []string) {
	c := &checker{manifests: m}
	for _, w := range m.workloads {
		c.workload(w)
	}
	for _, o := range m.objects {
		c.apiVersion(o)
		switch o.kind {
		case "ConfigMap":
			c.configMap(o)
		case "Kustomization":
			c.kustomization(o)
		case "Service":
			c.service(o)
		case "HorizontalPodAutoscaler":
			c.autoscaler(o)
		}
	}
	slices.SortStableFunc(c.findings, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.at.order, b.at.order), cmp.Compare(a.at.line, b.at.line))
	})
	return c.findings, c.notes
}

// checker collects findings.
type checker struct {
	*manifests
	findings []finding
	notes    []string // what could not be checked
}

// add adds a finding once: two containers may take their environment from one ConfigMap.
func (c *checker) add(at place, kind, problem, change string) {
	f := finding{at, kind, problem, change}
	if !slices.Contains(c.findings, f) {
		c.findings = append(c.findings, f)
	}
}

func (c *checker) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}
