package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// controlPlane is etcd and kube-apiserver, with a node around them or without.
type controlPlane struct {
	*cluster
	kube     string
	ip       string // where kube-apiserver listens and is reached by the other components
	port     int
	etcdPort int
	pki      *pki
}

const (
	serviceCIDR = "10.96.0.0/16"
	serviceIP   = "10.96.0.1" // of the Service "kubernetes", the first of the range
)

func (cp *controlPlane) server() string          { return fmt.Sprintf("https://%s:%d", cp.ip, cp.port) }
func (cp *controlPlane) etc(name string) string  { return cp.path("etc", name) }
func (cp *controlPlane) cert(name string) string { return cp.path("pki", name) }

// writeFiles makes the keys and the kubeconfigs of administrator and host.
func (cp *controlPlane) writeFiles() (err error) {
	for _, d := range []string{"etc", "log"} {
		if err := os.MkdirAll(cp.path(d), 0o755); err != nil {
			return err
		}
	}
	if cp.pki, err = newPKI(cp.path("pki")); err != nil {
		return err
	}
	err = cp.pki.issue("apiserver", "kube-apiserver", nil, "127.0.0.1", "localhost", cp.ip, serviceIP,
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	return errors.Join(err,
		cp.pki.issue("etcd", "etcd", nil, "127.0.0.1"),
		cp.pki.issue("apiserver-etcd", "kube-apiserver", nil),
		cp.pki.issue("apiserver-kubelet", "kube-apiserver", []string{"system:masters"}),
		cp.pki.issue("front-proxy", "front-proxy", nil),
		cp.pki.kubeconfig(cp.path("kubeconfig"), cp.server(), "admin", "system:masters"))
}

// start brings etcd and kube-apiserver up; it returns when the API server is ready.
func (cp *controlPlane) start(ctx context.Context, p *processes) error {
	etcd := fmt.Sprintf("https://127.0.0.1:%d", cp.etcdPort)
	data, endpoints := "/var/lib/etcd", "lease" // the node's own
	if cp.ip == "127.0.0.1" {
		data, endpoints = cp.path("etcd"), "none" // no pod will look for the Service "kubernetes", and a loopback address may not be its endpoint
	}
	p.start("etcd", cp.kube, "etcd", "--data-dir="+data, "--listen-client-url="+etcd,
		"--cert-file="+cp.cert("etcd.crt"), "--key-file="+cp.cert("etcd.key"), "--trusted-ca-file="+cp.cert("ca.crt"))
	// kube-apiserver waits for etcd by itself, but in steps of seconds.
	if err := p.await(ctx, "etcd", cp.probe("apiserver-etcd", etcd+"/readyz")); err != nil {
		return err
	}
	p.start("kube-apiserver", cp.kube, "kube-apiserver",
		"--etcd-servers="+etcd, "--etcd-cafile="+cp.cert("ca.crt"), "--etcd-certfile="+cp.cert("apiserver-etcd.crt"), "--etcd-keyfile="+cp.cert("apiserver-etcd.key"),
		"--bind-address="+cp.ip, "--advertise-address="+cp.ip, fmt.Sprint("--secure-port=", cp.port),
		"--service-cluster-ip-range="+serviceCIDR, "--endpoint-reconciler-type="+endpoints,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
		"--client-ca-file="+cp.cert("ca.crt"),
		"--tls-cert-file="+cp.cert("apiserver.crt"), "--tls-private-key-file="+cp.cert("apiserver.key"),
		"--kubelet-client-certificate="+cp.cert("apiserver-kubelet.crt"), "--kubelet-client-key="+cp.cert("apiserver-kubelet.key"),
		"--kubelet-certificate-authority="+cp.cert("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+cp.cert("sa.pub"), "--service-account-signing-key-file="+cp.cert("sa.key"),
		"--requestheader-client-ca-file="+cp.cert("ca.crt"), "--requestheader-allowed-names=front-proxy",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+cp.cert("front-proxy.crt"), "--proxy-client-key-file="+cp.cert("front-proxy.key"),
		"--profiling=false")
	return p.await(ctx, "kube-apiserver", cp.probe("client-kubeconfig", cp.server()+"/readyz"))
}

// probe returns a function that says whether url answers 200 to a client certificate.
func (cp *controlPlane) probe(cert, url string) func() bool {
	get := cp.client(cert)
	return func() bool { _, err := get("GET", url, ""); return err == nil }
}

// client makes HTTPS requests with one of the cluster's certificates. A status
// that is not 2xx is an error.
func (cp *controlPlane) client(cert string) func(method, url, body string) ([]byte, error) {
	pool := x509.NewCertPool()
	pool.AddCert(cp.pki.cert)
	pair, err := tls.LoadX509KeyPair(cp.cert(cert+".crt"), cp.cert(cert+".key"))
	c := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, ForceAttemptHTTP2: true}}
	return func(method, url, body string) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequest(method, url, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := c.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode/100 != 2 {
			err = fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, lastLine(b))
		}
		return b, err
	}
}

// processes starts components, each with its log, and starts one again that ends.
// While the cluster comes up an end is an error instead, which await returns.
type processes struct {
	logs   string
	env    []string
	files  []*os.File
	mu     sync.Mutex
	up     bool
	broken chan error
	done   chan struct{}
	wait   sync.WaitGroup
}

func newProcesses(logs string, env []string, files ...*os.File) *processes {
	// Loopback and node need no proxy, whatever the user's environment says.
	env = append(append(os.Environ(), "NO_PROXY=*", "no_proxy=*"), env...)
	return &processes{logs: logs, env: env, files: files, broken: make(chan error, 1), done: make(chan struct{})}
}

// start runs program until stop.
func (p *processes) start(name, program string, args ...string) {
	p.wait.Go(func() {
		for {
			err := p.run(name, program, args)
			select {
			case <-p.done:
				return
			default:
			}
			p.mu.Lock()
			up := p.up
			p.mu.Unlock()
			if !up {
				select {
				case p.broken <- err:
				default: // another was first
				}
				return
			}
			fmt.Printf("%s %s; starting it again\n", time.Now().Format(time.RFC3339), err)
			select {
			case <-p.done:
				return
			case <-time.After(500 * time.Millisecond):
			}
		}
	})
}

// run is one life of a component. Its error names the log and its last line.
func (p *processes) run(name, program string, args []string) error {
	path := filepath.Join(p.logs, name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 3 * time.Second // then SIGKILL
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.ExtraFiles = log, log, p.env, p.files
	err = cmd.Run()
	if err == nil {
		err = errors.New("exit status 0")
	}
	tail := make([]byte, 4096)
	if end, e := log.Seek(0, io.SeekEnd); e == nil {
		n, _ := log.ReadAt(tail, max(0, end-int64(len(tail))))
		tail = bytes.ToValidUTF8(tail[:n], nil)
	}
	return fmt.Errorf("%s ended (%w), see %s: %s", name, err, path, lastLine(tail))
}

// await waits until ok, for a minute at most, or until a component ends.
func (p *processes) await(ctx context.Context, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for !ok() {
		select {
		case err := <-p.broken:
			return err
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; see %s", what, ctx.Err(), p.logs)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// settled ends the coming up: from now on what ends is started again.
func (p *processes) settled() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up = true
	select {
	case err := <-p.broken:
		return err
	default:
		return nil
	}
}

// stop ends every component and waits for it.
func (p *processes) stop() {
	close(p.done)
	p.wait.Wait()
}
