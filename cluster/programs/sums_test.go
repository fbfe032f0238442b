package programs

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindSum(t *testing.T) {
	a, b := strings.Repeat("a", 64), strings.Repeat("b", 64)
	for _, c := range []struct{ text, want string }{
		{a, a},
		{a + "\n", a},
		{strings.ToUpper(a), a},
		{b + "  other\n" + a + "  kubelet\n", a},
		{a + " *kubelet\n", a},
		{a + "  ./bin/kubelet\n", a},
		{b + "  other\n", ""},
		{a[1:], ""},
		{"", ""},
		{"<html>" + a, ""},
	} {
		got, err := findSum("kubelet", c.text)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("findSum(%q) = %q, %v", c.text, got, err)
		}
	}
}

// A file is compared with its SHA-256 in the repository, whatever its server says, and before anything of it runs.
func TestFileThatDiffersFromTheRepository(t *testing.T) {
	honest := newMirror(t, fakeProgram)
	marker := filepath.Join(t.TempDir(), "ran")
	evil := newMirror(t, func(string) []byte { return []byte("#!/bin/sh\n: >" + marker + "\n") })
	for name, sums := range map[string]sums{"other checksums": honest.sums, "no checksums": {}} {
		fakeGo(t, "exit 1")
		evil.sums = sums
		out, err := provide(envSource+"="+evil.URL, envRoot+"="+evil.checkout(t)).CombinedOutput()
		if err == nil || exists(marker) {
			t.Errorf("%s: %v, and a program of the mirror ran: %t: %s", name, err, exists(marker), out)
		}
		want := sumsFile + `" says ` // the checksum of the repository
		if len(sums) == 0 {
			want = sumsFile + " has no SHA-256 of it, so a mirror cannot be used"
		}
		if !strings.Contains(string(out), want) {
			t.Errorf("%s: the output has no %q: %s", name, want, out)
		}
	}
	if n := len(evil.requested("kubelet.sha256")); n > 0 {
		t.Errorf("the mirror was asked for its own checksum %d times", n)
	}
	p := &provider{cache: t.TempDir(), source: evil.source(t), progress: t.Logf}
	if _, err := p.fromOfficial(t.Context(), nodeTools); err == nil || !strings.Contains(err.Error(), "so a mirror cannot be used") {
		t.Errorf("the node's tools from a mirror without checksums: %v", err)
	}
}

// make sums writes the checksums that the publishers name, for both architectures and every file, over HTTPS.
func TestWriteSums(t *testing.T) {
	const sum = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	var plain bool
	publishers := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		plain = plain || r.TLS == nil
		name := filepath.Base(r.URL.Path)
		if name == "SHA256SUMS" || name == "runc.sha256sum" {
			for _, arch := range []string{"amd64", "arm64"} {
				_, _ = w.Write([]byte(sum + "  etcd-" + filepath.Base(filepath.Dir(r.URL.Path)) + "-linux-" + arch + ".tar.gz\n" + sum + "  runc." + arch + "\n"))
			}
			return
		}
		_, _ = w.Write([]byte(sum + "\n"))
	}))
	defer publishers.Close()
	m := newMirror(t, fakeProgram)
	m.sums = sums{}
	root := m.checkout(t)
	d := impatient()
	d.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, publishers.Listener.Addr().String())
		}}
	if err := d.writeSums(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	written, err := readSums(root)
	if err != nil || plain {
		t.Fatalf("%v, plain HTTP: %t", err, plain)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		files := m.releases.files(source{sums: written, mirror: nil}, arch)
		for _, tool := range nodeTools {
			if f, version := tool.officialFile(source{sums: written}, arch); version != "" {
				files = append(files, f)
			}
		}
		for _, f := range files {
			if f.sum != sum {
				t.Errorf("%s has the checksum %q", f.url, f.sum)
			}
		}
	}
	if len(written) != 2*(8+3) {
		t.Errorf("%d checksums", len(written))
	}
}

// The file of this checkout can be read, and a line that is none is refused.
func TestReadSums(t *testing.T) {
	if _, err := readSums("../.."); err != nil {
		t.Error(err)
	}
	root := t.TempDir()
	file := filepath.Join(root, sumsFile)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("# a comment\n\n"+strings.Repeat("g", 64)+"  dl.k8s.io/x\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := readSums(root); err == nil || !strings.Contains(err.Error(), "make sums") {
		t.Error(err)
	}
}
