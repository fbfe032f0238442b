package mtls

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// within is how long a change of files may take to have an effect: an interval, on a busy machine.
const within = 10 * time.Second

// TestOpenErrors names the file that is missing or wrong.
func TestOpenErrors(t *testing.T) {
	authority, other := kubetest.NewAuthority(t, "the authority"), kubetest.NewAuthority(t, "another signer")
	good := authority.Issue(t, kubetest.PodCertificate{ID: ofServer})
	second := authority.Issue(t, kubetest.PodCertificate{ID: ofServer})
	for _, test := range []struct {
		name  string
		files map[string][]byte
		want  string
	}{
		{"nothing", nil, "tls.crt: no such file or directory: the directory needs credentialbundle.pem, or tls.key and tls.crt, and trustbundle.pem or ca.crt"},
		{"no key", map[string][]byte{"tls.crt": good, "ca.crt": authority.Bundle}, "tls.key: no such file"},
		{"no authorities", map[string][]byte{"credentialbundle.pem": good}, "ca.crt: no such file"},
		{"half a bundle", map[string][]byte{"credentialbundle.pem": good[:len(good)/2], "trustbundle.pem": authority.Bundle}, "reading the certificate and its key"},
		{"key of another certificate", map[string][]byte{"tls.key": second, "tls.crt": good, "ca.crt": authority.Bundle}, "private key does not match public key"},
		{"empty trust bundle", map[string][]byte{"credentialbundle.pem": good, "trustbundle.pem": nil}, "the trust bundle: it has no certificate"},
		{"another authority", map[string][]byte{"credentialbundle.pem": good, "trustbundle.pem": other.Bundle}, `signed by "CN=the authority", which is not in the trust bundle`},
		{"expired", map[string][]byte{"credentialbundle.pem": authority.Issue(t, kubetest.PodCertificate{ID: ofServer, Expired: true}), "trustbundle.pem": authority.Bundle}, "the certificate expired at "},
		{"other ID", map[string][]byte{"credentialbundle.pem": authority.Issue(t, kubetest.PodCertificate{ID: "spiffe://x/y"}), "trustbundle.pem": authority.Bundle}, "is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT"},
		{"no ID", map[string][]byte{"credentialbundle.pem": authority.Issue(t, kubetest.PodCertificate{ID: "https://x/y"}), "trustbundle.pem": authority.Bundle}, "is no SPIFFE ID"},
		{"too large", map[string][]byte{"credentialbundle.pem": good, "trustbundle.pem": make([]byte, maxFile+1)}, "more than 1048576 bytes"},
	} {
		dir := t.TempDir()
		for name, content := range test.files {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	if _, err := Open(Config{Dir: "/does/not/exist"}); !errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "tls.crt") {
		t.Errorf("without the directory: %v", err)
	}
}

// TestFilesOfSecrets reads a directory with the names that Secrets have, without the links of a volume.
func TestFilesOfSecrets(t *testing.T) {
	authority := kubetest.NewAuthority(t, "the authority")
	dir, bundle := t.TempDir(), authority.Issue(t, kubetest.PodCertificate{ID: ofServer})
	for name, content := range map[string][]byte{"tls.key": bundle, "tls.crt": bundle, "ca.crt": authority.Bundle} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(Config{Dir: dir})
	if err != nil || s.ID().URI != ofServer {
		t.Error(s.ID(), err)
	}
}

// TestBrokenFilesKeepCredentials writes files that cannot be used, one after another. Calls over new connections succeed all the time, and the log has one
// line for each change.
func TestBrokenFilesKeepCredentials(t *testing.T) {
	kubetest.CheckNoLeak(t)
	authority, other := kubetest.NewAuthority(t, "the authority"), kubetest.NewAuthority(t, "another signer")
	server, client := newPod(t, authority, ofServer), newPod(t, authority, ofClient)
	address := serve(t, server.Server()...)
	good := server.Files["credentialbundle.pem"]
	lines := 0
	for name, broken := range map[string][]byte{
		"half":           good[:len(good)/2],
		"empty":          {},
		"another signer": other.Issue(t, kubetest.PodCertificate{ID: ofServer}),
		"expired":        authority.Issue(t, kubetest.PodCertificate{ID: ofServer, Expired: true}),
	} {
		server.Files["credentialbundle.pem"] = broken
		server.Write(t)
		lines++
		kubetest.Eventually(t, within, "the log tells of the files: "+name, func() error {
			if n := len(server.log.with("keeping the credentials of before")); n != lines {
				return fmt.Errorf("%d lines, want %d", n, lines)
			}
			return nil
		})
		if err := greet(t, dial(t, address, client.Client(Callee{Service: "greeter"}))); err != nil {
			t.Errorf("with broken files (%s): %v", name, err)
		}
	}
	if err := os.RemoveAll(server.Dir); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * interval)
	if n := len(server.log.with("keeping the credentials of before")); n != lines+1 {
		t.Errorf("%d lines, want %d: %q", n, lines+1, server.log.with())
	}
	if err := greet(t, dial(t, address, client.Client(Callee{Service: "greeter"}))); err != nil {
		t.Error("without files:", err)
	}
}

