package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// pluginTimeout bounds a run of a credential plugin. It includes the time in which a person logs in with a browser.
const pluginTimeout = 3 * time.Minute

// After a run that fails, or whose result the API server refuses, the next run waits for minPluginDelay, and then for
// twice as long each time up to maxPluginDelay: a plugin may start a large program and write to stderr.
const minPluginDelay, maxPluginDelay = time.Second, 30 * time.Second

// pluginVersions are the versions of the protocol between kubectl and its credential plugins:
// https://kubernetes.io/docs/reference/config-api/client-authentication.v1/
var pluginVersions = []string{"client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1", "client.authentication.k8s.io/v1alpha1"}

// plugin runs the credential plugin of a kubeconfig, such as aws, gke-gcloud-auth-plugin or kubelogin. All
// requests share one run. A run may take longer than a request: it goes on, and the next request gets its result.
type plugin struct {
	entry              *execEntry
	info               string // for the plugin, as JSON
	certificateChanged func() // closes the connections that were opened with the old one

	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	running sync.WaitGroup

	last [][]byte // the last certificate; nil before the first; only the current run uses it

	mu       sync.Mutex
	run      chan struct{} // closed at the end of the current run; nil without one
	received *credential   // nil: the next request runs the plugin
	err      error         // of the last run
	began    time.Time     // the last run
	delay    time.Duration // after the last run; 0 after a success
}

// pluginPending is the error of a request that does not wait any longer for the run of a plugin.
type pluginPending struct{ command string }

func (p pluginPending) Error() string {
	return fmt.Sprintf("credential plugin %q has not answered yet", p.command)
}
func (pluginPending) Timeout() bool   { return true } // a later request may succeed
func (pluginPending) Temporary() bool { return true }

// credential is what a plugin returns.
type credential struct {
	token       string
	certificate tls.Certificate
	expires     time.Time // zero: never
}

func newPlugin(e entries, server *url.URL, proof serverTLS) (*plugin, error) {
	if !slices.Contains(pluginVersions, e.exec.APIVersion) {
		return nil, fmt.Errorf("exec.apiVersion %q is not supported: use one of %s", e.exec.APIVersion, strings.Join(pluginVersions, ", "))
	}
	if e.exec.InteractiveMode == "Always" {
		return nil, errors.New(`exec.interactiveMode "Always" is not supported, because the plugin gets no terminal: set IfAvailable, or use another login of the plugin`)
	}
	type cluster struct {
		Server                   string          `json:"server"`
		TLSServerName            string          `json:"tls-server-name,omitempty"`
		InsecureSkipTLSVerify    bool            `json:"insecure-skip-tls-verify,omitempty"`
		CertificateAuthorityData []byte          `json:"certificate-authority-data,omitempty"`
		ProxyURL                 string          `json:"proxy-url,omitempty"`
		Config                   json.RawMessage `json:"config,omitempty"`
	}
	var info struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Spec       struct {
			Cluster     *cluster `json:"cluster,omitempty"`
			Interactive bool     `json:"interactive"`
		} `json:"spec"`
	}
	info.APIVersion, info.Kind = e.exec.APIVersion, "ExecCredential"
	if e.exec.ProvideClusterInfo {
		c := &cluster{Server: server.String(), TLSServerName: e.cluster.TLSServerName, InsecureSkipTLSVerify: proof.insecure, ProxyURL: e.cluster.ProxyURL}
		if proof.roots != nil {
			var err error
			if c.CertificateAuthorityData, err = proof.roots(); err != nil {
				return nil, err
			}
		}
		for _, x := range e.cluster.Extensions {
			if x.Name == "client.authentication.k8s.io/exec" {
				c.Config = x.Extension
			}
		}
		info.Spec.Cluster = c
	}
	text, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	p := &plugin{entry: e.exec, info: string(text)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// close ends the current run and waits for it.
func (p *plugin) close() {
	p.cancel()
	p.running.Wait()
}

// answered makes a request after a refusal run the plugin again.
func (p *plugin) answered(token string, refused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !refused:
		p.delay = 0
	case p.received != nil && p.received.token == token: // and not the next one already
		p.failed(fmt.Errorf("the API server does not accept what credential plugin %q returned; log in again", p.entry.Command))
	}
}

// failed delays the next run. The caller holds p.mu.
func (p *plugin) failed(err error) {
	p.received, p.err = nil, err
	p.delay = min(max(minPluginDelay, 2*p.delay), maxPluginDelay)
}

