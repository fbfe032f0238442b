package portforward

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	microerrors "github.com/micro/go-micro/v2/errors"
)

// The beginnings of the two kinds of errors, which grpc-go keeps only as text.
const (
	ofPath = "calls from outside of the cluster go through the API server at "
	ofPod  = "port-forward to pod "
)

// pathError returns an error that is the fault of the API server, or of the way to it. The pod may be empty.
func (p *Path) pathError(pod string, cause error) error {
	to := ""
	if pod != "" {
		to = fmt.Sprintf(": %s%q", ofPod, pod)
	}
	return fmt.Errorf("%s%s%s: %w", ofPath, p.server.Host, to, cause)
}

// podError returns an error that is the fault of the pod, or of its Kubernetes node.
func (p *Path) podError(pod, port string, cause error) error {
	return fmt.Errorf("%s%q, port %s: %w", ofPod, pod, port, cause)
}

// explainUpgrade returns the error of an upgrade with its remedy, and whether the path is to blame for it. The pod is to blame
// if it is gone, or if the API server cannot reach its kubelet.
func (p *Path) explainUpgrade(ctx context.Context, err error, pod string) (explained error, isPath bool) {
	var refused *refusal
	if !errors.As(err, &refused) {
		if ctx.Err() != nil && p.trouble.Load() == nil { // the API server works, and waits for the kubelet
			return err, false
		}
		return p.pathError(pod, p.server.Explain(err, "create", resource, resource)), true
	}
	switch refused.code {
	case http.StatusNotFound, http.StatusInternalServerError:
		return err, false
	case http.StatusBadGateway:
		if strings.Contains(refused.Error(), "error dialing backend") { // of the kubelet
			return err, false
		}
	}
	verb := "create"
	if strings.Contains(refused.Error(), " cannot get resource ") {
		verb = "get"
	}
	return p.pathError(pod, p.server.Explain(refused.StatusError, verb, resource, resource)), true
}

const resource = "pods/portforward"

// Trouble returns why the API server cannot be reached now, nil if it can, as far as the path knows.
func (p *Path) Trouble() error {
	if err := p.trouble.Load(); err != nil {
		return *err
	}
	return nil
}

// Judge returns what the end of a call, as the client understands it, says about the instance, and the error of the call. An
// instance is not to blame for a connection that the API server has broken, or for an answer that did not arrive while the API
// server was away.
func (p *Path) Judge(o outcome.Outcome, err error) (outcome.Outcome, error) {
	if err == nil || o != outcome.LostConnection && o != outcome.FailedHandshake && o != outcome.TimedOut {
		return o, err
	}
	switch text := err.Error(); {
	case strings.Contains(text, ofPath):
		return outcome.Inconclusive, err
	case o == outcome.FailedHandshake && strings.Contains(text, ofPod): // the first Read fails if the port refuses the connection
		return outcome.LostConnection, err
	case o != outcome.TimedOut:
		return o, err
	}
	trouble := p.Trouble()
	if trouble == nil {
		return o, err
	}
	if timeout := new(microerrors.Error); errors.As(err, &timeout) {
		named := *timeout
		named.Detail = fmt.Sprintf("%s: %v", timeout.Detail, trouble)
		err = &named
	}
	return outcome.Inconclusive, err
}