// openStream opens a stream that the server never ends.
func openStream(t *testing.T, conn *grpc.ClientConn) (ended <-chan error) {
	t.Helper()
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, endless)
	if err == nil {
		err = errors.Join(stream.SendMsg(wrapperspb.String("Ada")), stream.CloseSend(), stream.RecvMsg(&wrapperspb.StringValue{}))
	}
	if err != nil {
		t.Fatal(err)
	}
	ending := make(chan error, 1)
	go func() { ending <- stream.RecvMsg(&wrapperspb.StringValue{}) }()
	return ending
}

func await(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(within):
		t.Fatal("the stream has not ended")
		return nil
	}
}

// TestCallersChange takes an account from the list, and gives it back.
func TestCallersChange(t *testing.T) {
	kubetest.CheckNoLeak(t)
	authority := kubetest.NewAuthority(t, "the authority")
	server, client, other := newPod(t, authority, ofServer), newPod(t, authority, ofClient), newPod(t, authority, "spiffe://cluster.local/ns/shop/sa/worker")
	address := serve(t, server.Server()...)
	conn, otherConn := dial(t, address, client.Client(Callee{Service: "greeter"})), dial(t, address, other.Client(Callee{Service: "greeter"}))
	ended, stays := openStream(t, conn), openStream(t, otherConn)
	server.Files["callers"] = []byte("worker\n")
	server.Write(t)
	begin := time.Now()
	if err := await(t, ended); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ends with %v", err)
	}
	t.Logf("the open stream ended after %v", time.Since(begin).Round(time.Millisecond))
	for range 100 {
		if err := greet(t, conn); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "greeter refuses calls of "+ofClient+": it is not in the list of callers") {
			t.Fatal(err)
		}
	}
	if n := len(server.log.with(ofClient, "it is not in the list of callers")); n != 1 {
		t.Errorf("the log has %q", server.log.with())
	}
	if err := greet(t, otherConn); err != nil {
		t.Error("the other caller:", err)
	}
	select {
	case err := <-stays:
		t.Error("the stream of the other caller has ended:", err)
	default:
	}
	server.Files["callers"] = []byte("worker\npage\n*\n")
	server.Write(t)
	kubetest.Eventually(t, within, "the caller may call again", func() error { return greet(t, conn) })
	if n := len(server.log.with("skipping a caller in callers: line 3: ")); n != 1 {
		t.Errorf("the log has %q", server.log.with())
	}
}

