package pod

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"

	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
)

// newTestClient returns a Client that knows greeters at addresses, and its informer.
func newTestClient(t testing.TB, addresses []string, opts ...client.Option) (*Client, *informer) {
	t.Helper()
	r, inf := newStaticRegistry(t, 0)
	inf.Replace(readyPodsAt(t, addresses...))
	for _, name := range []string{"other", "go.micro.proxy", "go.micro.network"} { // services without instances
		none := newInformer(name, &r.instances)
		none.Replace(nil)
		r.informers[name] = none
	}
	c := NewClient(r, grpcc.NewClient(opts...))
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, inf
}

func TestClientCalls(t *testing.T) {
	a, _ := startServer(t, answer)
	c, _ := newTestClient(t, []string{a})
	rsp, err := proto.NewGreeterService("greeter", c).Hello(t.Context(), &proto.HelloRequest{Name: "x"})
	if err != nil || rsp.Greeting != "Hello" {
		t.Fatal(rsp, err)
	}
	time.Sleep(10 * time.Millisecond)
}

// testCertificate returns the TLS configurations of a server at 127.0.0.1 and of a client
// that trusts it.
func testCertificate(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: pool}
}
