package dashboard

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/test/browser"
)

// These tests show the page in a real browser, with a registry that they control.
// They need Chromium, and with -short they are skipped.

const (
	connectionText = `document.getElementById("connection").textContent`
	contactText    = `document.getElementById("contact").textContent`
)

func needsBrowser(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a browser")
	}
}

// fastTimers makes the timers of a page timerFactor times as fast.
const (
	timerFactor = 10
	fastTimers  = `{ const original = setTimeout; window.setTimeout = (f, ms) => original(f, ms / 10) }`
)

func openPage(t *testing.T, srv *httptest.Server) *browser.Tab {
	t.Helper()
	return openPageWith(t, srv, "")
}

// openPageWith opens the page after a script that runs before those of the page.
func openPageWith(t *testing.T, srv *httptest.Server, script string) *browser.Tab {
	t.Helper()
	b := browser.Open(t, "about:blank", nil)
	browser.Run(b, browser.Command(cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: script}))
	b.Do(chromedp.Navigate(srv.URL + root))
	t.Cleanup(func() {
		if messages := b.Messages(); len(messages) > 0 {
			t.Errorf("the console of the browser shows %q", messages)
		}
	})
	return b
}

func TestBrowserRebinding(t *testing.T) {
	needsBrowser(t)
	_, _, srv := serve(t, greeterInstance(1, pod.Ready))
	host := strings.Replace(srv.Listener.Addr().String(), "127.0.0.1", "evil.example", 1)
	b := browser.Open(t, "http://"+host+"/", map[string]string{"host-resolver-rules": "MAP evil.example 127.0.0.1"})
	for _, request := range []string{
		`fetch("/registry/services.json")`,
		`fetch("/registry/", {method: "POST", body: new URLSearchParams({name: "you"})})`,
	} {
		browser.Evaluate[bool](b, `window.result = "", `+request+`.then(async r => result = r.status + " " + await r.text(), e => result = "" + e), true`)
		b.Wait("the answer", `result`)
		if got := browser.Evaluate[string](b, `result`); !strings.HasPrefix(got, "421 ") || strings.Contains(got, "go-micro-srv-1") {
			t.Errorf("%s from %s: %s", request, host, got)
		}
	}
}

func TestBrowserAcceptsTheNamesThatTheServerAccepts(t *testing.T) {
	needsBrowser(t)
	c, _, srv := serve(t, greeterInstance(1, pod.Ready))
	c.calledAddresses = []string{"10.244.0.1:9100"}
	b := openPage(t, srv)
	for _, name := range []string{
		"you", " you ", "", "   ", "\u5f20\u4f1f", "O'Brien-Smith <3", "Zoe\u0308", "👋🏽",
		strings.Repeat("x", 64), strings.Repeat("x", 65), strings.Repeat("👋", 64), strings.Repeat("👋", 65), strings.Repeat("x", 32) + " " + strings.Repeat("x", 32),
		"  " + strings.Repeat("x", 64) + "  ", "you\x00", "\x1b[31myou", "you\ttoo", "\tyou", "you\u202egnp.exe", "\u2066you\u2069", "you\u200btoo", "\u200d", "\ufeff", "\ufeffyou",
		"you\u00adtoo", "\u00a0you\u00a0", "a\u00a0b", "a\u3000b", "you\u2028too", "\u2028you", "\u0085you", "\u3164", "you\U000e0041", "you\ufe01", "you\ue000", "you\U0001fffe",
	} {
		rsp, err := http.PostForm(srv.URL+root, url.Values{"name": {name}})
		if err != nil {
			t.Fatal(err)
		}
		rsp.Body.Close()
		literal, err := json.Marshal(name) // JSON is JavaScript
		if err != nil {
			t.Fatal(err)
		}
		valid := browser.Evaluate[bool](b, `(() => { const input = document.getElementById("name"); input.value = `+string(literal)+`; return input.checkValidity() })()`)
		if valid != (rsp.StatusCode == http.StatusOK) {
			t.Errorf("the name %+q: the server answers %s, to the browser it is valid: %v", name, rsp.Status, valid)
		}
	}
}

