package dashboard

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	microerrors "github.com/micro/go-micro/v2/errors"
)

func TestForm(t *testing.T) {
	notFound := microerrors.New("go.micro.client", "service go-micro-srv: not found", 500)
	for _, test := range []struct {
		name, input         string
		addresses           []string
		callError           error
		code                int
		message, answeredBy string
	}{
		{"answered", " you ", []string{"10.244.0.1:9100"}, nil, 200, "Hello you!", "go-micro-srv-1"},
		{"answered by the second try", "you", []string{"10.244.0.1:9100", "10.244.0.2:9100"}, nil, 200, "Hello you!", "go-micro-srv-2"},
		{"answered by an instance that the view lacks", "you", []string{"10.244.0.7:9100"}, nil, 200, "Hello you!", "10.244.0.7:9100"},
		{"a name that is HTML", "<b>you</b>", []string{"10.244.0.1:9100"}, nil, 200, "Hello <b>you</b>!", "go-micro-srv-1"},
		{"no name", "  ", nil, nil, 400, "Enter a name of 1 to 64 characters.", ""},
		{"64 characters", strings.Repeat("ж", 64), []string{"10.244.0.1:9100"}, nil, 200, "Hello " + strings.Repeat("ж", 64) + "!", "go-micro-srv-1"},
		{"64 characters of two UTF-16 code units each", strings.Repeat("👋", 64), []string{"10.244.0.1:9100"}, nil, 200, "Hello " + strings.Repeat("👋", 64) + "!", "go-micro-srv-1"},
		{"65 characters", strings.Repeat("x", 65), nil, nil, 400, "Enter a name of 1 to 64 characters.", ""},
		{"invalid UTF-8", "\xff", nil, nil, 400, "Enter a name of 1 to 64 characters.", ""},
		{"form of more than 4 KiB", strings.Repeat("x", 5000), nil, nil, 400, "The form cannot be read.", ""},
		{"no instance", "you", nil, notFound, 503, "No instance of go-micro-srv is ready.", ""},
		{"no answer", "you", []string{"10.244.0.1:9100"}, microerrors.New("go.micro.client", "context deadline exceeded", 408), 504, "No answer within 5s.", "go-micro-srv-1"},
		{"call fails", "you", []string{"10.244.0.1:9100"}, errors.New("secret 10.0.0.1"), 502, "The call failed; the log of go-micro-web-1 says why.", "go-micro-srv-1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, _, srv := serve(t, greeterInstance(1, pod.Ready), greeterInstance(2, pod.Ready))
			c.calledAddresses, c.callError = test.addresses, test.callError
			for _, accept := range []string{"application/json", "text/html"} {
				req, err := http.NewRequest("POST", srv.URL+root, strings.NewReader(url.Values{"name": {test.input}}.Encode()))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				req.Header.Set("Accept", accept)
				rsp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(rsp.Body)
				rsp.Body.Close()
				if err != nil || rsp.StatusCode != test.code {
					t.Errorf("%s: %s, %v, want %d", accept, rsp.Status, err, test.code)
				}
				if accept == "application/json" {
					var a answer
					if err := json.Unmarshal(body, &a); err != nil || a.Greeting+a.Problem != test.message || a.Pod != test.answeredBy && a.Address != test.answeredBy {
						t.Errorf("the answer is %s, %v", body, err)
					}
					continue
				}
				escaped := strings.NewReplacer("<", "&lt;", ">", "&gt;").Replace(test.message)
				if !strings.Contains(string(body), `<b class="message">`+escaped+`</b> <code class="pod">`+test.answeredBy+`</code>`) || strings.Contains(string(body), "secret") {
					t.Errorf("the page does not show %q by %q:\n%s", escaped, test.answeredBy, body)
				}
			}
		})
	}
}

