package signer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"
)

const (
	callTimeout   = 10 * time.Second
	maxAnswerSize = 64 << 20 // of a list: some 20,000 requests
)

const group = "/apis/certificates.k8s.io/v1"

// The fields of a PodCertificateRequest (k8s.io/api/certificates/v1) that the signer reads and writes.
type (
	metadata struct {
		Namespace       string `json:"namespace,omitempty"`
		Name            string `json:"name,omitempty"`
		UID             string `json:"uid,omitempty"`
		ResourceVersion string `json:"resourceVersion,omitempty"`
	}
	request struct {
		Metadata metadata    `json:"metadata"`
		Spec     requestSpec `json:"spec"`
		Status   status      `json:"status"`
	}
	requestSpec struct {
		SignerName                string            `json:"signerName"`
		PodName                   string            `json:"podName"`
		PodUID                    string            `json:"podUID"`
		ServiceAccountName        string            `json:"serviceAccountName"`
		MaxExpirationSeconds      int32             `json:"maxExpirationSeconds"`
		StubPKCS10Request         []byte            `json:"stubPKCS10Request"`
		UnverifiedUserAnnotations map[string]string `json:"unverifiedUserAnnotations"`
	}
	status struct {
		Conditions       []condition `json:"conditions,omitempty"`
		CertificateChain string      `json:"certificateChain,omitempty"`
		NotBefore        *time.Time  `json:"notBefore,omitempty"`
		BeginRefreshAt   *time.Time  `json:"beginRefreshAt,omitempty"`
		NotAfter         *time.Time  `json:"notAfter,omitempty"`
	}
	condition struct {
		Type               string    `json:"type"`
		Status             string    `json:"status"`
		Reason             string    `json:"reason"`
		Message            string    `json:"message"`
		LastTransitionTime time.Time `json:"lastTransitionTime"`
	}
	requestList struct {
		Metadata metadata  `json:"metadata"`
		Items    []request `json:"items"`
	}
)

// tlsFiles are the files with which the signer connects to the API server.
type tlsFiles struct{ ca, cert, key string }

func (f tlsFiles) client() (*http.Client, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("reading the signer's certificate for the API server: %w", err)
	}
	ca, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate authority of the API server: %w", err)
	}
	trusted := x509.NewCertPool()
	if !trusted.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("reading the certificate authority of the API server: no certificate in %q", f.ca)
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: trusted, Certificates: []tls.Certificate{pair}},
		ForceAttemptHTTP2: true, TLSHandshakeTimeout: callTimeout,
		HTTP2: &http.HTTP2Config{SendPingTimeout: callTimeout, PingTimeout: callTimeout}, // a watch on a connection that is dead ends
	}}, nil
}

// api makes the requests to the API server that the signer's role allows.
type api struct {
	server string
	client *http.Client
}

var errNotFound = errors.New("not found")

// do makes one request. A status other than 2xx is an error with the API server's message. The caller closes the body.
func (a api) do(ctx context.Context, method, path, contentType string, body any) (io.ReadCloser, error) {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, a.server+group+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", User)
	req.Header.Set("Content-Type", contentType)
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	var failure struct{ Message string }
	if json.Unmarshal(answer, &failure) != nil || failure.Message == "" {
		failure.Message = string(answer)
	}
	if err = fmt.Errorf("%s: %s", resp.Status, failure.Message); resp.StatusCode == http.StatusNotFound {
		err = fmt.Errorf("%w: %w", errNotFound, err)
	}
	return nil, err
}

// call makes a request within callTimeout and decodes the answer into result, unless that is nil.
func (a api) call(ctx context.Context, method, path, contentType string, body, result any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := a.do(ctx, method, path, contentType, body)
	if err != nil {
		return err
	}
	defer answer.Close()
	if result == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(answer, maxAnswerSize)) // so that the connection can be used again
		return err
	}
	return json.NewDecoder(io.LimitReader(answer, maxAnswerSize)).Decode(result)
}

// selector selects the signer's requests. The API server does not enforce it: a role cannot be limited to a signer.
var selector = url.Values{"fieldSelector": {"spec.signerName=" + Name}}

func (a api) list(ctx context.Context) (list requestList, err error) {
	if err = a.call(ctx, http.MethodGet, "/podcertificaterequests?"+selector.Encode(), "application/json", nil, &list); err != nil {
		err = fmt.Errorf("listing podcertificaterequests: %w", err)
	}
	return list, err
}

// watch calls handle for each request that is made or changes after version, until the period ends or handle returns an error.
func (a api) watch(ctx context.Context, version string, period time.Duration, handle func(request) error) error {
	ctx, cancel := context.WithTimeout(ctx, period+callTimeout)
	defer cancel()
	query := url.Values{"watch": {"true"}, "resourceVersion": {version}, "timeoutSeconds": {strconv.Itoa(int(period/time.Second) + 1)}}
	body, err := a.do(ctx, http.MethodGet, "/podcertificaterequests?"+query.Encode()+"&"+selector.Encode(), "application/json", nil)
	if err != nil {
		return fmt.Errorf("watching podcertificaterequests: %w", err)
	}
	defer body.Close()
	for events := json.NewDecoder(body); ; {
		var event struct {
			Type   string
			Object json.RawMessage
		}
		if err := events.Decode(&event); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("watching podcertificaterequests: %w", err)
		}
		switch event.Type {
		case "ADDED", "MODIFIED":
			var r request
			if err := json.Unmarshal(event.Object, &r); err != nil {
				return fmt.Errorf("watching podcertificaterequests: %w", err)
			}
			if err := handle(r); err != nil {
				return err
			}
		case "ERROR": // for example 410: the version is too old
			return fmt.Errorf("watching podcertificaterequests: %s", event.Object)
		}
	}
}

// updateStatus writes the answer. The UID and the version make the API server refuse it if the request was replaced or answered.
func (a api) updateStatus(ctx context.Context, r request, s status) error {
	path := "/namespaces/" + url.PathEscape(r.Metadata.Namespace) + "/podcertificaterequests/" + url.PathEscape(r.Metadata.Name) + "/status"
	body := map[string]any{"apiVersion": "certificates.k8s.io/v1", "kind": "PodCertificateRequest", "metadata": r.Metadata, "status": s}
	return a.call(ctx, http.MethodPut, path, "application/json", body, nil)
}

// applyBundle makes the ClusterTrustBundle contain bundle, whether it exists or not. Server-side apply needs no right but on this
// one object, and writes nothing if nothing differs.
func (a api) applyBundle(ctx context.Context, bundle []byte) error {
	body := map[string]any{"apiVersion": "certificates.k8s.io/v1", "kind": "ClusterTrustBundle", "metadata": metadata{Name: BundleName},
		"spec": map[string]string{"signerName": Name, "trustBundle": string(bundle)}}
	err := a.call(ctx, http.MethodPatch, "/clustertrustbundles/"+BundleName+"?fieldManager="+User+"&force=true", "application/apply-patch+yaml", body, nil)
	if err != nil {
		err = fmt.Errorf("applying ClusterTrustBundle %q: %w", BundleName, err)
	}
	return err
}
