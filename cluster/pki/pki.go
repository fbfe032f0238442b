// Package pki is the certificate authority of a cluster. It writes the keys and certificates
// of the components, and the kubeconfigs of the clients.
//
//	authority, err := pki.New(dir)
//	err = authority.Issue("apiserver", "kube-apiserver", nil, "127.0.0.1", "localhost")
//	err = authority.Kubeconfig(path, "https://127.0.0.1:6443", "admin", "system:masters")
//
// Everybody who can read the directory can become an administrator of the cluster, so only
// its owner can. Certificates are valid for a year, and are deleted with the cluster.
package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"text/template"
	"time"
)

//go:embed kubeconfig.yaml
var kubeconfigText string

var kubeconfig = template.Must(template.New("kubeconfig.yaml").Parse(kubeconfigText))

// Authority is the certificate authority of one cluster.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes the certificate authority, ca.crt and ca.key, and the key that signs the tokens
// of service accounts, sa.key and sa.pub.
func New(dir string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &Authority{dir: dir}
	if err := a.Issue("ca", "k8s-micro", nil); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	if err := a.writeKey("sa.key", key); err != nil {
		return nil, err
	}
	return a, a.writePEM("sa.pub", "PUBLIC KEY", public)
}

func (a *Authority) path(name string) string { return filepath.Join(a.dir, name) }

// Issue writes name.crt and name.key, a certificate for clients and servers with
// the common name cn, the organizations orgs and the names or addresses hosts. The
// first call makes the certificate authority itself.
func (a *Authority) Issue(name, cn string, orgs []string, hosts ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return err
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: cn, Organization: orgs},
		NotBefore:    time.Now().Add(-time.Minute), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		t.IsCA, t.ExtKeyUsage, t.KeyUsage = true, nil, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		parent, signer = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
	if err != nil {
		return fmt.Errorf("signing certificate %q: %w", name, err)
	}
	if a.cert == nil {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			return err
		}
		a.key = key
	}
	if err := a.writePEM(name+".crt", "CERTIFICATE", der); err != nil {
		return err
	}
	return a.writeKey(name+".key", key)
}

// Kubeconfig issues a client certificate and writes the kubeconfig that uses it.
func (a *Authority) Kubeconfig(path, server, user string, orgs ...string) error {
	name := "client-" + filepath.Base(path)
	if err := a.Issue(name, user, orgs); err != nil {
		return err
	}
	data := struct{ Server, User, CA, Cert, Key string }{Server: server, User: user}
	for file, field := range map[string]*string{"ca.crt": &data.CA, name + ".crt": &data.Cert, name + ".key": &data.Key} {
		b, err := os.ReadFile(a.path(file))
		if err != nil {
			return err
		}
		*field = base64.StdEncoding.EncodeToString(b)
	}
	var text bytes.Buffer
	if err := kubeconfig.Execute(&text, data); err != nil {
		return err
	}
	return os.WriteFile(path, text.Bytes(), 0o600)
}

// ClientConfig returns the configuration of a TLS client that has the certificate name and
// trusts the servers of the cluster.
func (a *Authority) ClientConfig(name string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(a.path(name+".crt"), a.path(name+".key"))
	if err != nil {
		return nil, err
	}
	trusted := x509.NewCertPool()
	trusted.AddCert(a.cert)
	return &tls.Config{RootCAs: trusted, Certificates: []tls.Certificate{pair}}, nil
}

func (a *Authority) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return a.writePEM(name, "EC PRIVATE KEY", der)
}

func (a *Authority) writePEM(name, kind string, der []byte) error {
	return os.WriteFile(a.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