func TestNameCharacters(t *testing.T) {
	for name, want := range map[string]int{
		"\u5f20\u4f1f":       200,
		"\u5f20\u3000\u4f1f": 200,
		"O'Brien-Smith <3":   200,
		"Zoe\u0308":          200, // a combining mark
		"👋🏽":                 200,
		"\t you \n":          200, // spaces around the name are ignored
		"you\x00":            400,
		"\x1b[31myou":        400,
		"you\ttoo":           400,
		"you\u202egnp.exe":   400, // right-to-left override
		"\u2066you\u2069":    400, // directional isolate
		"you\u200btoo":       400, // zero width space
		"\u200d":             400,
		"\ufeff":             400,
		"you\u00adtoo":       400, // soft hyphen
		"you\u2028too":       400, // line separator
		"\u3164":             400, // Hangul filler, a letter that has no glyph
		"you\U000e0041":      400, // tag characters
		"you\ufe01\ufe02":    400, // variation selectors
		"you\ue000":          400, // private use
		"you\U0001fffe":      400, // noncharacter
	} {
		c, _, srv := serve(t, greeterInstance(1, pod.Ready))
		c.calledAddresses = []string{"10.244.0.1:9100"}
		rsp, err := http.PostForm(srv.URL+root, url.Values{"name": {name}})
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(rsp.Body)
		rsp.Body.Close()
		if err != nil || rsp.StatusCode != want {
			t.Errorf("the name %+q: %s, %v, want %d", name, rsp.Status, err, want)
		}
		text := html.UnescapeString(string(body))
		if want == 400 && (!strings.Contains(text, "invisible character U+") || strings.Contains(text, strings.Trim(name, "you"))) {
			t.Errorf("the name %+q: the page does not name the character, or repeats it", name)
		}
	}
}

func TestSlowFormIsCutOff(t *testing.T) {
	_, d, srv := serve(t, greeterInstance(1, pod.Ready))
	d.formTimeout = 200 * time.Millisecond
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nAccept: application/json\r\nContent-Length: 100\r\n\r\nn", root)
	begin := time.Now()
	_ = conn.SetReadDeadline(begin.Add(20 * time.Second))
	all, err := io.ReadAll(conn) // until the server closes the connection
	if err != nil || !strings.HasPrefix(string(all), "HTTP/1.1 408 ") || !strings.Contains(string(all), "The form did not arrive within 200ms.") {
		t.Errorf("after %s the answer is %q, %v", time.Since(begin), all, err)
	}
}

// The call that follows the form takes longer than the timeout of the form.
func TestFormTimeoutEndsWithTheForm(t *testing.T) {
	c, d, srv := serve(t, greeterInstance(1, pod.Ready))
	d.formTimeout, c.calledAddresses, c.delay = 100*time.Millisecond, []string{"10.244.0.1:9100"}, 300*time.Millisecond
	rsp, err := http.PostForm(srv.URL+root, url.Values{"name": {"you"}})
	if err != nil {
		t.Fatal(err)
	}
	rsp.Body.Close()
	if rsp.StatusCode != http.StatusOK {
		t.Errorf("the answer is %s", rsp.Status)
	}
}

func TestNoInstanceWhileRegistryCannotBeRead(t *testing.T) {
	for _, test := range []struct {
		name    string
		err     error
		message string
	}{
		{"registry is read", nil, "No instance of go-micro-srv is ready."},
		{"registry cannot be read", errors.New("list pods: no answer"), "The registry cannot be read, so this pod knows no instance of go-micro-srv. Try again later."},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, _, srv := serve(t)
			c.set([]pod.Instance{greeterInstance(1, pod.Ready)}, test.err)
			c.callError = microerrors.New("go.micro.client", "context deadline exceeded", 408) // of the lookup, not of a call
			req, err := http.NewRequest("POST", srv.URL+root, strings.NewReader("name=you"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("Accept", "application/json")
			rsp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer rsp.Body.Close()
			var a answer
			if err := json.NewDecoder(rsp.Body).Decode(&a); err != nil || rsp.StatusCode != http.StatusServiceUnavailable || a.Problem != test.message {
				t.Errorf("the answer is %s %q, %v; want %q", rsp.Status, a.Problem, err, test.message)
			}
		})
	}
}

func TestGreeterIsLookedUpForFirstViewer(t *testing.T) {
	c, _, srv := serve(t, greeterInstance(1, pod.Ready))
	informerStarted := func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.informerStarted }
	get(t, srv.URL+root+"page.css")
	if informerStarted() {
		t.Error("the Greeter is looked up without a viewer")
	}
	get(t, srv.URL+root)
	eventually(t, 10*time.Second, "the lookup of the Greeter", informerStarted)
}
