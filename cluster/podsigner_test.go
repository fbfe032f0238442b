package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/signer"
)

// asUser makes requests to the API server of a control plane as another user, which the administrator may.
type asUser struct {
	base   http.RoundTripper
	user   string
	groups []string
}

func (u asUser) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	if u.user != "" {
		req.Header.Set("Impersonate-User", u.user)
		for _, g := range u.groups {
			req.Header.Add("Impersonate-Group", g)
		}
	}
	return u.base.RoundTrip(req)
}

// testAPI is the API server of a control plane.
type testAPI struct {
	t      *testing.T
	server string
	admin  http.RoundTripper
}

func (a testAPI) client(user string, groups ...string) *http.Client {
	return &http.Client{Transport: asUser{a.admin, user, groups}}
}

// request makes a request as a user and returns the code and the decoded answer.
func (a testAPI) request(c *http.Client, method, path string, body, result any) (int, string) {
	a.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		a.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.server+path, strings.NewReader(string(b)))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := c.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	if result != nil && resp.StatusCode/100 == 2 {
		if err := json.Unmarshal(text, result); err != nil {
			a.t.Fatalf("%s %s: %v: %s", method, path, err, text)
		}
	}
	return resp.StatusCode, string(text)
}

// create makes an object as the administrator and returns its UID.
func (a testAPI) create(path string, object any) string {
	a.t.Helper()
	var made struct{ Metadata struct{ UID string } }
	code, text := 0, ""
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if code, text = a.request(a.client(""), http.MethodPost, path, object, &made); code == 201 {
			return made.Metadata.UID
		}
	}
	a.t.Fatalf("POST %s: %d: %s", path, code, text)
	return ""
}

type object = map[string]any

func named(name string) object { return object{"name": name} }

