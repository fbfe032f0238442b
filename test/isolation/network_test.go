package isolation

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const (
	root       = "../.."
	policyFile = "k8s/components/network-policy/network-policy.yaml"
	namespace  = "go-micro"
)

// whoReachesWhom is what the network policies allow. Everything else is refused, except
// what does not concern the namespace. "A stranger" is a pod that is none of the four
// services; outside is an address that belongs to no pod.
var whoReachesWhom = []string{
	"go-micro-srv reaches the API server at 443 and 6443",
	"go-micro-srv reaches the cluster's DNS at 53 and 53/UDP",
	"go-micro-srv reaches a stranger in another namespace at 443, 6443, 53 and 53/UDP",
	"go-micro-srv reaches an address outside at 443, 6443, 53 and 53/UDP",

	"go-micro-web reaches go-micro-srv at 9100",
	"go-micro-web reaches the API server at 443 and 6443",
	"go-micro-web reaches the cluster's DNS at 53 and 53/UDP",
	"go-micro-web reaches a stranger in another namespace at 443, 6443, 53 and 53/UDP",
	"go-micro-web reaches an address outside at 443, 6443, 53 and 53/UDP",

	"go-micro-client reaches go-micro-srv at 9100",
	"go-micro-client reaches the API server at 443 and 6443",
	"go-micro-client reaches the cluster's DNS at 53 and 53/UDP",
	"go-micro-client reaches a stranger in another namespace at 443, 6443, 53 and 53/UDP",
	"go-micro-client reaches an address outside at 443, 6443, 53 and 53/UDP",

	"go-micro-config reaches the API server at 443 and 6443",
	"go-micro-config reaches the cluster's DNS at 53 and 53/UDP",
	"go-micro-config reaches a stranger in another namespace at 443, 6443, 53 and 53/UDP",
	"go-micro-config reaches an address outside at 443, 6443, 53 and 53/UDP",

	"a stranger in the namespace reaches the API server at 443 and 6443",
	"a stranger in the namespace reaches the cluster's DNS at 53 and 53/UDP",
	"a stranger in the namespace reaches a stranger in another namespace at 443, 6443, 53 and 53/UDP",
	"a stranger in the namespace reaches an address outside at 443, 6443, 53 and 53/UDP",

	"a stranger in another namespace reaches go-micro-web at 9200",
	"an address outside reaches go-micro-web at 9200",
}

// narrowed is what the policies allow when both lines that start with "# to:" are active.
var narrowed = slices.DeleteFunc(slices.Clone(whoReachesWhom), func(s string) bool {
	return strings.Contains(s, "reaches an address outside") || strings.Contains(s, "reaches a stranger in another namespace")
})

// withOtherAPIServers is what the policies allow when the ports of minikube and microk8s
// are active.
var withOtherAPIServers = strings.Split(strings.NewReplacer("443 and 6443", "443, 6443, 8443 and 16443", "443, 6443,", "443, 6443, 8443, 16443,").
	Replace(strings.Join(whoReachesWhom, "\n")), "\n")

// peer is one end of a connection.
type peer struct {
	name   string
	at     *matcher.TrafficPeer
	serves []string // ports; nil stands for all
}

// ports are all ports that a policy or a manifest of this project names, the API server's
// ports on minikube and microk8s, and one that nothing names.
var ports = []string{"9100", "9200", "9300", "443", "6443", "8443", "16443", "53", "53/UDP", "80"}

// peers returns the four services, with the labels of their manifests, and everybody else.
func peers(t *testing.T, rendered string) []peer {
	t.Helper()
	pod := func(ns, ip string, labels map[string]string) *matcher.TrafficPeer {
		return &matcher.TrafficPeer{IP: ip, Internal: &matcher.InternalPeer{
			Namespace: ns, NamespaceLabels: map[string]string{"kubernetes.io/metadata.name": ns}, PodLabels: labels}}
	}
	all := []peer{}
	for i, name := range []string{"go-micro-srv", "go-micro-web", "go-micro-client", "go-micro-config"} {
		var labels map[string]string
		found := false
		for _, o := range decode[workload](t, rendered) {
			switch {
			case o.Name != name:
			case o.Kind == "Deployment":
				labels, found = o.Spec.Template.Labels, true
			case o.Kind == "Pod":
				labels, found = o.Labels, true
			}
		}
		if !found {
			t.Fatalf("the manifests contain no Deployment and no Pod %q", name)
		}
		all = append(all, peer{name, pod(namespace, fmt.Sprint("10.244.0.", i+2), labels), nil})
	}
	return append(all,
		peer{"a stranger in the namespace", pod(namespace, "10.244.0.9", map[string]string{"app": "stranger"}), nil},
		peer{"the API server", &matcher.TrafficPeer{IP: "192.0.2.1"}, []string{"443", "6443", "8443", "16443"}},
		peer{"the cluster's DNS", pod("kube-system", "10.244.1.2", map[string]string{"k8s-app": "kube-dns"}), []string{"53", "53/UDP"}},
		peer{"a stranger in another namespace", pod("other", "10.244.1.9", map[string]string{"app": "go-micro-client"}), nil},
		peer{"an address outside", &matcher.TrafficPeer{IP: "203.0.113.7"}, nil},
	)
}

