package kubetest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// Authority signs certificates of pods, as the signer of a podCertificate does.
type Authority struct {
	Bundle []byte // its certificate, in PEM form

	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

var lastSerial atomic.Int64

// NewAuthority makes an authority that is valid for a day.
func NewAuthority(t testing.TB, name string) *Authority {
	t.Helper()
	a := &Authority{key: newKey(t)}
	template := &x509.Certificate{SerialNumber: big.NewInt(lastSerial.Add(1)), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err == nil {
		a.certificate, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	a.Bundle = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// PodCertificate is what a certificate says.
type PodCertificate struct {
	ID       string // URI, such as spiffe://cluster.local/ns/go-micro/sa/go-micro-srv
	Pod, UID string // "" for none
	Lifetime time.Duration
	Expired  bool
	Change   func(*x509.Certificate) // nil for none
}

// Issue returns a key and its certificate, in the form of a credential bundle. Without a lifetime it is valid for an hour.
func (a *Authority) Issue(t testing.TB, c PodCertificate) (bundle []byte) {
	t.Helper()
	id, err := url.Parse(c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if c.Lifetime == 0 {
		c.Lifetime = time.Hour
	}
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(lastSerial.Add(1)), URIs: []*url.URL{id}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore:   time.Now().Add(-time.Second), NotAfter: time.Now().Add(c.Lifetime - time.Second)}
	if c.Pod != "" {
		template.Subject = pkix.Name{CommonName: c.Pod}
	}
	if c.UID != "" {
		template.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57683, 2}, Value: c.UID}}
	}
	if c.Expired {
		template.NotBefore, template.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	if c.Change != nil {
		c.Change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Volume is a projected volume: a directory whose files are replaced at once.
type Volume struct {
	Dir   string
	Files map[string][]byte // by name

	number int
}

// NewVolume writes a volume with the credential bundle of a pod, and the trust bundle of authorities.
func NewVolume(t testing.TB, bundle []byte, authorities ...*Authority) *Volume {
	t.Helper()
	v := &Volume{Dir: t.TempDir(), Files: map[string][]byte{"credentialbundle.pem": bundle}}
	v.Trust(authorities...)
	v.Write(t)
	return v
}

// Trust puts authorities into the trust bundle, in the place of those of before.
func (v *Volume) Trust(authorities ...*Authority) {
	var all [][]byte
	for _, a := range authorities {
		all = append(all, a.Bundle)
	}
	v.Files["trustbundle.pem"] = bytes.Join(all, nil)
}

// Write replaces the files as the kubelet does (k8s.io/kubernetes/pkg/volume/util/atomic_writer.go): by another target of ..data.
func (v *Volume) Write(t testing.TB) {
	t.Helper()
	v.number++
	name := fmt.Sprintf("..%d", v.number)
	err := os.Mkdir(filepath.Join(v.Dir, name), 0o700)
	for file, content := range v.Files {
		err = errors.Join(err, os.WriteFile(filepath.Join(v.Dir, name, file), content, 0o600))
		if _, missing := os.Lstat(filepath.Join(v.Dir, file)); missing != nil {
			err = errors.Join(err, os.Symlink(filepath.Join("..data", file), filepath.Join(v.Dir, file)))
		}
	}
	err = errors.Join(err, os.Symlink(name, filepath.Join(v.Dir, "..data_tmp")), os.Rename(filepath.Join(v.Dir, "..data_tmp"), filepath.Join(v.Dir, "..data")))
	if v.number > 1 {
		err = errors.Join(err, os.RemoveAll(filepath.Join(v.Dir, fmt.Sprintf("..%d", v.number-1))))
	}
	if err != nil {
		t.Fatal(err)
	}
}