// The signer, with the rights that the launcher grants, against the API server: what kubelet's requests get, and what neither
// the signer nor a pod can do.
func TestPodSigner(t *testing.T) {
	root := checkout(t)
	c := up(t, root, "-control-plane")
	a := controlPlaneAPI(t, c)
	for file, resource := range map[string]string{"pod-signer-role.json": "clusterroles", "pod-signer-binding.json": "clusterrolebindings"} {
		text, err := templates.ReadFile("templates/" + file)
		if err != nil {
			t.Fatal(err)
		}
		a.create("/apis/rbac.authorization.k8s.io/v1/"+resource, json.RawMessage(text))
	}
	ca, err := signer.OpenCA(c.path("signer"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { signer.New(a.server, a.client(signer.User), ca, t.Logf).Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })

	a.create("/api/v1/namespaces", object{"metadata": named("go-micro")})
	p := podOnNode{node: "node1", namespace: "go-micro", account: "go-micro-srv", pod: "go-micro-srv-1"}
	p.nodeUID = a.create("/api/v1/nodes", object{"metadata": named(p.node)})
	p.accountUID = a.create("/api/v1/namespaces/go-micro/serviceaccounts", object{"metadata": named(p.account)})
	a.create("/api/v1/namespaces/go-micro/serviceaccounts", object{"metadata": named("go-micro-web")})
	p.podUID = a.create("/api/v1/namespaces/go-micro/pods", object{"metadata": named(p.pod), "spec": object{
		"serviceAccountName": p.account, "nodeName": p.node, "automountServiceAccountToken": false,
		"containers": []object{{"name": "main", "image": "none"}}, "volumes": []object{volume(signer.Name), volume("example.com/other")}}})
	kubelet := a.client("system:node:node1", "system:nodes")

	t.Run("a kubelet's request is answered", func(t *testing.T) {
		a := a.with(t)
		start := time.Now()
		status := a.answer(a.ask(kubelet, p.request("good")))
		t.Logf("answered after %s", time.Since(start).Round(time.Millisecond))
		if status.kind() != "Issued" {
			t.Fatalf("%+v", status)
		}
		block, _ := pem.Decode([]byte(status.CertificateChain))
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://cluster.local/ns/go-micro/sa/go-micro-srv" || cert.Subject.CommonName != p.pod {
			t.Errorf("%v: %+v", err, cert)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(a.bundle()))
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("with the ClusterTrustBundle: %v", err)
		}
	})
	t.Run("a pod cannot choose its identity", func(t *testing.T) {
		a := a.with(t)
		for annotation, value := range map[string]string{
			"spiffe/path-overriding": "ns/go-micro/sa/go-micro-web", "spiffe.io/spiffe-id": "spiffe://cluster.local/ns/go-micro/sa/go-micro-web", "x.example/dns": "go-micro-web"} {
			r := p.request("attack-" + strings.ReplaceAll(annotation, "/", "-"))
			r["spec"].(object)["unverifiedUserAnnotations"] = object{annotation: value}
			if status := a.answer(a.ask(kubelet, r)); status.kind() != "Denied" || status.Conditions[0].Reason != "InvalidUnverifiedUserAnnotations" || status.CertificateChain != "" {
				t.Errorf("annotation %q: %+v", annotation, status)
			}
		}
		r := p.request("another-account") // kubelet asks for another account than the pod's: the API server refuses
		r["spec"].(object)["serviceAccountName"] = "go-micro-web"
		if code, text := a.request(kubelet, http.MethodPost, requests, r, nil); code/100 == 2 {
			t.Errorf("a certificate of another account: %d: %s", code, text)
		}
		other := a.client("system:node:node2", "system:nodes")
		if code, text := a.request(other, http.MethodPost, requests, p.request("another-node"), nil); code/100 == 2 {
			t.Errorf("a certificate of a pod on another node: %d: %s", code, text)
		}
	})
	t.Run("the ClusterTrustBundle is kept", func(t *testing.T) {
		a := a.with(t)
		want := a.bundle()
		other, err := signer.OpenCA(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		// Another authority in the bundle could make certificates. A second signer with its own authority stands for who puts it there.
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { signer.New(a.server, a.client(signer.User), other, t.Logf).Run(ctx); close(ended) }()
		eventually(t, 30*time.Second, "another bundle", func() bool { return a.bundle() != want })
		cancel()
		<-ended
		eventually(t, time.Minute, "the signer's bundle", func() bool { return a.bundle() == want })
	})
	t.Run("the signer may do nothing else", func(t *testing.T) {
		a := a.with(t)
		const group = "certificates.k8s.io"
		for _, tt := range []struct {
			group, resource, subresource, name string
			verbs                              string
		}{
			{group, "podcertificaterequests", "", "", "list watch"},
			{group, "podcertificaterequests", "status", "", "update"},
			{group, "signers", "", signer.Name, "sign attest"},
			{group, "signers", "", "kubernetes.io/kube-apiserver-client", ""},
			{group, "signers", "", "example.com/other", ""},
			{group, "clustertrustbundles", "", signer.BundleName, "create patch"},
			{group, "clustertrustbundles", "", "example.com:other:ca", ""},
			{group, "clustertrustbundles", "", "", ""},
			{group, "certificatesigningrequests", "", "", ""},
			{group, "certificatesigningrequests", "approval", "", ""},
			{"", "pods", "", "", ""}, {"", "secrets", "", "", ""}, {"", "configmaps", "", "", ""}, {"", "nodes", "", "", ""}, {"", "serviceaccounts", "token", "", ""},
			{"rbac.authorization.k8s.io", "clusterroles", "", "", ""}, {"rbac.authorization.k8s.io", "clusterrolebindings", "", "", ""},
			{"*", "*", "", "", ""},
		} {
			for _, verb := range strings.Fields("get list watch create update patch delete deletecollection sign attest approve escalate bind impersonate *") {
				var review struct{ Status struct{ Allowed bool } }
				code, text := a.request(a.client(signer.User), http.MethodPost, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", object{"spec": object{"resourceAttributes": object{
					"group": tt.group, "resource": tt.resource, "subresource": tt.subresource, "name": tt.name, "verb": verb, "namespace": map[bool]string{true: "go-micro"}[tt.resource != "nodes"]}}}, &review)
				if want := strings.Contains(" "+tt.verbs+" ", " "+verb+" "); code != 201 || review.Status.Allowed != want {
					t.Errorf("%s %s/%s %s %q: %d, allowed %t, want %t: %s", verb, tt.group, tt.resource, tt.subresource, tt.name, code, review.Status.Allowed, want, text)
				}
			}
		}
		// Its rights on its own requests and bundle are no way to others.
		for path, body := range map[string]object{
			"/apis/certificates.k8s.io/v1/clustertrustbundles/example.com:other:ca?fieldManager=x": {"metadata": named("example.com:other:ca"), "spec": object{"signerName": "example.com/other", "trustBundle": a.bundle()}},
			"/apis/certificates.k8s.io/v1/clustertrustbundles/all?fieldManager=x":                  {"metadata": named("all"), "spec": object{"trustBundle": a.bundle()}},
		} {
			if code, text := a.request(a.client(signer.User), http.MethodPatch, path, body, nil); code != 403 {
				t.Errorf("PATCH %s: %d: %s", path, code, text)
			}
		}
		r := p.request("of-another-signer")
		r["spec"].(object)["signerName"] = "example.com/other"
		name := a.ask(kubelet, r)
		var made object
		if code, text := a.request(a.client(""), http.MethodGet, requests+"/"+name, nil, &made); code != 200 {
			t.Fatal(code, text)
		}
		made["status"] = object{"conditions": []object{{"type": "Denied", "status": "True", "reason": "x", "message": "x", "lastTransitionTime": time.Now().UTC().Format(time.RFC3339)}}}
		if code, text := a.request(a.client(signer.User), http.MethodPut, requests+"/"+name+"/status", made, nil); code/100 == 2 {
			t.Errorf("the signer answers the request of another signer: %d: %s", code, text)
		}
	})
}