func TestBrowserNeverShowsLiveWithAProblem(t *testing.T) {
	needsBrowser(t)
	c, d, srv := serve(t, greeterInstance(1, pod.Ready))
	d.heartbeat = 300 * time.Millisecond
	c.setLastContact(time.Now())
	b := openPage(t, srv)
	b.Wait("the event stream", connectionText+` === "Live"`)
	b.Wait("the time of the last contact", `/^API server heard from [0-5]s ago$/.test(`+contactText+`)`)
	c.set([]pod.Instance{greeterInstance(1, pod.Ready)}, errors.New("list pods: no answer"))
	b.Wait("the problem", `document.getElementById("problem").textContent`)
	for range 10 { // longer than three heartbeats
		if got := browser.Evaluate[string](b, connectionText); got != "Not live" {
			t.Fatalf("beside the problem the page shows %q", got)
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.set([]pod.Instance{greeterInstance(1, pod.Ready)}, nil)
	c.setLastContact(time.Now())
	b.Wait("the end of the problem", connectionText+` === "Live" && !document.getElementById("problem").textContent`)
}

// The registry reports neither a change nor an error, but the API server sends nothing:
// an open event stream does not prove that the pod can still read the registry.
func TestBrowserShowsSilenceOfTheAPIServer(t *testing.T) {
	needsBrowser(t)
	c, d, srv := serve(t, greeterInstance(1, pod.Ready))
	d.heartbeat = 300 * time.Millisecond
	c.setLastContact(time.Now())
	b := openPage(t, srv)
	b.Wait("the event stream", connectionText+` === "Live"`)
	contact := time.Now().Add(-13 * time.Second)
	c.setLastContact(contact)
	b.Wait("the earlier contact", `/^API server heard from 1[34]s ago$/.test(`+contactText+`)`)
	if got := browser.Evaluate[string](b, connectionText); got != "Live" && time.Since(contact) < 15*time.Second {
		t.Errorf("before 15 s have passed the page shows %q", got)
	}
	b.Wait("the silence", connectionText+` === "API server silent" && /^API server heard from 1[0-9]s ago$/.test(`+contactText+`)`)
	if took := time.Since(contact); took < 15*time.Second || took > 17*time.Second {
		t.Errorf("the page shows the silence after %s", took)
	}
	c.setLastContact(time.Now())
	b.Wait("the next contact", connectionText+` === "Live"`)
}

func TestBrowserPollsIfTheStreamIsRefused(t *testing.T) {
	needsBrowser(t)
	c, d, srv := serve(t, greeterInstance(1, pod.Ready))
	var releases []func()
	for range maxClientStreams {
		release, status, _ := d.hub.streams.open("127.0.0.1:1")
		if status != http.StatusOK {
			t.Fatal(status)
		}
		releases = append(releases, release)
	}
	d.heartbeat = 300 * time.Millisecond
	b := openPageWith(t, srv, fastTimers)
	b.Wait("the refusal", connectionText+` === "Too many viewers: updated every 10 s"`)
	c.set([]pod.Instance{greeterInstance(1, pod.Ready), greeterInstance(2, pod.Ready)}, nil)
	begin := time.Now()
	b.Wait("the next poll", `document.querySelectorAll("#services tbody tr").length === 2`)
	if took := time.Since(begin) * timerFactor; took > 40*time.Second { // the poll itself is not faster, and takes longer on a busy machine
		t.Errorf("a change is shown after %s", took)
	}
	if got := browser.Evaluate[string](b, connectionText); got != "Too many viewers: updated every 10 s" {
		t.Errorf("after the poll the page shows %q", got)
	}
	for _, release := range releases {
		release()
	}
	b.Wait("the event stream", connectionText+` === "Live"`)
}

func TestBrowserFilter(t *testing.T) {
	needsBrowser(t)
	var instances []pod.Instance
	for i := range 40 {
		in := greeterInstance(i, []pod.State{pod.Ready, pod.NotReady, pod.Terminating, pod.NodeUnreachable}[i%4])
		in.Service = []string{"billing", "greeter"}[i/20]
		in.Pod = fmt.Sprintf("pod-%02d", i)
		instances = append(instances, in)
	}
	_, _, srv := serve(t, instances...)
	b := openPage(t, srv)
	b.Wait("the event stream", connectionText+` === "Live"`)
	browser.Evaluate[bool](b, `document.querySelectorAll("#services details").forEach(d => d.open = true), true`)
	type result struct {
		Rows, Sections int
		States         []string
		Count          string
	}
	for _, test := range []struct {
		query string
		want  string
	}{
		{"", "40 in 2 [node unreachable not ready ready terminating] "},
		{"ready", "10 in 2 [ready] 10 of 40 instances"},
		{"READY", "10 in 2 [ready] 10 of 40 instances"},
		{"not ready", "10 in 2 [not ready] 10 of 40 instances"},
		{"not", "10 in 2 [not ready] 10 of 40 instances"},
		{"ready terminating", "20 in 2 [ready terminating] 20 of 40 instances"},
		{"unreachable", "10 in 2 [node unreachable] 10 of 40 instances"},
		{"node unreachable", "10 in 2 [node unreachable] 10 of 40 instances"},
		{"billing", "20 in 1 [node unreachable not ready ready terminating] 20 of 40 instances"},
		{"billing ready", "5 in 1 [ready] 5 of 40 instances"},
		{"pod-07", "1 in 1 [node unreachable] 1 of 40 instances"},
		{"nowhere", "0 in 0 [] 0 of 40 instances"},
		{"", "40 in 2 [node unreachable not ready ready terminating] "},
	} {
		browser.Evaluate[bool](b, fmt.Sprintf(`(() => { const q = document.getElementById("query"); q.value = %q; q.dispatchEvent(new Event("input")); return true })()`, test.query))
		got := browser.Evaluate[result](b, `(() => {
			const rows = [...document.querySelectorAll("#services tbody tr")].filter(row => row.checkVisibility())
			return {
				Rows: rows.length,
				Sections: [...document.querySelectorAll("#services section")].filter(section => section.checkVisibility()).length,
				States: [...new Set(rows.map(row => row.querySelector(".state").textContent))].sort(),
				Count: document.getElementById("matches").textContent}
		})()`)
		if s := fmt.Sprintf("%d in %d %v %s", got.Rows, got.Sections, got.States, got.Count); s != test.want {
			t.Errorf("the filter %q shows %s, want %s", test.query, s, test.want)
		}
	}
}

// A region that scrolls must be reachable with the keyboard. A region that does not
// scroll must not take the focus, because it would only be one more Tab key to press.
func TestBrowserFocusesOnlyRegionsThatScroll(t *testing.T) {
	needsBrowser(t)
	var instances []pod.Instance
	for i := range 100 {
		in := greeterInstance(i, pod.Ready)
		in.Service = map[bool]string{true: "large", false: "small"}[i >= 3]
		instances = append(instances, in)
	}
	c, _, srv := serve(t, instances...)
	b := openPage(t, srv)
	browser.Evaluate[bool](b, `document.querySelectorAll("#services details").forEach(d => d.open = true), true`)
	regions := `[...document.querySelectorAll("#services .instances")].map(e => [e.closest("section").dataset.key, e.getAttribute("role"), e.getAttribute("aria-label"), e.tabIndex].join(" ")).join("; ")`
	b.Wait("the regions", regions+` === "small   -1; large region Instances of large 0"`)
	c.set(instances[:5], nil)
	b.Wait("no region that scrolls", regions+` === "small   -1; large   -1"`)
}