// TestExpiry lets the certificates of a client and of a server expire.
func TestExpiry(t *testing.T) {
	kubetest.CheckNoLeak(t)
	authority := kubetest.NewAuthority(t, "the authority")
	server := newProcess(t, kubetest.NewVolume(t, authority.Issue(t, kubetest.PodCertificate{ID: ofServer, Lifetime: 10 * time.Hour}), authority))
	client := newPod(t, authority, ofClient)
	address := serve(t, server.Server()...)
	conn := dial(t, address, client.Client(Callee{Service: "greeter", Address: address}))
	ended := openStream(t, conn)
	server.clock.advance(59 * time.Minute)
	if err := greet(t, conn); err != nil {
		t.Fatal("a minute before the end:", err)
	}
	server.clock.advance(2 * time.Minute)
	if err := greet(t, conn); err == nil {
		t.Fatal("a call is answered after the end")
	}
	if err := await(t, ended); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ends with %v", err)
	}
	for range 100 {
		checkRefused(t, dial(t, address, client.Client(Callee{Service: "greeter", Address: address})), "tls: expired certificate")
	}
	client.clock.advance(61 * time.Minute)
	checkRefused(t, dial(t, address, client.Client(Callee{Service: "greeter"})), "the own certificate expired at ")
	kubetest.Eventually(t, within, "the log of the client tells of the end", func() error {
		if n := len(client.log.with("the certificate of "+ofClient+" expires at ", "has not been renewed")); n != 1 {
			return fmt.Errorf("%q", client.log.with())
		}
		return nil
	})
	client.Files["credentialbundle.pem"] = authority.Issue(t, kubetest.PodCertificate{ID: ofClient, Lifetime: 5 * time.Hour})
	client.Write(t)
	kubetest.Eventually(t, within, "the renewed certificate is used", func() error { return greet(t, conn) })

	client.clock.advance(12 * time.Hour) // that of the server has expired, too
	client.Files["credentialbundle.pem"] = authority.Issue(t, kubetest.PodCertificate{ID: ofClient, Lifetime: 20 * time.Hour})
	client.Write(t)
	kubetest.Eventually(t, within, "the server is refused", func() error {
		if err := greet(t, dial(t, address, client.Client(Callee{Service: "greeter"}))); err == nil || !strings.Contains(err.Error(), ofServer+": the certificate expired at ") {
			return fmt.Errorf("calling returns %w", err)
		}
		return nil
	})
}

// TestRemovedAuthority ends the connections of a caller whose authority is no longer in the trust bundle.
func TestRemovedAuthority(t *testing.T) {
	kubetest.CheckNoLeak(t)
	old, next := kubetest.NewAuthority(t, "the old authority"), kubetest.NewAuthority(t, "the next authority")
	volume := kubetest.NewVolume(t, next.Issue(t, kubetest.PodCertificate{ID: ofServer}), old, next)
	var changes atomic.Int32
	server := newProcess(t, volume, func(c *Config) { c.Changed = func() { changes.Add(1) } })
	address := serve(t, server.Server()...)
	clientVolume := kubetest.NewVolume(t, old.Issue(t, kubetest.PodCertificate{ID: ofClient}), old, next)
	conn := dial(t, address, newProcess(t, clientVolume).Client(Callee{Service: "greeter", Address: address}))
	ended := openStream(t, conn)
	server.Trust(next)
	server.Write(t)
	if err := await(t, ended); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ends with %v", err)
	}
	checkRefused(t, dial(t, address, newProcess(t, clientVolume).Client(Callee{Service: "greeter", Address: address})), "greeter at "+address+" does not accept the certificate of this process: remote error: tls: unknown certificate authority")
	if changes.Load() != 1 {
		t.Errorf("%d changes were reported, want 1", changes.Load())
	}
}

// TestMaxConnectionAge has a client that does not renew its connection.
func TestMaxConnectionAge(t *testing.T) {
	kubetest.CheckNoLeak(t)
	authority := kubetest.NewAuthority(t, "the authority")
	server := newProcess(t, kubetest.NewVolume(t, authority.Issue(t, kubetest.PodCertificate{ID: ofServer, Lifetime: 4 * time.Second}), authority))
	client := newPod(t, authority, ofClient)
	conn := dial(t, serve(t, server.Server()...), client.Client(Callee{Service: "greeter"}))
	if err := greet(t, conn); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if !conn.WaitForStateChange(ctx, conn.GetState()) {
		t.Error("the connection lasts longer than a quarter of the lifetime of the certificate")
	}
}

// TestLimiter bounds the lines of a log and the memory for them.
func TestLimiter(t *testing.T) {
	c := &clock{}
	l := limiter{now: c.now}
	logged := 0
	for i := range 3 * maxKeys {
		if _, ok := l.allow(fmt.Sprint("invented ", i)); ok {
			logged++
		}
	}
	if logged != maxKeys+1 || len(l.keys) > maxKeys+1 {
		t.Errorf("%d lines, %d keys", logged, len(l.keys))
	}
	c.advance(logPause)
	if _, ok := l.allow("another"); !ok || len(l.keys) > 2 {
		t.Errorf("a minute later: %v, %d keys", ok, len(l.keys))
	}
}
