package mtls

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestRefusesOthers calls a server 100 times as each kind of caller that it must refuse, each time over a new connection.
func TestRefusesOthers(t *testing.T) {
	kubetest.CheckNoLeak(t)
	authority, other := kubetest.NewAuthority(t, "the authority"), kubetest.NewAuthority(t, "another signer")
	volume := kubetest.NewVolume(t, authority.Issue(t, kubetest.PodCertificate{ID: ofServer}), authority)
	volume.Files["callers"] = []byte("page # the live page\n")
	volume.Write(t)

	// as returns the credentials of a client with a certificate that does not verify the server.
	as := func(bundle []byte) func() credentials.TransportCredentials {
		c := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
		if bundle != nil {
			pair, err := tls.X509KeyPair(bundle, bundle)
			if err != nil {
				t.Fatal(err)
			}
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		return func() credentials.TransportCredentials { return credentials.NewTLS(c) }
	}
	issue := func(a *kubetest.Authority, c kubetest.PodCertificate) func() credentials.TransportCredentials {
		return as(a.Issue(t, c))
	}
	for _, attack := range []struct {
		name        string
		credentials func() credentials.TransportCredentials
		err, log    string
	}{
		{"without a certificate", as(nil), "tls: certificate required", "didn't provide a certificate"},
		{"of another signer", issue(other, kubetest.PodCertificate{ID: ofClient}), "tls: unknown certificate authority", `signed by "CN=another signer", which is not in the trust bundle`},
		{"expired", issue(authority, kubetest.PodCertificate{ID: ofClient, Expired: true}), "tls: expired certificate", ofClient + ": the certificate expired at "},
		{"of another account", issue(authority, kubetest.PodCertificate{ID: "spiffe://cluster.local/ns/shop/sa/thief"}), "greeter refuses calls of spiffe://cluster.local/ns/shop/sa/thief: it is not in the list of callers", "sa/thief: it is not in the list"},
		{"of another namespace", issue(authority, kubetest.PodCertificate{ID: "spiffe://cluster.local/ns/other/sa/page"}), "ns/other/sa/page: it is not in the list of callers", "ns/other/sa/page: it is not in the list"},
		{"of another trust domain", issue(authority, kubetest.PodCertificate{ID: "spiffe://elsewhere/ns/shop/sa/page"}), "tls: bad certificate", "of another trust domain than cluster.local"},
		{"with an ID that looks the same", issue(authority, kubetest.PodCertificate{ID: "spiffe://cluster.local/ns/shop/sa/page/"}), "tls: bad certificate", "is no SPIFFE ID"},
		{"with two IDs", issue(authority, kubetest.PodCertificate{ID: ofClient, Change: func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }}), "tls: bad certificate", "the certificate has 2 URIs"},
		{"of a server", issue(authority, kubetest.PodCertificate{ID: ofClient, Change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }}), "tls: bad certificate", "incompatible key usage"},
		{"plaintext", func() credentials.TransportCredentials { return nil }, "greeter speaks TLS only: ", "it speaks plaintext"},
	} {
		t.Run(attack.name, func(t *testing.T) {
			server := newProcess(t, volume)
			address := serve(t, server.Server()...)
			refuse := func() {
				conn := dial(t, address, attack.credentials())
				defer conn.Close()
				if err := greet(t, conn); err == nil || !strings.Contains(err.Error(), attack.err) {
					t.Fatalf("the error is %v, want %q", err, attack.err)
				}
			}
			for range 100 {
				refuse()
			}
			kubetest.Eventually(t, within, "the server has counted 100 refusals", func() error {
				server.refusals.mu.Lock()
				defer server.refusals.mu.Unlock()
				for _, k := range server.refusals.keys {
					if k.skipped != 99 {
						return fmt.Errorf("%d after the first", k.skipped)
					}
				}
				return nil
			})
			if all := server.log.with(); len(all) != 1 || len(server.log.with(attack.log)) != 1 {
				t.Errorf("the log of 100 refused calls has %q, want one line with %q", all, attack.log)
			}
			server.clock.advance(logPause)
			refuse()
			kubetest.Eventually(t, within, "the log has the next line after a minute", func() error {
				if len(server.log.with(attack.log, "(and 99 times more since the last line)")) != 1 {
					return fmt.Errorf("%q", server.log.with())
				}
				return nil
			})
		})
	}
	server := newProcess(t, volume)
	address := serve(t, server.Server()...)
	if err := greet(t, dial(t, address, newPod(t, authority, ofClient).Client(Callee{Service: "greeter"}))); err != nil {
		t.Error("a permitted caller:", err)
	}
	if lines := server.log.with(ofClient + " calls this service"); len(lines) != 1 {
		t.Errorf("the log of the server names the caller in %q", lines)
	}
}

