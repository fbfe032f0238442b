package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

const (
	caFile    = "ca.pem"
	authority = "go-micro.local pod signer" // common name

	lifetime  = time.Hour       // the API's minimum
	clockSkew = 2 * time.Minute // a certificate is valid so much earlier; the API allows 5 minutes
)

// podUID is the attribute of a subject for the UID of a pod: X509UID of k8s.io/apimachinery/pkg/apis/asn1.
var podUID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57683, 2}

// CA is the signer's certificate authority.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// OpenCA reads the certificate authority of a directory, and makes it if there is none. It is valid for a year; that of the demo is
// deleted with the cluster.
func OpenCA(dir string) (*CA, error) {
	path := filepath.Join(dir, caFile)
	pair, err := tls.LoadX509KeyPair(path, path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = writeCA(dir, path, time.Now()); err == nil {
			pair, err = tls.LoadX509KeyPair(path, path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the signer's certificate authority %q: %w", path, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("opening the signer's certificate authority %q: its key cannot sign", path)
	}
	return &CA{pair.Leaf, key}, nil
}

// writeCA writes a new key and its certificate to one file, which only its owner can read.
func writeCA(dir, path string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: authority},
		NotBefore: now.Add(-clockSkew), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageCertSign,
		IsCA:     true, BasicConstraintsValid: true, MaxPathLenZero: true, // it signs no other authority
	}
	cert, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	text := append(certificatePEM(cert), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	if err := os.WriteFile(path+".part", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".part", path)
}

// bundle returns what the ClusterTrustBundle contains.
func (ca *CA) bundle() []byte { return certificatePEM(ca.cert.Raw) }

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// spiffeID returns the identity of a request. It consists only of fields that the API server checks.
func spiffeID(r request) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: trustDomain, Path: "/ns/" + r.Metadata.Namespace + "/sa/" + r.Spec.ServiceAccountName}
}

// decide returns the answer to a request. It issues a certificate, or denies the request, or says that it failed.
func (s *Signer) decide(r request) status {
	now := s.now()
	if len(r.Spec.UnverifiedUserAnnotations) > 0 {
		return refused(now, "Denied", "InvalidUnverifiedUserAnnotations", "this signer knows no userAnnotations: the identity of a pod is that of its service account")
	}
	csr, err := x509.ParseCertificateRequest(r.Spec.StubPKCS10Request)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return refused(now, "Failed", "UnreadableRequest", "reading the field stubPKCS10Request: "+err.Error())
	}
	switch key := csr.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() && key.Curve != elliptic.P521() {
			return unsupportedKey(now)
		}
	default:
		return unsupportedKey(now)
	}
	if r.Metadata.Namespace == "" || r.Spec.ServiceAccountName == "" || r.Spec.PodName == "" || r.Spec.PodUID == "" {
		return refused(now, "Failed", "UnreadableRequest", "the request names no pod or no service account")
	}
	cert, err := s.ca.issue(r, csr.PublicKey, now)
	if err != nil {
		return refused(now, "Failed", "SigningFailed", err.Error())
	}
	refresh := cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2)
	return status{
		Conditions:       []condition{{"Issued", "True", "Issued", "valid until " + cert.NotAfter.Format(time.RFC3339), now.UTC().Truncate(time.Second)}},
		CertificateChain: string(certificatePEM(cert.Raw)), NotBefore: &cert.NotBefore, BeginRefreshAt: &refresh, NotAfter: &cert.NotAfter,
	}
}

func unsupportedKey(now time.Time) status {
	return refused(now, "Denied", "UnsupportedKeyType", "this signer wants an elliptic curve: set keyType to ECDSAP256, ECDSAP384, ECDSAP521 or ED25519")
}

func refused(now time.Time, kind, reason, message string) status {
	return status{Conditions: []condition{{kind, "True", reason, message, now.UTC().Truncate(time.Second)}}}
}

// issue makes the certificate of a request.
func (ca *CA) issue(r request, key crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	seconds := time.Duration(r.Spec.MaxExpirationSeconds) * time.Second // the API server sets it, to an hour at least
	notBefore := now.Add(-clockSkew).UTC().Truncate(time.Second)
	t := &x509.Certificate{
		Subject: pkix.Name{
			CommonName: r.Spec.PodName,
			ExtraNames: []pkix.AttributeTypeAndValue{{Type: podUID, Value: r.Spec.PodUID}},
		},
		URIs:      []*url.URL{spiffeID(r)},
		NotBefore: notBefore, NotAfter: notBefore.Add(min(seconds, lifetime)),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if t.NotAfter.After(ca.cert.NotAfter) {
		return nil, errors.New("the signer's certificate authority expires: remove its directory, and the signer makes another one")
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, key, ca.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
