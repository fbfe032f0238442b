package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/pki"
)

// controlPlane runs etcd and kube-apiserver of a cluster, with or without a node.
type controlPlane struct {
	*cluster
	kube      string // directory that contains the programs of Kubernetes
	apiServer string // another kube-apiserver, or "" for the one in kube
	ip        string // address on which kube-apiserver listens and to which the other components connect
	network   network
	port      int
	etcdPort  int
	pki       *pki.Authority
}

func (cp *controlPlane) server() string          { return "https://" + hostPort(cp.ip, cp.port) }
func (cp *controlPlane) etc(name string) string  { return cp.path("etc", name) }
func (cp *controlPlane) cert(name string) string { return cp.path("pki", name) }

// writeFiles writes the keys and the user's kubeconfig.
func (cp *controlPlane) writeFiles() (err error) {
	for _, d := range []string{"etc", "log"} {
		if err := os.MkdirAll(cp.path(d), 0o755); err != nil {
			return err
		}
	}
	if cp.pki, err = pki.New(cp.path("pki")); err != nil {
		return err
	}
	err = cp.pki.Issue("apiserver", "kube-apiserver", nil, "127.0.0.1", "localhost", cp.ip, cp.network[0].ServiceIP,
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	return errors.Join(err,
		cp.pki.Issue("etcd", "etcd", nil, "127.0.0.1"),
		cp.pki.Issue("apiserver-etcd", "kube-apiserver", nil),
		cp.pki.Issue("apiserver-kubelet", "kube-apiserver", []string{"system:masters"}),
		cp.pki.Issue("front-proxy", "front-proxy", nil),
		cp.pki.Kubeconfig(cp.path("kubeconfig"), cp.server(), "admin", "system:masters"))
}

// start starts etcd and kube-apiserver and returns when the API server is ready.
func (cp *controlPlane) start(ctx context.Context, p *components) error {
	etcd := fmt.Sprintf("https://127.0.0.1:%d", cp.etcdPort)
	data, endpoints := "/var/lib/etcd", "lease"
	if cp.ip == "127.0.0.1" { // an endpoint may not be a loopback address, and without a node no pod uses the Service "kubernetes"
		data, endpoints = cp.path("etcd"), "none"
	}
	p.start("etcd", filepath.Join(cp.kube, "etcd"), "--data-dir="+data, "--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls=https://127.0.0.1:0", // there are no peers, but etcd always listens for them
		"--cert-file="+cp.cert("etcd.crt"), "--key-file="+cp.cert("etcd.key"), "--trusted-ca-file="+cp.cert("ca.crt"), "--client-cert-auth",
		"--peer-cert-file="+cp.cert("etcd.crt"), "--peer-key-file="+cp.cert("etcd.key"), "--peer-trusted-ca-file="+cp.cert("ca.crt"), "--peer-client-cert-auth",
		"--unsafe-no-fsync",                                       // the data is deleted with the cluster
		"--watch-progress-notify-interval=5s",                     // as kubeadm sets it: watches of pods that do not change get bookmarks
		"--log-level=warn", "--warning-unary-request-duration=1s") // a busy laptop exceeds the default of 300 ms
	// kube-apiserver would also wait for etcd, but its retries are seconds apart.
	if err := p.await(ctx, "etcd", cp.probe("apiserver-etcd", etcd+"/readyz")); err != nil {
		return err
	}
	p.start("kube-apiserver", cmp.Or(cp.apiServer, filepath.Join(cp.kube, "kube-apiserver")),
		"--etcd-servers="+etcd, "--etcd-cafile="+cp.cert("ca.crt"), "--etcd-certfile="+cp.cert("apiserver-etcd.crt"), "--etcd-keyfile="+cp.cert("apiserver-etcd.key"),
		"--bind-address="+cp.ip, "--advertise-address="+cp.ip, fmt.Sprint("--secure-port=", cp.port),
		"--service-cluster-ip-range="+cp.network.serviceCIDRs(), "--endpoint-reconciler-type="+endpoints,
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

// probe returns a function that reports whether a request to url returns a status of 2xx.
func (cp *controlPlane) probe(cert, url string) func() bool {
	request := cp.client(cert)
	return func() bool { _, err := request("GET", url, ""); return err == nil }
}

// client returns a function that makes HTTPS requests with one of the cluster's
// client certificates. A status other than 2xx is an error.
func (cp *controlPlane) client(cert string) func(method, url, body string) ([]byte, error) {
	config, err := cp.pki.ClientConfig(cert)
	c := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
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