// TestClientRefusesImpostors calls servers that are not the service that the client asks for.
func TestClientRefusesImpostors(t *testing.T) {
	kubetest.CheckNoLeak(t)
	authority, other := kubetest.NewAuthority(t, "the authority"), kubetest.NewAuthority(t, "another signer")
	client := newPod(t, authority, ofClient, func(c *Config) { c.Account = map[string]string{"old-greeter": "greeter"} })
	for _, attack := range []struct {
		name   string
		signer *kubetest.Authority
		is     kubetest.PodCertificate
		to     Callee
		err    string
	}{
		{"another account", authority, kubetest.PodCertificate{ID: "spiffe://cluster.local/ns/shop/sa/thief"}, Callee{Service: "greeter"}, "it is spiffe://cluster.local/ns/shop/sa/thief, and greeter is spiffe://cluster.local/ns/shop/sa/greeter"},
		{"another namespace", authority, kubetest.PodCertificate{ID: "spiffe://cluster.local/ns/other/sa/greeter"}, Callee{Service: "greeter"}, "it is spiffe://cluster.local/ns/other/sa/greeter"},
		{"another signer", other, kubetest.PodCertificate{ID: ofServer}, Callee{Service: "greeter"}, `signed by "CN=another signer", which is not in the trust bundle`},
		{"another pod", authority, kubetest.PodCertificate{ID: ofServer, Pod: "greeter-2", UID: "2"}, Callee{Service: "greeter", Pod: "greeter-1", PodUID: "2"}, `it is pod "greeter-2"`},
		{"the pod before", authority, kubetest.PodCertificate{ID: ofServer, Pod: "greeter-0", UID: "1"}, Callee{Service: "greeter", Pod: "greeter-0", PodUID: "2"}, `with uid "1"`},
		{"of a client", authority, kubetest.PodCertificate{ID: ofServer, Change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }}, Callee{Service: "greeter"}, "incompatible key usage"},
	} {
		t.Run(attack.name, func(t *testing.T) {
			bundle := attack.signer.Issue(t, attack.is)
			pair, err := tls.X509KeyPair(bundle, bundle)
			if err != nil {
				t.Fatal(err)
			}
			address := serve(t, grpc.Creds(credentials.NewServerTLSFromCert(&pair)))
			attack.to.Address = address
			for range 100 {
				checkRefused(t, dial(t, address, client.Client(attack.to)), "not calling greeter at "+address, attack.err)
			}
		})
	}
	address := serve(t, newProcess(t, kubetest.NewVolume(t, authority.Issue(t, kubetest.PodCertificate{ID: ofServer, Pod: "greeter-0", UID: "7"}), authority)).Server()...)
	for _, to := range []Callee{{Service: "greeter"}, {Service: "old-greeter"}, {Service: "greeter", Pod: "greeter-0", PodUID: "7"}} {
		if err := greet(t, dial(t, address, client.Client(to))); err != nil {
			t.Errorf("calling %+v: %v", to, err)
		}
	}
}

