package dashboard

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod"
)

// A web site whose name resolves to the address of the dashboard (DNS rebinding)
// is same-origin to a browser. Only the Host header distinguishes its requests.
func TestHostHeader(t *testing.T) {
	t.Setenv("DASHBOARD_HOSTS", "registry.example.com, Other.example.com:8080")
	_, _, srv := serve(t, greeterInstance(1, pod.Ready))
	for host, want := range map[string]int{
		"127.0.0.1:9200":                 200,
		"10.244.0.5:9200":                200,
		"192.168.1.1":                    200,
		"[::1]:9200":                     200,
		"[fd00::5]":                      200,
		"localhost:9200":                 200,
		"LOCALHOST.":                     200,
		"go-micro-web":                   200,
		"go-micro-web:9200":              200,
		"go-micro-web.go-micro":          200,
		"go-micro-web.go-micro.":         200,
		"go-micro-web.go-micro.svc:9200": 200,
		"go-micro-web.go-micro.svc.cluster.local:9200": 200,
		"registry.example.com":                         200,
		"REGISTRY.example.com:443":                     200,
		"other.example.com":                            200,
		"evil.example:9200":                            421,
		"localhost.evil.example":                       421,
		"127.0.0.1.evil.example":                       421,
		"go-micro-web.com":                             421,
		"go-micro-web.evil.svc":                        421,
		"go-micro-web.go-micro.svc.evil.example":       421,
		"registry.example.com.evil.example":            421,
		"example.com":                                  421,
	} {
		for _, request := range []struct{ method, path string }{
			{"GET", ""}, {"GET", "services.json"}, {"GET", "page.js"}, {"POST", ""},
			{"GET", "changes.json"}, {"GET", "calls.json"}, {"GET", "events"}, {"POST", "events"},
		} {
			var body io.Reader
			if request.method == "POST" {
				body = strings.NewReader("name=you&rate=1")
			}
			req, err := http.NewRequest(request.method, srv.URL+root+request.path, body)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("Sec-Fetch-Site", "same-origin") // as a browser sends it after rebinding
			rsp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			rsp.Body.Close()
			if rsp.StatusCode != want {
				t.Errorf("%s %s with the Host header %q: %s, want %d", request.method, root+request.path, host, rsp.Status, want)
			}
		}
	}
}