// matrix evaluates the policies for every pair of peers and every port, and returns what
// is allowed in the words of whoReachesWhom.
func matrix(t *testing.T, rendered string) (sentences []string) {
	t.Helper()
	var policies []*networkingv1.NetworkPolicy
	for _, p := range decode[networkingv1.NetworkPolicy](t, rendered) {
		if p.Kind == "NetworkPolicy" {
			policies = append(policies, &p)
		}
	}
	evaluated := matcher.BuildNetworkPolicies(true, policies)
	inside := func(p peer) bool { return p.at.Namespace() == namespace }
	all := peers(t, rendered)
	for _, from := range all {
		for _, to := range all {
			if from.name == to.name || !inside(from) && !inside(to) || from.serves != nil {
				continue // the API server and DNS only answer
			}
			var allowed []string
			for _, port := range ports {
				if to.serves != nil && !slices.Contains(to.serves, port) {
					continue
				}
				traffic := &matcher.Traffic{Source: from.at, Destination: to.at, Protocol: corev1.ProtocolTCP}
				if number, udp := strings.CutSuffix(port, "/UDP"); udp {
					traffic.Protocol = corev1.ProtocolUDP
					traffic.ResolvedPort, _ = net.LookupPort("udp", number)
				} else {
					traffic.ResolvedPort, _ = net.LookupPort("tcp", number)
				}
				if evaluated.IsTrafficAllowed(traffic).IsAllowed() {
					allowed = append(allowed, port)
				}
			}
			if n := len(allowed); n > 1 {
				allowed = []string{strings.Join(allowed[:n-1], ", ") + " and " + allowed[n-1]}
			}
			if len(allowed) > 0 {
				sentences = append(sentences, fmt.Sprintf("%s reaches %s at %s", from.name, to.name, allowed[0]))
			}
		}
	}
	return sentences
}

// compare returns one line for each difference.
func compare(got, want []string) (differences []string) {
	for _, s := range got {
		if !slices.Contains(want, s) {
			differences = append(differences, "too much: "+s)
		}
	}
	for _, s := range want {
		if !slices.Contains(got, s) {
			differences = append(differences, "missing: "+s)
		}
	}
	return differences
}

// workload is a Pod or a Deployment.
type workload struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Template corev1.PodTemplateSpec
	}
}

// decode reads all objects as if each were a T.
func decode[T any](t *testing.T, rendered string) (all []T) {
	t.Helper()
	for d := yaml.NewYAMLOrJSONDecoder(strings.NewReader(rendered), 4096); ; {
		var o T
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
}

// render returns k8s/ with the component, as `make deploy COMPONENTS=network-policy`
// applies them, after edit has changed the policy file. Only copies are changed.
func render(t *testing.T, edit func(policyFile string) string) string {
	t.Helper()
	files := filesys.MakeFsInMemory()
	var sources []string
	for _, pattern := range []string{"k8s/*.yaml", "k8s/components/*/*.yaml", "go-micro-*/k8s/*.yaml"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, found...)
	}
	for _, source := range sources {
		b, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		name, _ := filepath.Rel(root, source)
		if name == policyFile {
			b = []byte(edit(string(b)))
		}
		if err := files.WriteFile("/checkout/"+name, b); err != nil {
			t.Fatal(err)
		}
	}
	overlay := "resources: [../k8s]\ncomponents: [../k8s/components/network-policy]\n"
	if err := files.WriteFile("/checkout/deploy/kustomization.yaml", []byte(overlay)); err != nil {
		t.Fatal(err)
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, "/checkout/deploy")
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := built.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(rendered, []byte("kind: NetworkPolicy")); n < 4 {
		t.Fatalf("k8s/ with the component contains %d NetworkPolicies, want at least 4", n)
	}
	return string(rendered)
}

// replace returns a function that replaces all olds by news, of which each must occur.
func replace(t *testing.T, oldnew ...string) func(string) string {
	t.Helper()
	return func(file string) string {
		for i := 0; i < len(oldnew); i += 2 {
			if !strings.Contains(file, oldnew[i]) {
				t.Fatalf("%s does not contain %q", policyFile, oldnew[i])
			}
			file = strings.ReplaceAll(file, oldnew[i], oldnew[i+1])
		}
		return file
	}
}

