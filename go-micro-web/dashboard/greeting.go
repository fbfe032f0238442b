package dashboard

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
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
	maxForm     = 4 << 10 // bytes of the form

	// maxName bounds the name to greet in Unicode code points. A browser counts the
	// maxlength of an input in UTF-16 code units, so the input has a pattern instead.
	maxName = 64
)

// namePattern expresses the rules of nameProblem as the pattern attribute of an input,
// which a browser compiles with the flag v. The two differ only for characters that the
// Unicode version of Go or of the browser does not have.
var namePattern = fmt.Sprintf(`\p{White_Space}*(?!\p{White_Space})[^\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]{1,%d}\p{White_Space}*`, maxName)

// nameProblem returns the reason why a name without spaces around it cannot be
// greeted, or "" if it can. The greeting is written to logs and terminals, so
// nameProblem refuses control characters, directional overrides and invisible text.
func nameProblem(name string) string {
	if name == "" || utf8.RuneCountInString(name) > maxName || !utf8.ValidString(name) {
		return fmt.Sprintf("Enter a name of 1 to %d characters.", maxName)
	}
	if i := strings.IndexFunc(name, invisible); i >= 0 {
		r, _ := utf8.DecodeRuneInString(name[i:])
		return fmt.Sprintf("The name has the invisible character %U.", r)
	}
	return ""
}

// answer is the result of a greeting.
type answer struct {
	Greeting string  `json:"greeting,omitempty"`
	Pod      string  `json:"pod,omitempty"`     // the pod that was called
	Address  string  `json:"address,omitempty"` // the address that was called
	Millis   float64 `json:"ms"`
	Problem  string  `json:"problem,omitempty"` // why there is no greeting
}

func (d *dashboard) serveGreeting(w http.ResponseWriter, r *http.Request) {
	name, a, code := "", answer{}, http.StatusBadRequest
	switch err := d.parseForm(w, r); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		a.Problem, code = fmt.Sprintf("The form did not arrive within %s.", d.formTimeout), http.StatusRequestTimeout
	case err != nil:
		a.Problem = "The form cannot be read."
	default:
		name = strings.TrimSpace(r.PostForm.Get("name"))
		if a.Problem = nameProblem(name); a.Problem == "" {
			a, code = d.greet(r.Context(), name)
		}
	}
	if !strings.Contains(r.Header.Get("Accept"), "application/json") {
		d.render(w, r, code, page{Answer: &a, Name: clip(name)})
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(a)
}

// parseForm reads the form. If it cannot be read, the connection is closed after the
// response, without the rest of the form.
func (d *dashboard) parseForm(w http.ResponseWriter, r *http.Request) error {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(d.formTimeout))
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	err := r.ParseForm()
	if err != nil {
		w.Header().Set("Connection", "close")
		return err
	}
	return rc.SetReadDeadline(time.Time{}) // to notice when the client closes the connection
}

// hello calls Greeter.Hello on an instance that the selector chooses. A call wrapper sees
// the address of each try, and the selector knows the pod at that address, so the proto
// file needs no field for the pod. called is the instance that answered, or that of the
// last try if none did. tried is called after each try, in the goroutine of the try.
func (d *dashboard) hello(ctx context.Context, name string, tried func(sample)) (greeting string, called callTarget, err error) {
	var answered, begun atomic.Pointer[callTarget]
	record := func(call client.CallFunc) client.CallFunc {
		return func(ctx context.Context, n *registry.Node, req client.Request, rsp any, o client.CallOptions) error {
			target := callTarget{d.hub.podAt(n.Address), n.Address}
			begun.Store(&target)
			begin := time.Now()
			err := call(ctx, n, req, rsp, o)
			if err == nil {
				answered.CompareAndSwap(nil, &target)
			}
			isBusy := err != nil && microerrors.FromError(err).Code == http.StatusTooManyRequests
			tried(sample{target: target, took: time.Since(begin), failed: err != nil, busy: isBusy})
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	rsp, err := d.greeter.Hello(ctx, &proto.HelloRequest{Name: name}, client.WithCallWrapper(record))
	if target := cmp.Or(answered.Load(), begun.Load()); target != nil {
		called = *target
	}
	if err == nil {
		greeting = rsp.Greeting
	}
	return greeting, called, err
}

// greet answers the form.
func (d *dashboard) greet(ctx context.Context, name string) (answer, int) {
	defer d.hub.join()()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	begin := time.Now()
	greeting, called, err := d.hello(ctx, name, func(sample) {})
	a := answer{Greeting: greeting, Pod: called.pod, Address: called.address, Millis: float64(time.Since(begin).Microseconds()) / 1000}
	if a.Address != "" && a.Pod == "" { // the view of the registry may be the first
		if v, err := d.hub.wait(ctx); err == nil {
			a.Pod = v.podAt(greeterName, a.Address)
		}
	}
	if err == nil {
		return a, http.StatusOK
	}
	logger.Warnf("Calling %q at %q: %v", "Greeter.Hello", cmp.Or(a.Address, greeterName), err)
	var e *microerrors.Error
	switch v, waitErr := d.hub.wait(ctx); {
	case a.Address == "" && (waitErr != nil || v.Problem != ""):
		a.Problem = fmt.Sprintf("The registry cannot be read, so this pod knows no instance of %s. Try again later.", greeterName)
		return a, http.StatusServiceUnavailable
	case a.Address == "":
		a.Problem = fmt.Sprintf("No instance of %s is ready.", greeterName)
		return a, http.StatusServiceUnavailable
	case errors.As(err, &e) && e.Code == http.StatusRequestTimeout:
		a.Problem = fmt.Sprintf("No answer within %s.", callTimeout)
		return a, http.StatusGatewayTimeout
	}
	a.Problem = "The call failed; the log of " + cmp.Or(d.podName, "this pod") + " says why."
	return a, http.StatusBadGateway
}
