package dashboard

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/test/browser"
	microerrors "github.com/micro/go-micro/v2/errors"
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

const (
	timerFactor = 10
	// fastTimers is a script that makes the timeouts of a page timerFactor times as short.
	fastTimers = `{ const original = setTimeout; window.setTimeout = (f, ms) => original(f, ms / 10) }`
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
	b := openPage(t, srv)
	b.Wait("the event stream", connectionText+` === "Live"`)
	b.Wait("the time of the last contact", `/^API server heard from [0-9]+s ago$/.test(`+contactText+`)`)
	c.set([]pod.Instance{greeterInstance(1, pod.Ready)}, errors.New("list pods: no answer"))
	b.Wait("the problem", `document.getElementById("problem").textContent`)
	for range 10 { // longer than three heartbeats
		if got := browser.Evaluate[string](b, connectionText); got != "Not live" {
			t.Fatalf("beside the problem the page shows %q", got)
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.set([]pod.Instance{greeterInstance(1, pod.Ready)}, nil)
	b.Wait("the end of the problem", connectionText+` === "Live" && !document.getElementById("problem").textContent`)
}

// The registry reports neither a change nor an error, but the API server sends nothing:
// an open event stream does not prove that the pod can still read the registry.
func TestBrowserShowsSilenceOfTheAPIServer(t *testing.T) {
	needsBrowser(t)
	c, d, srv := serve(t, greeterInstance(1, pod.Ready))
	d.heartbeat = 300 * time.Millisecond
	b := openPage(t, srv)
	b.Wait("the event stream", connectionText+` === "Live"`)
	contact := time.Now().Add(-13 * time.Second)
	c.setLastContact(contact)
	b.Wait("the earlier contact", `/^API server heard from (1[3-9]|2[0-9])s ago$/.test(`+contactText+`)`)
	if got := browser.Evaluate[string](b, connectionText); got != "Live" && time.Since(contact) < 15*time.Second {
		t.Errorf("before 15 s have passed the page shows %q", got)
	}
	b.Wait("the silence", connectionText+` === "API server silent" && /^API server heard from [12][0-9]s ago$/.test(`+contactText+`)`)
	if took := time.Since(contact); took < 15*time.Second || took > 20*time.Second {
		t.Errorf("the page shows the silence after %s", took)
	}
	c.setLastContact(time.Now())
	b.Wait("the next contact", connectionText+` === "Live"`)
}

// The page of a viewer who stays shows a date as soon as the change is of another day.
func TestBrowserDatesOldChanges(t *testing.T) {
	needsBrowser(t)
	_, d, srv := serve(t, greeterInstance(1, pod.Ready))
	before := now().Add(-49 * time.Hour)
	d.hub.changes.mu.Lock()
	d.hub.changes.add(before, left, instanceKey{"go-micro-srv", "old", "10.0.0.1:1"}, "")
	d.hub.changes.mu.Unlock()
	b := openPage(t, srv)
	const changeTime = `document.querySelector("#changes li time").textContent`
	b.Wait("the event stream", connectionText+` === "Live"`)
	b.Wait("the date of the change", changeTime+` === "`+before.Format(time.DateTime)+`"`)
	browser.Evaluate[bool](b, `Boolean(clockOffset -= 49 * 3600 * 1000)`) // the day of the change, until the next heartbeat
	b.Wait("the time of the change on its day", changeTime+` === "`+before.Format(time.TimeOnly)+`"`)
	b.Wait("the date of the change after a heartbeat", changeTime+` === "`+before.Format(time.DateTime)+`"`)
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
	if took := time.Since(begin) * timerFactor; took > 60*time.Second { // the poll itself is not faster, and takes longer on a busy machine
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

func press(key string) chromedp.Action[chromedp.Void] { return chromedp.KeyEvent(key) }

// calling is the text that the page announces about the calls.
const callingText = `document.getElementById("calling").textContent`

// share is the JavaScript expression for the share of the calls of an instance, as text.
func share(i int) string {
	return fmt.Sprintf(`[...document.querySelectorAll("#traffic tbody tr")].find(row => row.dataset.key.startsWith("go-micro-srv-%d "))?.querySelector(".share").textContent`, i)
}

func TestBrowserKeepsCalling(t *testing.T) {
	needsBrowser(t)
	instances := []pod.Instance{greeterInstance(1, pod.Ready), greeterInstance(2, pod.Ready), greeterInstance(3, pod.Ready)}
	own := webInstance(1)
	own.Zone, instances[0].Zone, instances[1].Zone, instances[2].Zone = "a", "a", "b", "b"
	c, d, srv := serve(t, append(slices.Clone(instances), own)...)
	d.traffic.window = 2 * time.Second
	c.setTries(alternate(address(1), address(2), address(3)))
	b := openPage(t, srv)
	b.Wait("the event stream", connectionText+` === "Live"`)
	if n := c.countCalls(); n != 0 || !browser.Evaluate[bool](b, `document.getElementById("traffic").hidden`) {
		t.Errorf("before anybody asks for calls there are %d, or their numbers are shown", n)
	}

	// With the keyboard alone: name, button, checkbox, rate.
	b.Do(press(kb.Tab), press(kb.Tab), press(kb.Tab))
	if got := browser.Evaluate[string](b, `document.activeElement.id`); got != "keep" {
		t.Fatalf("the third Tab key moves the focus to %q", got)
	}
	b.Do(press(" "), press(kb.Tab))
	if got := browser.Evaluate[string](b, `document.activeElement.id`); got != "rate" {
		t.Fatalf("the fourth Tab key moves the focus to %q", got)
	}
	b.Do(press("50"), press(kb.Enter)) // replaces the selected 10
	b.Wait("the calls", callingText+` === "go-micro-web-1 calls go-micro-srv 50 times a second: no failed call in the last 2 s"`)
	for i := 1; i <= 3; i++ {
		b.Wait("a third of the calls", `/^3[2-5] %$/.test(`+share(i)+`)`)
	}
	b.Wait("the share that stays in the zone", `/p99 [0-9.]+ ms, 3[2-5] % stayed in zone a$/.test(document.getElementById("timeline-text").textContent)`)
	b.Wait("the zones of the instances", `[...document.querySelectorAll("#services .zone")].map(zone => zone.textContent).join() === "zone a,zone b,zone b,zone a"`)

	// Instance 2 stalls: it is ejected, gets no calls, and becomes not ready.
	c.setTries(alternate(address(1), address(3)))
	until := time.Now().Add(20 * time.Second).UTC().Round(time.Second)
	c.setCalls(map[callTarget]targetCalls{{"go-micro-srv-2", address(2)}: {InFlight: 1, EjectedUntil: until, Certificate: certificate{"<b>a signer", until}}})
	d.hub.changes.events().Ejected("go-micro-srv", "go-micro-srv-2", address(2), 20*time.Second, errors.New("context deadline exceeded"))
	b.Wait("the end of its share", share(2)+` === "0 %"`)
	row := `[...document.querySelectorAll("#traffic tbody tr")].find(row => row.dataset.key.startsWith("go-micro-srv-2 ")).textContent`
	b.Wait("its ejection", row+`.includes("ejected until `+clock(until, now())+` UTC")`)
	encryption := "encrypted, certificate of <b>a signer until " + clock(until, now()) + " UTC"
	b.Wait("its certificate, in its row only", `[...document.querySelectorAll("#services tr")].filter(row => row.querySelector(".encryption")?.textContent).map(row => row.dataset.key + " " + row.querySelector(".encryption").textContent).join() === "go-micro-srv-2 `+address(2)+` `+encryption+`"`)
	b.Wait("its ejection in the text of the time line", `document.getElementById("timeline").getAttribute("aria-label").includes("go-micro-srv-2 ejected")`)
	b.Wait("its ejection in the changes", `document.querySelector("#changes li").textContent.includes("ejected go-micro-srv-2 for 20s: a call got no answer in time")`)
	stalled := greeterInstance(2, pod.NotReady)
	stalled.Reason = `container "main": the readiness probe does not succeed`
	c.set([]pod.Instance{instances[0], stalled, instances[2]}, nil)
	b.Wait("its state", row+`.includes("not ready")`)
	b.Wait("the reason", `document.querySelector("#services tr .reason").textContent.includes("readiness probe")`)

	// It returns.
	c.set(instances, nil)
	c.setCalls(nil)
	c.setTries(alternate(address(1), address(2), address(3)))
	b.Wait("its share again", `parseInt(`+share(2)+`) >= 25`)
	b.Wait("its return in the changes", `document.querySelector("#changes li").textContent.includes("back go-micro-srv-2 ready again")`)

	// A failure is announced.
	c.setTries(func() []string { return []string{address(1)} })
	c.mu.Lock()
	c.callError = errors.New("no")
	c.mu.Unlock()
	b.Wait("failures", `/: [0-9]+ failed calls in the last 2 s$/.test(`+callingText+`) && /Last minute: [0-9]+ calls, [1-9][0-9]* failed \([0-9]+ at [0-9:]{8}/.test(document.getElementById("timeline").getAttribute("aria-label"))`)

	// So are retries, and tries that a busy instance has refused.
	decided := d.traffic.events().RetryDecided
	c.setTries(func() []string {
		decided(t.Context(), pod.Retry{Service: greeterName})
		decided(t.Context(), pod.Retry{Service: greeterName, Refusal: "over_budget"})
		return []string{address(1)}
	})
	c.mu.Lock()
	c.callError = microerrors.New(greeterName, "overloaded", http.StatusTooManyRequests)
	c.mu.Unlock()
	b.Wait("the retries and the refusals", `/p99 [0-9.]+ ms, [0-9]+ retries, [0-9]+ not retried: over the retry budget$/.test(document.getElementById("timeline-text").textContent) && /[0-9]+ refused as busy/.test(document.querySelector("#traffic tbody tr").textContent)`)

	// The calls end when the viewer hides the page, resume when he shows it, and end with the checkbox.
	hide := func(hidden bool) {
		browser.Evaluate[bool](b, fmt.Sprintf(`Object.defineProperty(document, "hidden", {value: %v, configurable: true}), document.dispatchEvent(new Event("visibilitychange"))`, hidden))
	}
	stopped := func() bool { return d.traffic.rate() == 0 }
	hide(true)
	eventually(t, 10*time.Second, "the end of the calls of a hidden page", stopped)
	hide(false)
	eventually(t, 10*time.Second, "the calls of the page", func() bool { return d.traffic.rate() == 50 })
	browser.Evaluate[bool](b, `document.getElementById("keep").click(), true`)
	eventually(t, 10*time.Second, "the end of the calls", stopped)
	b.Wait("the end of the numbers", `document.getElementById("traffic").hidden && `+callingText+` === "" && `+connectionText+` === "Live"`)
	browser.Evaluate[bool](b, `document.getElementById("keep").click(), true`)
	eventually(t, 10*time.Second, "the calls again", func() bool { return d.traffic.rate() == 50 })
	b.Do(chromedp.Navigate("about:blank"))
	eventually(t, 10*time.Second, "the end of the calls of a page that was left", stopped)
}

func TestBrowserOverview(t *testing.T) {
	needsBrowser(t)
	var instances []pod.Instance
	for i := range 500 {
		in := greeterInstance(i, pod.Ready)
		in.Service, in.Pod, in.Version = fmt.Sprintf("service-%02d", i/10), fmt.Sprintf("pod-%03d", i), []string{"v1", "v2"}[i%2]
		if i == 277 {
			in.State, in.Reason = pod.NotReady, `container "main": CrashLoopBackOff`
		}
		instances = append(instances, in)
	}
	big := greeterInstance(1, pod.Ready)
	for i := range 20 {
		big.Service, big.Pod, big.Address = "service-49", fmt.Sprintf("more-%d", i), address(i)
		instances = append(instances, big)
	}
	_, _, srv := serve(t, instances...)
	b := openPage(t, srv)
	b.Wait("the event stream", connectionText+` === "Live"`)
	names := `[...document.querySelectorAll("#services section")].filter(s => s.checkVisibility()).map(s => s.dataset.key)`
	if open, height := browser.Evaluate[int](b, `document.querySelectorAll("#services [open]").length`), browser.Evaluate[int](b, `document.documentElement.scrollHeight`); open != 0 || height > 3500 {
		t.Errorf("of 50 services with 520 instances %d are open, and the page is %d pixels high", open, height)
	}
	first := browser.Evaluate[string](b, `document.querySelector("#services section").innerText`)
	if want := "service-27 9 ready, 1 not ready 5 v1, 5 v2"; strings.Join(strings.Fields(first), " ") != want {
		t.Errorf("the first service is %q, want %q", first, want)
	}
	sort := func(by string) []string {
		browser.Evaluate[bool](b, fmt.Sprintf(`(() => { const s = document.getElementById("sort"); s.value = %q; return s.dispatchEvent(new Event("change")) })()`, by))
		return browser.Evaluate[[]string](b, names)
	}
	if got := sort("name"); got[0] != "service-00" || got[49] != "service-49" {
		t.Errorf("by name: %q", got)
	}
	if got := sort("instances"); got[0] != "service-49" || got[1] != "service-00" {
		t.Errorf("by instances: %q", got)
	}
	if got := sort("unhealthy"); got[0] != "service-27" || got[1] != "service-00" {
		t.Errorf("unhealthy first: %q", got)
	}
	query := func(q string) {
		browser.Evaluate[bool](b, fmt.Sprintf(`(() => { const i = document.getElementById("query"); i.value = %q; return i.dispatchEvent(new Event("input")) })()`, q))
	}
	query("not ready")
	b.Wait("the instance that is not ready", `[...document.querySelectorAll("#services tbody tr")].filter(r => r.checkVisibility()).map(r => r.innerText.replace(/\s+/g, " ")).join() .startsWith('pod-277 not ready container "main": CrashLoopBackOff')`)
	query("")
	b.Wait("the overview", `document.querySelectorAll("#services [open]").length === 0`)

	// Details on demand, with the keyboard; the unhealthy instance is on top.
	browser.Evaluate[bool](b, `document.querySelector("#services summary").focus(), true`)
	b.Do(press(kb.Enter))
	b.Wait("the instances of the service", `[...document.querySelectorAll("#services tbody tr")].filter(r => r.checkVisibility()).map(r => r.querySelector(".pod").textContent).slice(0, 2).join() === "pod-277,pod-270"`)
}

func TestBrowserCopies(t *testing.T) {
	needsBrowser(t)
	hostile := greeterInstance(2, pod.Ready)
	hostile.Pod = "a; rm -rf ~"
	_, _, srv := serve(t, greeterInstance(1, pod.Ready), hostile)
	for _, script := range []string{
		`window.written = ""; Object.defineProperty(navigator, "clipboard", {value: {writeText: async text => { written = text }}})`,
		`window.written = ""; Object.defineProperty(navigator, "clipboard", {value: undefined}); // as over plain HTTP
			addEventListener("copy", event => written = event.clipboardData.getData("text/plain"))`,
	} {
		b := openPageWith(t, srv, script)
		b.Wait("the event stream", connectionText+` === "Live"`)
		for _, test := range []struct {
			pod       int
			what      string
			want, say string
		}{
			{0, "address", "10.244.0.1:9100", "Copied: 10.244.0.1:9100"},
			{0, "logs", "kubectl logs -n go-micro go-micro-srv-1", "Copied: kubectl logs -n go-micro go-micro-srv-1"},
			{1, "logs", "", "Nothing was copied."},
		} {
			browser.Evaluate[bool](b, fmt.Sprintf(`written = "", document.querySelectorAll("#services tbody tr")[%d].querySelector("[data-copy=%s]").focus(), true`, test.pod, test.what))
			b.Do(press(kb.Enter))
			b.Wait("the announcement", fmt.Sprintf(`document.getElementById("copied").textContent === %q`, test.say))
			if got := browser.Evaluate[string](b, `written`); got != test.want {
				t.Errorf("copying the %s of instance %d writes %q, want %q", test.what, test.pod, got, test.want)
			}
		}
	}
}

func TestBrowserTraces(t *testing.T) {
	needsBrowser(t)
	srv := serveTraced(t, retriedTraces(), greeterInstance(1, pod.Ready), greeterInstance(2, pod.Ready), webInstance(1))
	b := openPage(t, srv)
	click := func(link string) {
		browser.Evaluate[bool](b, fmt.Sprintf(`document.querySelector(%q).click(), true`, link))
	}
	click("a[href=traces]")
	b.Wait("the list", `document.querySelectorAll("#traces tbody tr").length === 1`)
	click("#traces a")
	b.Wait("the waterfall", `document.querySelectorAll("#waterfall tbody tr").length === 4`)
	// The bars as the browser draws them, in tenths of their column: the call has all of it, the failing attempt [1, 5], its handler [2, 4],
	// and the handler that answers [6, 9].
	got := browser.Evaluate[string](b, `[...document.querySelectorAll("#waterfall tbody tr")].map(row => {
		const all = row.querySelector("svg").getBoundingClientRect(), bar = row.querySelector("rect"), box = bar.getBoundingClientRect(), tenths = x => Math.round(10 * (x - all.left) / all.width);
		return [row.dataset.kind, tenths(box.left), tenths(box.right), row.querySelector(".pod").textContent, row.className].join(" ").trim()
	}).join("\n")`)
	want := "call 0 10 go-micro-web-1\nattempt 1 5 go-micro-web-1 failed\nhandler 2 4 go-micro-srv-1 failed\nhandler 6 9 go-micro-srv-2"
	if got != want {
		t.Errorf("the waterfall is\n%s\nwant\n%s", got, want)
	}
	if colours := browser.Evaluate[int](b, `new Set([...document.querySelectorAll("#waterfall rect")].map(r => getComputedStyle(r).fill)).size`); colours != 3 {
		t.Errorf("the bars of a call, of failures and of an answer have %d colours, want 3", colours)
	}
	if indents := browser.Evaluate[string](b, `[...document.querySelectorAll("#waterfall tbody th")].map(th => Math.round(parseFloat(getComputedStyle(th).paddingLeft) / 16)).join(" ")`); indents != "1 2 3 2" {
		t.Errorf("the spans are indented by %s", indents)
	}
	if browser.Evaluate[bool](b, `document.documentElement.scrollWidth > document.documentElement.clientWidth`) {
		t.Error("the page is wider than the window")
	}
	b.Do(chromedp.EmulateViewport(360, 800))
	if browser.Evaluate[bool](b, `document.documentElement.scrollWidth > document.documentElement.clientWidth`) {
		t.Error("the page is wider than a phone")
	}
	click("#contact a")
	b.Wait("the list again", `document.querySelectorAll("#traces tbody tr").length === 1`)
}