// volume is a volume with certificates of a signer. Kubelet may ask for no others.
func volume(signerName string) object {
	return object{"name": strings.ReplaceAll(strings.ReplaceAll(signerName, "/", "-"), ".", "-"), "projected": object{"sources": []object{{
		"podCertificate": object{"signerName": signerName, "keyType": "ECDSAP256", "credentialBundlePath": "credentialbundle.pem"}}}}}
}

const requests = "/apis/certificates.k8s.io/v1/namespaces/go-micro/podcertificaterequests"

// controlPlaneAPI connects to the API server of a running control plane as its administrator.
func controlPlaneAPI(t *testing.T, c *cluster) testAPI {
	t.Helper()
	s, err := c.state()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(c.path("pki", "client-kubeconfig.crt"), c.path("pki", "client-kubeconfig.key"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(c.path("pki", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return testAPI{t, "https://" + s.API, &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}, ForceAttemptHTTP2: true}}
}

func (a testAPI) with(t *testing.T) testAPI { a.t = t; return a }

// podOnNode is a pod that kubelet asks certificates for.
type podOnNode struct{ node, nodeUID, namespace, account, accountUID, pod, podUID string }

// request is what kubelet makes, with a new key.
func (p podOnNode) request(name string) object {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		panic(err)
	}
	return object{"metadata": named(name), "spec": object{"signerName": signer.Name, "podName": p.pod, "podUID": p.podUID, "serviceAccountName": p.account,
		"serviceAccountUID": p.accountUID, "nodeName": p.node, "nodeUID": p.nodeUID, "stubPKCS10Request": csr}}
}

// ask makes a request as kubelet, again while the API server has not seen the pod, and returns its name.
func (a testAPI) ask(kubelet *http.Client, r object) string {
	a.t.Helper()
	code, text := 0, ""
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if code, text = a.request(kubelet, http.MethodPost, requests, r, nil); code == 201 {
			return fmt.Sprint(r["metadata"].(object)["name"])
		}
	}
	a.t.Fatalf("%v: %d: %s", r["metadata"], code, text)
	return ""
}

type requestStatus struct {
	Conditions       []struct{ Type, Reason, Message string }
	CertificateChain string
}

func (s requestStatus) kind() string {
	if len(s.Conditions) == 0 {
		return ""
	}
	return s.Conditions[0].Type
}

// answer waits for the answer to a request.
func (a testAPI) answer(name string) requestStatus {
	a.t.Helper()
	var r struct{ Status requestStatus }
	eventually(a.t, 30*time.Second, "the answer to "+name, func() bool {
		code, _ := a.request(a.client(""), http.MethodGet, requests+"/"+name, nil, &r)
		return code == 200 && r.Status.kind() != ""
	})
	return r.Status
}

func (a testAPI) bundle() string {
	var b struct{ Spec struct{ TrustBundle string } }
	a.request(a.client(""), http.MethodGet, "/apis/certificates.k8s.io/v1/clustertrustbundles/"+signer.BundleName, nil, &b)
	return b.Spec.TrustBundle
}
