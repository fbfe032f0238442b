package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"
)

// kubeconfig reads the kubeconfig of the process and sets the connection's namespace. client-go finds
// the files, merges them, and selects the context; this version of it ignores what it does not know,
// so kubeconfig reads the entries of that context again.
func (c *Connection) kubeconfig(address string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.WarnIfAllMissing = false // in client-go's own log
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{})
	config, err := loader.ClientConfig()
	if err == nil {
		c.Namespace, _, err = loader.Namespace()
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to Kubernetes: not in a pod (KUBERNETES_SERVICE_HOST is not set) and no kubeconfig (%w): run it in a cluster or set KUBECONFIG", err)
	}
	c.OutsideCluster = true
	if address != "" {
		config.Host = address
	}
	server, _, err := rest.DefaultServerURL(config.Host, "/api", corev1.SchemeGroupVersion, rest.IsConfigTransportTLS(*config))
	if err != nil {
		return nil, fmt.Errorf("connecting to Kubernetes: parsing the address of the API server: %w", err)
	}
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, fmt.Errorf("connecting to Kubernetes: %w", err)
	}
	entries, err := readEntries(raw)
	if err != nil {
		return nil, fmt.Errorf("connecting to Kubernetes: %w", err)
	}
	proof := serverTLS{name: server.Hostname(), insecure: config.Insecure}
	if entries.cluster.TLSServerName != "" {
		proof.name = entries.cluster.TLSServerName
	}
	if len(config.CAData) > 0 || config.CAFile != "" {
		proof.roots = func() ([]byte, error) { return dataOrFile(config.CAData, config.CAFile) }
	}
	user := &kubeconfigUser{config: config}
	if entries.exec != nil {
		if c.plugin, err = newPlugin(entries, server, proof); err != nil {
			return nil, fmt.Errorf("connecting to Kubernetes: reading kubeconfig %q: user %q: %w", entries.file, entries.user, err)
		}
		c.plugin.certificateChanged = c.dialer.closeOpen
		user.plugin = c.plugin
	}
	transport := newServerTransport(server, proof, user, &c.dialer)
	if proxy := entries.cluster.ProxyURL; proxy != "" {
		u, err := url.Parse(proxy)
		if err != nil || !slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) {
			text := "" // of a URL that cannot be parsed nothing is shown: it may contain a password, and so does the error
			if err == nil {
				text = fmt.Sprintf(" %q", u.Redacted())
			}
			return nil, fmt.Errorf("connecting to Kubernetes: reading kubeconfig %q: proxy-url%s must be a URL with the scheme http, https or socks5", entries.file, text)
		}
		transport.base.Proxy, transport.ownProxy = http.ProxyURL(u), true
	}
	connected := &rest.Config{Host: server.String(), Transport: transport}
	if server.Scheme == "https" {
		connected.Impersonate = config.Impersonate
	}
	return connected, nil
}

// entries are the fields of the current context's cluster and user that this version of client-go does not know.
type entries struct {
	file, user string
	cluster    clusterEntry
	exec       *execEntry // nil: none
}

type clusterEntry struct {
	TLSServerName string `json:"tls-server-name"`
	ProxyURL      string `json:"proxy-url"`
	Extensions    []struct {
		Name      string
		Extension json.RawMessage
	}
}

type execEntry struct {
	APIVersion, Command, InteractiveMode, InstallHint string
	Args                                              []string
	Env                                               []struct{ Name, Value string }
	ProvideClusterInfo                                bool
}

// The fields of a cluster and a user that are used, or that have no effect here.
var (
	clusterFields = []string{"server", "certificate-authority", "certificate-authority-data", "insecure-skip-tls-verify", "tls-server-name", "proxy-url",
		"disable-compression", "extensions"}
	userFields = []string{"client-certificate", "client-certificate-data", "client-key", "client-key-data", "token", "tokenFile", "exec",
		"as", "as-groups", "as-user-extra", "extensions"}
	remedies = map[string]string{ //nolint:gosec // no credentials
		"auth-provider": "Kubernetes 1.26 has removed it; use a credential plugin (exec), such as gke-gcloud-auth-plugin or kubelogin",
		"username":      "Kubernetes 1.19 has removed passwords; use a token, a certificate or a credential plugin",
		"password":      "Kubernetes 1.19 has removed passwords; use a token, a certificate or a credential plugin",
	}
)