func TestNetworkPolicies(t *testing.T) {
	for name, c := range map[string]struct {
		edit []string
		want []string
	}{
		"as they are": {nil, whoReachesWhom},
		"with the API servers of minikube and microk8s":                        {[]string{"# - {protocol: TCP, port: 8443}", "- {protocol: TCP, port: 8443}", "# - {protocol: TCP, port: 16443}", "- {protocol: TCP, port: 16443}"}, withOtherAPIServers},
		"narrowed to the addresses of the API server and to the cluster's DNS": {[]string{"# to: [", "to: ["}, narrowed},
	} {
		t.Run(name, func(t *testing.T) {
			for _, d := range compare(matrix(t, render(t, replace(t, c.edit...))), c.want) {
				t.Error(d)
			}
		})
	}
}

// TestNetworkPoliciesMutated shows that TestNetworkPolicies fails for a policy with a
// hole and for a policy that blocks too much.
func TestNetworkPoliciesMutated(t *testing.T) {
	callers := `        - podSelector: # the callers; add your own here and in the next policy
            matchExpressions:
              - {key: app, operator: In, values: [go-micro-client, go-micro-web]}
`
	for name, c := range map[string]struct {
		edit []string
		want string // one of the differences
	}{
		"hole: no restriction of egress":              {[]string{"[Ingress, Egress]", "[Ingress]"}, "too much: go-micro-config reaches an address outside at 9100, 9200, 9300, 443, 6443, 8443, 16443, 53, 53/UDP and 80"},
		"hole: no restriction of ingress":             {[]string{"[Ingress, Egress]", "[Egress]"}, "too much: an address outside reaches go-micro-client at 9100, 9200, 9300, 443, 6443, 8443, 16443, 53, 53/UDP and 80"},
		"hole: anybody may call the Greeter":          {[]string{"    - from:\n" + callers + "      ports:\n        - {protocol: TCP, port: 9100}", "    - ports:\n        - {protocol: TCP, port: 9100}"}, "too much: an address outside reaches go-micro-srv at 9100"},
		"hole: callers of any namespace":              {[]string{callers, "        - namespaceSelector: {}\n  " + strings.Replace(callers[10:], "podSelector:", "        podSelector:", 1)}, "too much: a stranger in another namespace reaches go-micro-srv at 9100"},
		"hole: every port of the page":                {[]string{"    - ports: # from any address\n        - {protocol: TCP, port: 9200}", "    - {}"}, "too much: an address outside reaches go-micro-web at 9100, 9200, 9300, 443, 6443, 8443, 16443, 53, 53/UDP and 80"},
		"hole: a range of ports":                      {[]string{"- {protocol: TCP, port: 443} #", "- {protocol: TCP, port: 443, endPort: 9100} #"}, "too much: go-micro-config reaches the API server at 443, 6443 and 8443"},
		"block: no port behind the Service":           {[]string{"        - {protocol: TCP, port: 6443}", "        # - {protocol: TCP, port: 6443}"}, "missing: go-micro-srv reaches the API server at 443 and 6443"},
		"block: no DNS over UDP":                      {[]string{"        - {protocol: UDP, port: 53}\n", ""}, "missing: go-micro-srv reaches the cluster's DNS at 53 and 53/UDP"},
		"block: the page may not call the Greeter":    {[]string{"values: [go-micro-client, go-micro-web]", "values: [go-micro-client]"}, "missing: go-micro-web reaches go-micro-srv at 9100"},
		"block: calls are refused at their source":    {[]string{"            matchLabels: {app: go-micro-srv}\n      ports", "            matchLabels: {app: go-micro-web}\n      ports"}, "missing: go-micro-client reaches go-micro-srv at 9100"},
		"block: the page only for the namespace":      {[]string{"    - ports: # from any address", "    - from: [{podSelector: {}}]\n      ports:"}, "missing: an address outside reaches go-micro-web at 9200"},
		"block: the policies are in another place":    {[]string{"namespace: go-micro\n", "namespace: default\n"}, "too much: an address outside reaches go-micro-config at 9100, 9200, 9300, 443, 6443, 8443, 16443, 53, 53/UDP and 80"},
		"block: narrowed to another server's address": {[]string{"# to: [{ipBlock: {cidr: 10.96.0.1/32}}, {ipBlock: {cidr: 192.0.2.1/32}}]", "to: [{ipBlock: {cidr: 10.96.0.1/32}}]"}, "missing: go-micro-web reaches the API server at 443 and 6443"},
	} {
		t.Run(name, func(t *testing.T) {
			differences := compare(matrix(t, render(t, replace(t, c.edit...))), whoReachesWhom)
			if !slices.Contains(differences, c.want) {
				t.Errorf("the differences are %q, want %q among them", differences, c.want)
			}
		})
	}
}
