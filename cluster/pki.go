package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki is the certificate authority of one cluster. Its certificates are valid for
// a year; its files are deleted with the cluster.
type pki struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newPKI makes the certificate authority and the key that signs service account tokens.
func newPKI(dir string) (*pki, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	p := &pki{dir: dir}
	if err := p.issue("ca", "k8s-micro", nil); err != nil {
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
	if err := p.writeKey("sa.key", key); err != nil {
		return nil, err
	}
	return p, p.writePEM("sa.pub", "PUBLIC KEY", public)
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

// issue writes name.crt and name.key, a certificate for clients and servers with
// the common name cn, the organizations orgs and the names or addresses hosts. The
// first call makes the certificate authority itself.
func (p *pki) issue(name, cn string, orgs []string, hosts ...string) error {
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
	parent, signer := p.cert, p.key
	if parent == nil {
		t.IsCA, t.ExtKeyUsage, t.KeyUsage = true, nil, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		parent, signer = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
	if err != nil {
		return fmt.Errorf("signing certificate %q: %w", name, err)
	}
	if p.cert == nil {
		if p.cert, err = x509.ParseCertificate(der); err != nil {
			return err
		}
		p.key = key
	}
	if err := p.writePEM(name+".crt", "CERTIFICATE", der); err != nil {
		return err
	}
	return p.writeKey(name+".key", key)
}

// kubeconfig issues a client certificate and writes the kubeconfig that uses it.
func (p *pki) kubeconfig(path, server, user string, orgs ...string) error {
	name := "client-" + filepath.Base(path)
	if err := p.issue(name, user, orgs); err != nil {
		return err
	}
	data := struct{ Server, User, CA, Cert, Key string }{Server: server, User: user}
	for file, field := range map[string]*string{"ca.crt": &data.CA, name + ".crt": &data.Cert, name + ".key": &data.Key} {
		b, err := os.ReadFile(p.path(file))
		if err != nil {
			return err
		}
		*field = base64.StdEncoding.EncodeToString(b)
	}
	text, err := expand("templates/kubeconfig.yaml", data)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

func (p *pki) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return p.writePEM(name, "EC PRIVATE KEY", der)
}

func (p *pki) writePEM(name, kind string, der []byte) error {
	return os.WriteFile(p.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