// readEntries reads the entries of the current context in the files that they come from.
func readEntries(raw clientcmdapi.Config) (e entries, err error) {
	current := raw.Contexts[raw.CurrentContext]
	if current == nil {
		return e, nil
	}
	if cluster := raw.Clusters[current.Cluster]; cluster != nil {
		e.file = cluster.LocationOfOrigin
		fields, err := entryOf(e.file, "clusters", "cluster", current.Cluster, clusterFields)
		if err == nil {
			err = decode(fields, &e.cluster)
		}
		if err != nil {
			return e, fmt.Errorf("reading kubeconfig %q: cluster %q: %w", e.file, current.Cluster, err)
		}
	}
	if user := raw.AuthInfos[current.AuthInfo]; user != nil {
		e.file, e.user = user.LocationOfOrigin, current.AuthInfo
		fields, err := entryOf(e.file, "users", "user", e.user, userFields)
		if text := fields["exec"]; err == nil && user.Exec != nil && text != nil {
			d := json.NewDecoder(bytes.NewReader(text))
			d.DisallowUnknownFields()
			e.exec = &execEntry{}
			err = d.Decode(e.exec)
			e.exec.Command = user.Exec.Command // client-go resolves a path relative to the file
		}
		if err != nil {
			return e, fmt.Errorf("reading kubeconfig %q: user %q: %w", e.file, e.user, err)
		}
	}
	return e, nil
}

// entryOf returns the fields of one entry of a kubeconfig, and an error if it has others than the known ones.
func entryOf(file, list, kind, name string, known []string) (map[string]json.RawMessage, error) {
	text, err := os.ReadFile(file) //nolint:gosec // the user's own kubeconfig
	if err != nil {
		return nil, err
	}
	var lists map[string]json.RawMessage
	if err := yaml.Unmarshal(text, &lists); err != nil {
		return nil, err
	}
	var all []map[string]json.RawMessage
	if err := json.Unmarshal(lists[list], &all); err != nil {
		return nil, err
	}
	for _, entry := range all {
		var found string
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(entry["name"], &found); err != nil || found != name {
			continue
		}
		if err := json.Unmarshal(entry[kind], &fields); err != nil {
			return nil, err
		}
		for field, value := range fields {
			if !slices.Contains(known, field) && string(value) != "null" {
				remedy := remedies[field]
				if remedy == "" {
					remedy = "remove it, or use another kubeconfig"
				}
				return nil, fmt.Errorf("the field %q is not supported: %s", field, remedy)
			}
		}
		return fields, nil
	}
	return nil, nil
}

func decode(fields map[string]json.RawMessage, into any) error {
	text, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

func dataOrFile(data []byte, file string) ([]byte, error) {
	if len(data) > 0 || file == "" {
		return data, nil
	}
	return os.ReadFile(file) //nolint:gosec // the user's own kubeconfig names it
}

// kubeconfigUser are the credentials of a kubeconfig. Its files are read for each use, as in a pod.
type kubeconfigUser struct {
	config *rest.Config
	plugin *plugin // nil: none
}

func (u *kubeconfigUser) token(ctx context.Context) (string, error) {
	if u.config.BearerTokenFile != "" {
		text, err := os.ReadFile(u.config.BearerTokenFile)
		return strings.TrimSpace(string(text)), err
	}
	if u.config.BearerToken != "" || u.plugin == nil {
		return u.config.BearerToken, nil
	}
	c, err := u.plugin.credential(ctx)
	return c.token, err
}

func (u *kubeconfigUser) certificate(ctx context.Context) (*tls.Certificate, error) {
	cert, err := dataOrFile(u.config.CertData, u.config.CertFile)
	if err != nil {
		return nil, err
	}
	key, err := dataOrFile(u.config.KeyData, u.config.KeyFile)
	if err != nil {
		return nil, err
	}
	if len(cert) > 0 {
		pair, err := tls.X509KeyPair(cert, key)
		return &pair, err
	}
	if u.plugin == nil {
		return &tls.Certificate{}, nil // none
	}
	c, err := u.plugin.credential(ctx)
	return &c.certificate, err
}

func (u *kubeconfigUser) answered(token string, refused bool) {
	if u.plugin != nil {
		u.plugin.answered(token, refused)
	}
}
