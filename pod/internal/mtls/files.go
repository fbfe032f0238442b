package mtls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/credentials"
)

// The names of the files.
const (
	credentialBundle = "credentialbundle.pem" // key and chain in one file, as the kubelet writes a podCertificate (KEP-4317)
	trustBundle      = "trustbundle.pem"      // a clusterTrustBundle (KEP-3257)
	keyFile          = "tls.key"              // these three as in Secrets of the type kubernetes.io/tls, and from csi-driver-spiffe
	certificateFile  = "tls.crt"
	authorityFile    = "ca.crt"
	callersFile      = "callers"

	maxFile = 1 << 20 // bytes
)

// files are the contents of a directory at one moment.
type files struct {
	key, certificate, authorities []byte
	callers                       []byte // nil if there is no list
}

func (f files) equal(g files) bool {
	return bytes.Equal(f.key, g.key) && bytes.Equal(f.certificate, g.certificate) && bytes.Equal(f.authorities, g.authorities) &&
		bytes.Equal(f.callers, g.callers) && (f.callers == nil) == (g.callers == nil)
}

// readFiles reads the files of a directory. The kubelet replaces all files of a volume at once, by another target of the link
// ..data; readFiles reads them all below one target.
func readFiles(dir string) (f files, err error) {
	for range 2 { // the kubelet removes the old target
		target, linkErr := filepath.EvalSymlinks(filepath.Join(dir, "..data"))
		if linkErr != nil {
			target = dir
		}
		if f, err = readTarget(target); !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	if _, dirErr := os.Stat(dir); dirErr != nil {
		return f, dirErr
	}
	return f, fmt.Errorf("%w: the directory needs %s, or %s and %s, and %s or %s", err, credentialBundle, keyFile, certificateFile, trustBundle, authorityFile)
}

func readTarget(dir string) (f files, err error) {
	read := func(names ...string) (b []byte) { // the first of the files that exists
		for _, name := range names {
			if err != nil {
				return nil
			}
			if b, err = readFile(filepath.Join(dir, name)); err == nil || !errors.Is(err, fs.ErrNotExist) || name == names[len(names)-1] {
				return b
			}
			err = nil
		}
		return nil
	}
	f.certificate = read(credentialBundle, certificateFile)
	f.key = read(credentialBundle, keyFile)
	f.authorities = read(trustBundle, authorityFile)
	if err != nil {
		return f, err
	}
	if f.callers = read(callersFile); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return f, err
}

func readFile(path string) ([]byte, error) {
	r, err := os.Open(path) //nolint:gosec // the directory is configuration
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("reading %s: it has more than %d bytes", path, maxFile)
	}
	return b, err
}

// set is what the files of one moment mean. It is immutable.
type set struct {
	files       files
	id          ID // of this process
	certificate tls.Certificate
	leaf        *x509.Certificate
	authorities *x509.CertPool
	callers     callers
	server      credentials.TransportCredentials
}

// newSet returns the set of files. It refuses a certificate that its own authorities do not confirm now, because
// all others would refuse it, too.
func newSet(f files, now func() time.Time) (s *set, err error) {
	s = &set{files: f, authorities: x509.NewCertPool()}
	if s.certificate, err = tls.X509KeyPair(f.certificate, f.key); err != nil {
		return nil, fmt.Errorf("reading the certificate and its key: %w", err)
	}
	s.leaf = s.certificate.Leaf
	if n := addCertificates(s.authorities, f.authorities); n == 0 {
		return nil, errors.New("reading the trust bundle: it has no certificate")
	}
	chain := []*x509.Certificate{s.leaf}
	for _, der := range s.certificate.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("reading the certificate chain: %w", err)
		}
		chain = append(chain, c)
	}
	if s.id, err = idOf(s.leaf); err != nil {
		return nil, fmt.Errorf("using the own certificate: %w", err)
	}
	if s.id.Account == "" {
		return nil, fmt.Errorf("using the own certificate: its ID %s is not of the form %sTRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT", s.id.URI, scheme)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err = s.verify(chain, usage, now()); err != nil {
			return nil, fmt.Errorf("using the own certificate: %w", err)
		}
	}
	if s.callers = (callers{own: s.id}); f.callers != nil {
		s.callers = parseCallers(s.id, f.callers)
	}
	s.server = credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.certificate}, Time: now,
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: s.authorities,
		SessionTicketsDisabled: true, // a session would outlive the certificate that began it
		VerifyConnection: func(c tls.ConnectionState) error { // after crypto/tls has verified the chain
			_, err := s.peerID(c.PeerCertificates[0])
			return err
		},
	})
	return s, nil
}

// addCertificates adds the certificates of a PEM file to a pool, and returns how many there are.
func addCertificates(pool *x509.CertPool, text []byte) (n int) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return n
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			pool.AddCert(c)
			n++
		}
	}
}

// verify returns the ID of the peer that has sent a chain of certificates, the first of which is its own, and an error that says
// why it is not to be trusted.
func (s *set) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (ID, error) {
	if len(chain) == 0 {
		return ID{}, errors.New("it sent no certificate")
	}
	leaf := chain[0]
	id, err := s.peerID(leaf)
	if err != nil {
		return ID{}, err
	}
	o := x509.VerifyOptions{Roots: s.authorities, Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err = leaf.Verify(o); err != nil {
		return ID{}, fmt.Errorf("%s: %w", id.URI, explain(leaf, err, now))
	}
	return id, nil
}

// peerID returns the ID of a certificate, which must be of the own trust domain: the authorities may vouch for no other.
func (s *set) peerID(leaf *x509.Certificate) (ID, error) {
	id, err := idOf(leaf)
	if err == nil && id.TrustDomain != s.id.TrustDomain {
		err = fmt.Errorf("%s is of another trust domain than %s", id.URI, s.id.TrustDomain)
	}
	return id, err
}

// explain returns why a certificate was not verified, without what changes from second to second.
func explain(leaf *x509.Certificate, err error, now time.Time) error {
	var unknown x509.UnknownAuthorityError
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate is not valid before %s", leaf.NotBefore.UTC().Format(time.RFC3339))
	case errors.As(err, &unknown):
		return fmt.Errorf("the certificate is signed by %.100q, which is not in the trust bundle", leaf.Issuer.String())
	}
	return err
}

// idOf returns the SPIFFE ID of a certificate.
// https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md
func idOf(c *x509.Certificate) (ID, error) {
	switch {
	case len(c.URIs) != 1: // X509-SVID, 2: "An X.509 SVID MUST contain exactly one URI SAN"
		return ID{}, fmt.Errorf("the certificate has %d URIs, and a SPIFFE ID is the only one", len(c.URIs))
	case c.IsCA: // X509-SVID, 4.1
		return ID{}, errors.New("the certificate is that of an authority")
	}
	return ParseID(c.URIs[0].String())
}

// oidPodUID is the type of the attribute of a subject that contains the uid of the pod: X509UID in k8s.io/apimachinery/pkg/apis/asn1.
var oidPodUID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57683, 2}

// podOf returns the name and the uid of the pod to which a certificate was issued, "" if it has no uid. Without
// a uid, the common name may be anything.
func podOf(c *x509.Certificate) (name, uid string) {
	for _, a := range c.Subject.Names {
		if text, ok := a.Value.(string); ok && a.Type.Equal(oidPodUID) {
			return c.Subject.CommonName, text
		}
	}
	return "", ""
}
