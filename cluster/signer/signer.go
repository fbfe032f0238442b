// Package signer answers the PodCertificateRequests (KEP-4317) of one signer name: the demo's signer of pod certificates,
// which the launcher runs as a component of its control plane. Kubernetes itself ships no signer for workloads.
//
// A kubelet asks for a certificate for a pod whose manifest has a volume podCertificate; the API server admits the request
// only if the pod runs on that kubelet's node, with the service account in the request. The signer issues a certificate with
//
//   - the SPIFFE ID spiffe://cluster.local/ns/NAMESPACE/sa/ACCOUNT as its only alternative name,
//   - the pod's name as common name, and its UID as attribute 1.3.6.1.4.1.57683.2 of the subject,
//   - a lifetime of an hour, the API's minimum; kubelet renews it after half of that,
//
// and nothing else. Nothing that the author of a pod writes into its template reaches the certificate: a request with
// annotations is Denied, and so is one with an RSA key. The signer also keeps its ClusterTrustBundle as it should be.
//
// The signer is level-triggered: it lists all requests, answers those without an answer, and watches. After an error it
// lists again, with a growing delay. It has no dependency but the standard library, because it is linked into the launcher,
// which every first run of the demo compiles.
package signer

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	// Name is the signer name of the requests that the signer answers.
	Name = "go-micro.local/pod"
	// BundleName is the name of the ClusterTrustBundle. The API server requires the signer's name before it.
	BundleName = "go-micro.local:pod:ca"
	// User is the signer's user name for the API server.
	User = "pod-signer"

	trustDomain = "cluster.local"
)

const (
	resyncPeriod  = 15 * time.Second // between two lists, and two looks at the ClusterTrustBundle
	minRetryDelay = 500 * time.Millisecond
	maxRetryDelay = 30 * time.Second
)

// Main is the process: it runs the signer until SIGINT or SIGTERM. It writes the certificate authority to the directory of -dir.
func Main(args []string) error {
	flags := flag.NewFlagSet("signer", flag.ContinueOnError)
	server := flags.String("server", "", "URL of the API server")
	dir := flags.String("dir", "", "directory of the certificate authority, which the signer makes")
	var files tlsFiles
	flags.StringVar(&files.ca, "server-ca", "", "certificate authority of the API server")
	flags.StringVar(&files.cert, "cert", "", "client certificate for the API server")
	flags.StringVar(&files.key, "key", "", "key of the client certificate")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	ca, err := OpenCA(*dir)
	if err != nil {
		return err
	}
	client, err := files.client()
	if err != nil {
		return err
	}
	New(*server, client, ca, logLine).Run(ctx)
	return nil
}

func logLine(format string, args ...any) {
	fmt.Printf("%s %s\n", time.Now().Format(time.RFC3339), fmt.Sprintf(format, args...))
}

// Signer answers requests. It is made by New.
type Signer struct {
	api api
	ca  *CA
	log func(format string, args ...any)
	now func() time.Time

	firstRetry time.Duration // minRetryDelay except in tests
}

// New returns a signer that connects to the API server at a URL such as https://10.0.0.1:6443.
func New(server string, client *http.Client, ca *CA, log func(format string, args ...any)) *Signer {
	return &Signer{api: api{server, client}, ca: ca, log: log, now: time.Now, firstRetry: minRetryDelay}
}

// Run answers requests until ctx ends.
func (s *Signer) Run(ctx context.Context) {
	failures, reported := 0, ""
	for ctx.Err() == nil {
		version, err := s.answerAll(ctx)
		err = errors.Join(err, s.api.applyBundle(ctx, s.ca.bundle()))
		if err != nil {
			failures++
		}
		period := resyncPeriod
		if failures > 0 { // list again soon; requests that come meanwhile do not wait for the one that failed
			period = retryDelay(s.firstRetry, failures)
		}
		watched := s.watch(ctx, version, period)
		if ctx.Err() != nil {
			return
		}
		if watched != nil {
			failures++
			wait(ctx, retryDelay(s.firstRetry, failures))
		}
		switch err = errors.Join(err, watched); {
		case err == nil:
			if failures > 0 {
				s.log("answering again")
			}
			failures, reported = 0, ""
		case err.Error() != reported:
			reported = err.Error()
			s.log("%v; retrying", err)
		}
	}
}

// retryDelay returns how long to wait after a number of consecutive failures.
func retryDelay(first time.Duration, failures int) time.Duration {
	delay := min(first<<min(failures-1, 10), maxRetryDelay)
	return delay/2 + rand.N(delay/2)
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// answerAll lists the requests and answers those that have no answer. It returns the version of the list, at which a watch continues.
func (s *Signer) answerAll(ctx context.Context) (version string, err error) {
	list, err := s.api.list(ctx)
	if err != nil {
		return "", err
	}
	for _, r := range list.Items {
		err = errors.Join(err, s.answer(ctx, r))
	}
	return list.Metadata.ResourceVersion, err
}

// watch answers the requests that are made after version, for a period. Without a version it only waits.
func (s *Signer) watch(ctx context.Context, version string, period time.Duration) error {
	if version == "" {
		wait(ctx, period)
		return nil
	}
	return s.api.watch(ctx, version, period, func(r request) error { return s.answer(ctx, r) })
}

// answer issues or denies one request, unless it has an answer. The API server refuses the answer if the request has changed.
func (s *Signer) answer(ctx context.Context, r request) error {
	if len(r.Status.Conditions) > 0 || r.Spec.SignerName != Name {
		return nil
	}
	status := s.decide(r)
	err := s.api.updateStatus(ctx, r, status)
	if errors.Is(err, errNotFound) { // the pod has gone
		return nil
	}
	if err != nil {
		return fmt.Errorf("answering the request %q of pod %q in namespace %q: %w", r.Metadata.Name, r.Spec.PodName, r.Metadata.Namespace, err)
	}
	c := status.Conditions[0]
	s.log("%s %s for pod %q: %s", c.Type, spiffeID(r), r.Spec.PodName, c.Message)
	return nil
}