// TestPlaintextAndTLS has an error that says so, within a second: plaintext to a port of TLS, and TLS to a port of plaintext.
func TestPlaintextAndTLS(t *testing.T) {
	kubetest.CheckNoLeak(t)
	authority := kubetest.NewAuthority(t, "the authority")
	server, client := newPod(t, authority, ofServer), newPod(t, authority, ofClient)
	var took []time.Duration
	address := serve(t, server.Server()...)
	for range 9 {
		took = append(took, checkRefused(t, dial(t, address, nil), "greeter speaks TLS only: ", "code = Unauthenticated"))
	}
	if lines := server.log.with("refusing calls of 127.0.0.1: it speaks plaintext"); len(lines) != 1 {
		t.Errorf("the log of the server has %q", lines)
	}
	address = serve(t)
	for range 9 {
		took = append(took, checkRefused(t, dial(t, address, client.Client(Callee{Service: "greeter", Address: address})), "greeter at "+address+" speaks plaintext, and this process speaks TLS only"))
	}
	for _, took := range [][]time.Duration{took[:9], took[9:]} {
		slices.Sort(took)
		t.Logf("refused after %v", took)
		if took[4] > time.Second {
			t.Errorf("half of the refusals took longer than %v, want at most 1 s", took[4])
		}
	}
}

// TestPlaintextIsRefusedWithReason makes calls in plaintext for longer than the server keeps such a connection. All learn why they are refused.
func TestPlaintextIsRefusedWithReason(t *testing.T) {
	kubetest.CheckNoLeak(t)
	address := serve(t, newPod(t, kubetest.NewAuthority(t, "the authority"), ofServer).Server()...)
	var callers sync.WaitGroup
	var refused atomic.Int64
	for range maxRefused / 2 { // so that there is room for a new connection beside each
		conn := dial(t, address, nil)
		callers.Go(func() {
			for end := time.Now().Add(2 * refusedTime); time.Now().Before(end); {
				if err := greet(t, conn); err == nil || !strings.Contains(err.Error(), "greeter speaks TLS only: ") {
					t.Errorf("after %d calls the error is %v", refused.Load(), err)
					return
				}
				refused.Add(1)
			}
		})
	}
	callers.Wait()
	t.Logf("%d calls were refused", refused.Load())
}

// TestManyPlaintextConnections checks that the answers to them are bounded, and that they end.
func TestManyPlaintextConnections(t *testing.T) {
	kubetest.CheckNoLeak(t)
	authority := kubetest.NewAuthority(t, "the authority")
	server, client := newPod(t, authority, ofServer), newPod(t, authority, ofClient)
	address := serve(t, server.Server()...)
	var conns []net.Conn
	for range 3 * maxRefused {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	if err := greet(t, dial(t, address, client.Client(Callee{Service: "greeter"}))); err != nil {
		t.Error("a permitted caller meanwhile:", err)
	}
	for _, conn := range conns {
		_ = conn.SetDeadline(time.Now().Add(4 * refusedTime))
		if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Fatal("a plaintext connection stays open")
		}
	}
}

