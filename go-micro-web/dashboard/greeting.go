package dashboard

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
)

const (
	greeterName = "go-micro-srv"
	callTimeout = 5 * time.Second
	maxName     = 64      // characters of the name to greet
	maxForm     = 4 << 10 // bytes of the form
)

// answer is the result of a greeting.
type answer struct {
	Greeting string  `json:"greeting,omitempty"`
	Pod      string  `json:"pod,omitempty"`     // that was called
	Address  string  `json:"address,omitempty"` // that was called
	Millis   float64 `json:"ms"`
	Problem  string  `json:"problem,omitempty"` // why there is no greeting
}

func (d *dashboard) serveGreeting(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	name, a, code := "", answer{}, http.StatusBadRequest
	if err := r.ParseForm(); err != nil {
		a.Problem = "The form cannot be read."
	} else if name = strings.TrimSpace(r.PostForm.Get("name")); name == "" || utf8.RuneCountInString(name) > maxName || !utf8.ValidString(name) {
		name, a.Problem = clip(strings.ToValidUTF8(name, "")), fmt.Sprintf("Enter a name of 1 to %d characters.", maxName)
	} else {
		a, code = d.greet(r.Context(), name)
	}
	if !strings.Contains(r.Header.Get("Accept"), "application/json") {
		d.render(w, r, code, page{Answer: &a, Name: name})
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(a)
}

// greet calls Greeter.Hello at an instance that the selector chooses. A call
// wrapper learns the address of the instance, and the view knows the pod at that
// address, so the answer names the pod without a field for it in the proto file.
func (d *dashboard) greet(ctx context.Context, name string) (answer, int) {
	defer d.hub.join()()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var called atomic.Pointer[registry.Node] // by the last try; a try that timed out may still be running
	record := func(call client.CallFunc) client.CallFunc {
		return func(ctx context.Context, n *registry.Node, req client.Request, rsp any, o client.CallOptions) error {
			called.Store(n)
			return call(ctx, n, req, rsp, o)
		}
	}
	begin := time.Now()
	rsp, err := d.greeter.Hello(ctx, &proto.HelloRequest{Name: name}, client.WithCallWrapper(record))
	a := answer{Millis: float64(time.Since(begin).Microseconds()) / 1000}
	if n := called.Load(); n != nil {
		a.Address = n.Address
		if v, err := d.hub.wait(ctx); err == nil {
			a.Pod = v.podAt(greeterName, n.Address)
		}
	}
	if err == nil {
		a.Greeting = rsp.Greeting
		return a, http.StatusOK
	}
	logger.Warnf("Calling %q at %q: %v", "Greeter.Hello", cmp.Or(a.Address, greeterName), err)
	var e *microerrors.Error
	switch errors.As(err, &e); {
	case e != nil && e.Code == http.StatusRequestTimeout:
		a.Problem = fmt.Sprintf("No answer within %s.", callTimeout)
		return a, http.StatusGatewayTimeout
	case a.Address == "":
		a.Problem = fmt.Sprintf("No instance of %s is ready.", greeterName)
		return a, http.StatusServiceUnavailable
	}
	a.Problem = "The call failed; the log of " + cmp.Or(d.podName, "this pod") + " says why."
	return a, http.StatusBadGateway
}