// credential returns what the plugin has returned, unless it has expired, or the result of a new run.
func (p *plugin) credential(ctx context.Context) (credential, error) {
	p.mu.Lock()
	if c := p.received; c != nil && (c.expires.IsZero() || time.Now().Before(c.expires)) {
		p.mu.Unlock()
		return *c, nil
	}
	if p.run == nil && p.err != nil && time.Since(p.began) < p.delay {
		defer p.mu.Unlock()
		return credential{}, p.err
	}
	if p.run == nil && p.ctx.Err() == nil {
		p.run, p.began = make(chan struct{}), time.Now()
		p.running.Go(p.runOnce)
	}
	run := p.run
	p.mu.Unlock()
	select {
	case <-run:
	case <-ctx.Done():
		return credential{}, pluginPending{p.entry.Command}
	case <-p.ctx.Done():
		return credential{}, fmt.Errorf("running credential plugin %q: the connection is closed", p.entry.Command)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.received == nil {
		return credential{}, p.err
	}
	return *p.received, nil
}

func (p *plugin) runOnce() {
	c, err := p.execute()
	if err == nil {
		if p.last != nil && !slices.EqualFunc(c.certificate.Certificate, p.last, bytes.Equal) {
			p.certificateChanged() // before any request can use the new one
		}
		p.last = c.certificate.Certificate
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.received, p.err = c, err; err != nil {
		p.failed(err)
	}
	close(p.run)
	p.run = nil
}

// output keeps the first MiB of what a plugin writes.
type output struct {
	text []byte
	full func() // called with what does not fit; may be nil
}

func (o *output) Write(p []byte) (int, error) {
	fits := min(len(p), 1<<20-len(o.text))
	if o.text = append(o.text, p[:fits]...); fits < len(p) && o.full != nil {
		o.full()
	}
	return len(p), nil
}

// execute runs the plugin. What it writes to stderr, such as the address of a login page, is for the user.
func (p *plugin) execute() (*credential, error) {
	ctx, cancel := context.WithTimeout(p.ctx, pluginTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.entry.Command, p.entry.Args...) //nolint:gosec // the user's own kubeconfig names it
	cmd.WaitDelay = time.Second                                       // for children that keep its output open
	cmd.Env = os.Environ()
	for _, v := range p.entry.Env {
		cmd.Env = append(cmd.Env, v.Name+"="+v.Value)
	}
	cmd.Env = append(cmd.Env, "KUBERNETES_EXEC_INFO="+p.info)
	tooMuch := false
	out, errs := output{full: func() { tooMuch = true; cancel() }}, output{}
	cmd.Stdout, cmd.Stderr = &out, io.MultiWriter(os.Stderr, &errs)
	err := cmd.Run()
	if tooMuch {
		err = errors.New("its answer has more than 1 MiB")
	}
	if err != nil {
		text := string(errs.text)
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			text = p.entry.InstallHint
		}
		return nil, fmt.Errorf("running credential plugin %q: %w: %s", p.entry.Command, err, strings.Join(strings.Fields(text), " "))
	}
	c, err := p.decode(out.text)
	if err != nil { // c may be incomplete
		return nil, fmt.Errorf("reading the answer of credential plugin %q: %w", p.entry.Command, err)
	}
	return c, nil
}

func (p *plugin) decode(text []byte) (*credential, error) {
	var answer struct {
		APIVersion, Kind string
		Status           *struct {
			ExpirationTimestamp                         time.Time
			Token, ClientCertificateData, ClientKeyData string
		}
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, err
	}
	if answer.APIVersion != p.entry.APIVersion || answer.Kind != "ExecCredential" {
		return nil, fmt.Errorf("it is a %q of version %q; the kubeconfig asks for an ExecCredential of version %q", answer.Kind, answer.APIVersion, p.entry.APIVersion)
	}
	if answer.Status == nil || answer.Status.Token == "" && answer.Status.ClientCertificateData == "" {
		return nil, errors.New("it has neither a token nor a certificate")
	}
	c := &credential{token: answer.Status.Token, expires: answer.Status.ExpirationTimestamp}
	if answer.Status.ClientCertificateData == "" {
		return c, nil
	}
	var err error
	c.certificate, err = tls.X509KeyPair([]byte(answer.Status.ClientCertificateData), []byte(answer.Status.ClientKeyData))
	return c, err
}