// recorder passes a connection on and keeps what it has carried.
func record(t *testing.T, address string) (through string, carried func() []byte) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all bytes.Buffer
	var running sync.WaitGroup
	running.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
				running.Go(func() {
					defer way[1].Close()
					b := make([]byte, 32<<10)
					for {
						n, err := way[0].Read(b)
						mu.Lock()
						all.Write(b[:n])
						mu.Unlock()
						if _, writeErr := way[1].Write(b[:n]); err != nil || writeErr != nil {
							return
						}
					}
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return l.Addr().String(), func() []byte {
		mu.Lock()
		defer mu.Unlock()
		return bytes.Clone(all.Bytes())
	}
}

// TestNothingInClear looks for names in the bytes of connections: greeting, name, path of the method, account, authority.
func TestNothingInClear(t *testing.T) {
	kubetest.CheckNoLeak(t)
	authority := kubetest.NewAuthority(t, "the authority")
	texts := []string{"Hello", "Ada", "Greeter", "greeter", "page", "cluster.local", "the authority"}
	find := func(b []byte) (found []string) {
		for _, text := range texts {
			if bytes.Contains(b, []byte(text)) {
				found = append(found, text)
			}
		}
		return found
	}
	address, carried := record(t, serve(t, newPod(t, authority, ofServer).Server()...))
	conn := dial(t, address, newPod(t, authority, ofClient).Client(Callee{Service: "greeter", Address: "greeter:9100"}))
	for range 10 {
		if err := greet(t, conn); err != nil {
			t.Fatal(err)
		}
	}
	conn.Close()
	if found := find(carried()); len(found) > 0 || len(carried()) < 2000 {
		t.Errorf("%d bytes have %q in clear", len(carried()), found)
	}

	address, carried = record(t, serve(t))
	conn = dial(t, address, nil)
	if err := greet(t, conn); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if found := find(carried()); len(found) < 2 {
		t.Errorf("the search finds only %q in plaintext", found)
	}
}

// TestPermissive has both kinds of clients on one port, and refuses the same certificates as without.
func TestPermissive(t *testing.T) {
	kubetest.CheckNoLeak(t)
	authority, other := kubetest.NewAuthority(t, "the authority"), kubetest.NewAuthority(t, "another signer")
	server := newPod(t, authority, ofServer, permissive)
	address := serve(t, server.Server()...)
	if err := greet(t, dial(t, address, nil)); err != nil {
		t.Error("plaintext:", err)
	}
	if lines := server.log.with("127.0.0.1 calls in plaintext, which the mode strict refuses"); len(lines) != 1 {
		t.Errorf("the log has %q", lines)
	}
	if err := greet(t, dial(t, address, newPod(t, authority, ofClient).Client(Callee{Service: "greeter"}))); err != nil {
		t.Error("TLS:", err)
	}
	volume := kubetest.NewVolume(t, other.Issue(t, kubetest.PodCertificate{ID: ofClient}), other)
	volume.Trust(other, authority)
	volume.Write(t)
	checkRefused(t, dial(t, address, newProcess(t, volume).Client(Callee{Service: "greeter", Address: address})), "greeter at "+address+" does not accept the certificate of this process: remote error: tls: unknown certificate authority")
	checkRefused(t, dial(t, address, newPod(t, authority, "spiffe://cluster.local/ns/other/sa/page").Client(Callee{Service: "greeter"})), "not calling greeter")
}

// TestCallerOf tells a handler who called.
func TestCallerOf(t *testing.T) {
	kubetest.CheckNoLeak(t)
	authority := kubetest.NewAuthority(t, "the authority")
	callers := make(chan ID, 1)
	answer := func(ctx context.Context, _ any, _ *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
		id, _ := CallerOf(ctx)
		callers <- id
		return wrapperspb.String("Hello Ada!"), nil
	}
	handle := func(_ any, stream grpc.ServerStream) error {
		rsp, _ := answer(stream.Context(), nil, nil, nil)
		return stream.SendMsg(rsp)
	}
	address := serve(t, append(newPod(t, authority, ofServer, permissive).Server(), grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, _ grpc.StreamHandler) error {
		return handle(srv, stream)
	}))...)
	for _, test := range []struct {
		credentials credentials.TransportCredentials
		want        ID
	}{
		{newPod(t, authority, ofClient).Client(Callee{Service: "greeter"}), ID{ofClient, "cluster.local", "shop", "page"}},
		{nil, ID{}},
	} {
		if err := greet(t, dial(t, address, test.credentials)); err != nil {
			t.Fatal(err)
		}
		if got := <-callers; got != test.want {
			t.Errorf("the caller is %+v, want %+v", got, test.want)
		}
	}
}
