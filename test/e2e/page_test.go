//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/jiangjiancc/go_micro_k8s/test/browser"
)

var screenshots = flag.Bool("screenshots", false, "TestPage writes its screenshots to media/, which the READMEs show")

// TestPage views the dashboard of go-micro-web in a real browser, at the address
// that make demo prints, while pods start, freeze and terminate.
func TestPage(t *testing.T) {
	kubectl(t, "apply", "-f", "k8s/namespace.yaml", "-f", "k8s/configmap-rbac.yaml", "-f", "k8s/pod-rbac.yaml",
		"-f", "go-micro-srv/k8s/deployment.yaml", "-f", "go-micro-srv/k8s/service.yaml", "-f", "go-micro-web/k8s/deployment.yaml", "-f", "go-micro-web/k8s/service.yaml",
		"-f", "go-micro-client/k8s/deployment.yaml")
	for _, d := range []string{"go-micro-srv", "go-micro-web", "go-micro-client"} {
		kubectl(t, "rollout", "status", "-n", namespace, "deployment/"+d, "--timeout=2m")
	}
	t.Cleanup(func() { scale(t, 2) })
	b := openTab(t, pageURL(t), nil)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *tab)
	}{
		{"the page shows all registered instances", pageInstances},
		{"the page is served only at its own hosts", pageHosts},
		{"scaling to 5 and to 1 appears at once", pageScaling},
		{"the page works with the keyboard alone", pageKeyboard},
		{"several pods answer the form", pageForm},
		{"a frozen pod becomes not ready", pageFrozenPod},
		{"HTML in the registry is shown as text", pageInjection},
		{"the page survives a rollout of go-micro-web", pageRollout},
		{"a frozen API server", pageFrozenAPIServer},
		{"500 more instances", pageManyInstances},
		{"a phone", pagePhone},
		{"no JavaScript", pageWithoutScript},
	} {
		t.Run(step.name, func(t *testing.T) {
			b.T = t
			step.run(t, b)
			if messages := b.Messages(); len(messages) > 0 {
				t.Errorf("the console of the browser shows %q", messages)
			}
		})
	}
}

// pageURL forwards a local port to go-micro-web and returns the URL of the page.
func pageURL(t *testing.T) string {
	t.Helper()
	var out bytes.Buffer
	if err := command(time.Minute, &out, "go", "run", "-C", "cluster", ".", "forward", "-name", clusterName, "go-micro/go-micro-web:9200"); err != nil {
		t.Fatal(err)
	}
	return "http://" + strings.TrimSpace(out.String()) + "/registry/"
}

// tab is a tab that shows the page.
type tab struct {
	*browser.Tab
	url string
}

func openTab(t *testing.T, url string, flags map[string]string) *tab {
	t.Helper()
	b := &tab{browser.Open(t, url, flags), url}
	b.Wait("the event stream", `document.getElementById("connection").textContent === "Live"`)
	return b
}

// rows is the JavaScript expression for the number of visible instances of a
// service in a state, or in any state if the state is empty.
func rows(service, state string) string {
	state = map[bool]string{true: ` .state[data-state="` + state + `"]`}[state != ""]
	return fmt.Sprintf(`document.querySelectorAll('section[data-key=%q] tbody tr:not([hidden])%s').length`, service, state)
}

// transition is the change of a pod of go-micro-srv to a state.
type transition struct {
	Pod   string `json:"pod"`
	State string `json:"state"`
	At    int64  `json:"at"` // Unix time in milliseconds
}

// recordTransitions records the times at which pods of go-micro-srv change their state
// in the API server and on the page, until stop is called. stop returns the transitions
// on the page, and the delay between API server and page of each transition to one of
// the given states.
func (b *tab) recordTransitions() (stop func(states ...string) (onPage []transition, delays []time.Duration)) {
	b.T.Helper()
	browser.Evaluate[bool](b.Tab, `(() => {
		const before = new Map()
		window.transitions = []
		const compare = () => {
			const now = new Map([...document.querySelectorAll('section[data-key="go-micro-srv"] tbody tr')].map(row => [row.querySelector('.pod').textContent, row.querySelector('.state span').textContent]))
			for (const pod of before.keys()) if (!now.has(pod)) now.set(pod, 'deleted')
			for (const [pod, state] of now) if (before.get(pod) !== state) {
				before.set(pod, state)
				transitions.push({pod, state, at: Date.now()})
			}
		}
		compare()
		transitions.length = 0
		new MutationObserver(compare).observe(document.getElementById('services'), {childList: true, subtree: true, characterData: true})
		return true
	})()`)
	ctx, cancel := context.WithCancel(context.Background())
	watch := exec.CommandContext(ctx, "kubectl", "get", "pods", "-n", namespace, "-l", "app=go-micro-srv", "--watch-only", "--output-watch-events", "--no-headers",
		"-o", `custom-columns=E:.type,N:.object.metadata.name,D:.object.metadata.deletionTimestamp,L:.object.metadata.labels.micro\.mu/selector-go-micro-srv,R:.object.status.conditions[?(@.type=="Ready")].status`)
	out, err := watch.StdoutPipe()
	if err == nil {
		err = watch.Start()
	}
	if err != nil {
		b.T.Fatal(err)
	}
	var mu sync.Mutex
	inAPIServer := map[transition]int64{} // from a transition without its time to its time
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			f := strings.Fields(lines.Text())
			if len(f) != 5 {
				continue
			}
			state := "not ready"
			switch {
			case f[0] == "DELETED":
				state = "deleted"
			case f[2] != "<none>":
				state = "terminating"
			case f[3] == "<none>":
				continue // not registered yet
			case f[4] == "True":
				state = "ready"
			}
			mu.Lock()
			if key := (transition{Pod: f[1], State: state}); inAPIServer[key] == 0 {
				inAPIServer[key] = time.Now().UnixMilli()
			}
			mu.Unlock()
		}
	}()
	end := sync.OnceFunc(func() { cancel(); <-ended; _ = watch.Wait() })
	b.T.Cleanup(end)
	return func(states ...string) (onPage []transition, delays []time.Duration) {
		b.T.Helper()
		onPage = browser.Evaluate[[]transition](b.Tab, `transitions`)
		end()
		mu.Lock()
		defer mu.Unlock()
		for _, m := range onPage {
			at, ok := inAPIServer[transition{Pod: m.Pod, State: m.State}]
			if ok && slices.Contains(states, m.State) {
				delays = append(delays, time.Duration(m.At-at)*time.Millisecond)
			}
		}
		slices.Sort(delays)
		return onPage, delays
	}
}

// checkDelays checks that at least n transitions were shown, each within 6 s. On
// an idle machine one second is enough.
func checkDelays(t *testing.T, delays []time.Duration, n int) {
	t.Helper()
	if len(delays) < n {
		t.Fatalf("%d transitions are shown, want %d", len(delays), n)
	}
	longest := delays[len(delays)-1]
	t.Logf("%d transitions; delay of the page behind the API server: median %s, longest %s", len(delays), delays[len(delays)/2], longest)
	if longest > 6*time.Second {
		t.Errorf("the longest delay is %s", longest)
	}
}

// ---- the steps ----

func pageInstances(t *testing.T, b *tab) {
	for _, service := range []string{"go-micro-srv", "go-micro-web"} {
		var want []string
		for _, p := range pods(t, service) {
			s, err := registration(p, service)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprintf("%s ready %s latest", p.Name, s.Nodes[0].Address))
		}
		got := browser.Evaluate[[]string](b.Tab, fmt.Sprintf(`[...document.querySelectorAll('section[data-key=%q] tbody tr')].map(row => [...row.children].slice(0, 4).map(cell => cell.textContent).join(' '))`, service))
		slices.Sort(want)
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("for %s the page shows %q, want %q", service, got, want)
		}
	}
	if got := browser.Evaluate[string](b.Tab, `document.querySelector('section[data-key="go-micro-srv"] .endpoints').textContent`); got != "Greeter.Hello(HelloRequest{name string}) → HelloResponse{greeting string}" {
		t.Errorf("go-micro-srv's endpoint is %q", got)
	}
	rsp, err := http.Get(b.url + "services.json")
	if err != nil {
		t.Fatal(err)
	}
	defer rsp.Body.Close()
	var view struct{ Services []struct{ Name string } }
	if err := json.NewDecoder(rsp.Body).Decode(&view); err != nil || len(view.Services) != 3 {
		t.Errorf("services.json has %v, %v; want 3 services", view, err)
	}
}

// pageHosts sends requests with the Host header of a web site whose name resolves to
// the address of the page (DNS rebinding), and with Host headers that must be accepted.
func pageHosts(t *testing.T, b *tab) {
	index := strings.TrimSuffix(b.url, "registry/")
	for _, test := range []struct {
		url, host string
		want      int
	}{
		{b.url + "services.json", "evil.example:9200", http.StatusMisdirectedRequest},
		{b.url + "services.json", "go-micro-web." + namespace + ".svc.cluster.local:9200", http.StatusOK},
		{b.url + "services.json", "go-micro-web." + namespace + ".evil.example", http.StatusMisdirectedRequest},
		{index, "any.example", http.StatusOK}, // the name of the pod, as in the document
		{index + "healthz", "any.example", http.StatusOK},
	} {
		r, err := http.NewRequest("GET", test.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = test.host
		rsp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		rsp.Body.Close()
		if rsp.StatusCode != test.want {
			t.Errorf("GET %s with the Host header %q: %s, want %d", test.url, test.host, rsp.Status, test.want)
		}
	}
	proxy := "/api/v1/namespaces/" + namespace + "/services/go-micro-web:9200/proxy/"
	if got := kubectl(t, "get", "--raw", proxy); !strings.HasPrefix(got, "go-micro-web-") {
		t.Errorf("GET / through the API server is answered with %q", got)
	}
	if got := kubectl(t, "get", "--raw", proxy+"registry/services.json"); !strings.HasPrefix(got, `{"pod":"go-micro-web-`) {
		t.Errorf("services.json through the API server is %q", got)
	}
}

func pageScaling(t *testing.T, b *tab) {
	stop := b.recordTransitions()
	for _, n := range []int{5, 1} {
		scale(t, n)
		b.Wait(fmt.Sprintf("%d instances", n), fmt.Sprintf("%s === %d && %s === %d", rows("go-micro-srv", ""), n, rows("go-micro-srv", "ready"), n))
	}
	onPage, delays := stop("ready", "terminating", "deleted")
	checkDelays(t, delays, 3+4+4)
	history := map[string][]string{}
	for _, m := range onPage {
		history[m.Pod] = append(history[m.Pod], m.State)
	}
	deleted := 0
	for pod, states := range history {
		if n := len(states); states[n-1] == "deleted" {
			if deleted++; n < 2 || states[n-2] != "terminating" {
				t.Errorf("%s was %q; it was not terminating before it was deleted", pod, states)
			}
		}
	}
	if deleted != 4 {
		t.Errorf("%d instances disappeared, want 4: %v", deleted, onPage)
	}
}

func pageKeyboard(t *testing.T, b *tab) {
	focused := func() string {
		return browser.Evaluate[string](b.Tab, `document.activeElement.id || document.activeElement.className || document.activeElement.tagName`)
	}
	b.Do(chromedp.Navigate(b.url), chromedp.KeyEvent(kb.Tab))
	if got := focused(); got != "name" {
		t.Fatalf("the first Tab key moves the focus to %q", got)
	}
	b.Do(chromedp.KeyEvent("the keyboard"), chromedp.KeyEvent(kb.Enter)) // browsers select the old text on Tab
	b.Wait("the answer after Enter", `document.querySelector('#answers li')?.textContent.startsWith('Hello the keyboard! go-micro-srv-')`)
	b.Do(chromedp.KeyEvent(kb.Tab))
	if got := focused(); got != "BUTTON" {
		t.Fatalf("the second Tab key moves the focus to %q", got)
	}
	b.Do(chromedp.KeyEvent(" "))
	b.Wait("the answer after the space bar", `document.querySelectorAll('#answers li').length === 2`)
	if outline := browser.Evaluate[string](b.Tab, `getComputedStyle(document.activeElement).outlineStyle`); outline == "none" {
		t.Error("the focus is invisible")
	}
	browser.Evaluate[bool](b.Tab, `window.focused = document.activeElement, true`)
	scale(t, 3)
	b.Wait("three instances", rows("go-micro-srv", "ready")+` === 3`)
	if !browser.Evaluate[bool](b.Tab, `document.activeElement === window.focused`) {
		t.Errorf("with new instances the focus moved to %q", focused())
	}
	for _, want := range []string{"keep", "rate", "query", "sort", "SUMMARY"} {
		b.Do(chromedp.KeyEvent(kb.Tab))
		if got := focused(); got != want {
			t.Errorf("the next Tab key moves the focus to %q, want %q", got, want)
		}
	}
	b.Do(chromedp.KeyEvent(kb.Enter))
	b.Wait("the first service to be closed", `!document.querySelector('#services details').open`)
	b.Do(chromedp.KeyEvent(kb.Enter))
	b.Wait("the first service to be opened", `document.querySelector('#services details').open`)
}

func pageForm(t *testing.T, b *tab) {
	answered := map[string]bool{}
	for i := range 20 {
		browser.Evaluate[bool](b.Tab, fmt.Sprintf(`document.getElementById('name').value = 'caller %d', document.querySelector('button').click(), true`, i))
		b.Wait("the answer", fmt.Sprintf(`document.querySelector('#answers .message')?.textContent === 'Hello caller %d!'`, i))
		answered[browser.Evaluate[string](b.Tab, `document.querySelector('#answers .pod').textContent`)] = true
	}
	for _, p := range pods(t, "go-micro-srv") {
		delete(answered, p.Name)
	}
	if len(answered) > 0 {
		t.Errorf("answers came from %v, which are not pods of go-micro-srv", answered)
	}
	if n := browser.Evaluate[int](b.Tab, `new Set([...document.querySelectorAll('#answers .pod')].map(pod => pod.textContent)).size`); n < 2 {
		t.Error("one pod answered all of the last calls")
	}
}

func pageFrozenPod(t *testing.T, b *tab) {
	all := pods(t, "go-micro-srv")
	victim := podProcess(t, all[0])
	stop := b.recordTransitions()
	browser.Evaluate[bool](b.Tab, `document.getElementById('rate').value = 20, document.getElementById('keep').click(), true`)
	calls := func(name, state, share string) string {
		return fmt.Sprintf(`[...document.querySelectorAll('#traffic tbody tr')].some(row => row.dataset.key.startsWith(%q) && row.querySelector('.state').dataset.state === %q && %s)`, name+" ", state, share)
	}
	const some, none = `parseInt(row.querySelector('.share').textContent) > 0`, `row.querySelector('.share').textContent === '0 %'`
	b.Wait("calls to all instances", calls(all[0].Name, "ready", some)+"&&"+calls(all[1].Name, "ready", some)+"&&"+calls(all[2].Name, "ready", some))
	browser.Evaluate[bool](b.Tab, `document.getElementById('answers').replaceChildren(), document.activeElement.blur(), true`) // for the screenshots
	for n := 1; n <= 3 || n <= 8 && browser.Evaluate[int](b.Tab, `new Set([...document.querySelectorAll('#answers .pod')].map(pod => pod.textContent)).size`) == 1; n++ {
		browser.Evaluate[bool](b.Tab, `document.getElementById('name').value = 'you', document.querySelector('button').click(), true`)
		b.Wait("the answer", fmt.Sprintf(`document.querySelectorAll('#answers li').length === %d`, n))
	}
	thaw := sync.OnceFunc(func() { onNode(t, "sh", "-c", "kill -CONT "+victim+" || true") })
	t.Cleanup(thaw)
	onNode(t, "kill", "-STOP", victim)
	begin := time.Now()
	b.Wait("the frozen pod to become not ready", rows("go-micro-srv", "not ready")+` === 1`)
	b.Wait("the reason", `document.querySelector('section[data-key="go-micro-srv"] .reason').textContent.includes('readiness probe')`)
	b.Wait("the end of its share of the calls", calls(all[0].Name, "not ready", none))
	t.Logf("%s after the freeze its share is 0; %s", time.Since(begin).Round(100*time.Millisecond), browser.Evaluate[string](b.Tab, `document.getElementById('timeline-text').textContent`))
	kubectl(t, "delete", "pod", "-n", namespace, "--wait=false", all[1].Name)
	browser.Evaluate[bool](b.Tab, `document.querySelectorAll('tr.answered').forEach(row => row.classList.remove('answered')), true`)
	b.Wait("another pod to become terminating, also in the summary", rows("go-micro-srv", "terminating")+` === 1 && document.getElementById('summary').textContent.includes('terminating')`)
	const others = `document.querySelectorAll('#services section:not([data-key="go-micro-srv"]) summary').forEach(summary => summary.click()), true`
	browser.Evaluate[bool](b.Tab, others) // the pictures show the instances of one service
	b.screenshot("registry-light", "light")
	b.screenshot("registry-dark", "dark")
	browser.Evaluate[bool](b.Tab, others)
	thaw()
	b.Wait("all instances to become ready again", fmt.Sprintf(`%s === 3 && %s === 3`, rows("go-micro-srv", ""), rows("go-micro-srv", "ready")))
	b.Wait("its share of the calls", calls(all[0].Name, "ready", some))
	for _, want := range []string{"not ready " + all[0].Name, "back " + all[0].Name, "terminating " + all[1].Name, "left " + all[1].Name} {
		b.Wait("the change "+want, fmt.Sprintf(`[...document.querySelectorAll('#changes li')].some(li => li.textContent.replace(/\s+/g, ' ').includes(%q))`, want))
	}
	for _, change := range browser.Evaluate[[]string](b.Tab, `[...document.querySelectorAll('#changes li')].slice(0, 12).map(li => li.textContent.replace(/\s+/g, ' '))`) {
		t.Log(change)
	}
	browser.Evaluate[bool](b.Tab, `document.getElementById('keep').click(), true`)
	b.Wait("the stream without calls", `document.getElementById('traffic').hidden && document.getElementById('connection').textContent === 'Live'`)
	checkNoCalls(t, b)
	onPage, delays := stop("not ready", "ready", "terminating", "deleted")
	checkDelays(t, delays, 2)
	for _, m := range onPage {
		if m.Pod == all[0].Name {
			t.Logf("%+6.1f s after the freeze: %s", time.UnixMilli(m.At).Sub(begin).Seconds(), m.State)
		}
	}
}

// checkNoCalls checks that no pod of go-micro-web still calls for a page that has stopped
// asking for calls.
func checkNoCalls(t *testing.T, b *tab) {
	t.Helper()
	eventually(t, 10*time.Second, "the end of the calls", func() error {
		for range 10 { // a new connection may go to another pod
			rsp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(b.url + "calls.json")
			if err != nil {
				return err
			}
			var calls struct {
				Pod  string
				Rate int
			}
			err = json.NewDecoder(rsp.Body).Decode(&calls)
			rsp.Body.Close()
			if err != nil || calls.Rate != 0 {
				return fmt.Errorf("%s calls %d times a second: %v", calls.Pod, calls.Rate, err)
			}
		}
		return nil
	})
}

// screenshot takes a screenshot of the page in a theme.
func (b *tab) screenshot(name, theme string) {
	b.T.Helper()
	b.Do(browser.Theme(theme))
	png := browser.Run(b.Tab, chromedp.FullScreenshot(100))
	b.Do(browser.Theme("light"))
	dir := b.T.TempDir()
	if *screenshots {
		dir = filepath.Join(root, "media")
	}
	if len(png) < 10<<10 || len(png) > 350<<10 {
		b.T.Errorf("screenshot %q is %d bytes", name, len(png))
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)); err != nil {
		b.T.Error(err)
	}
}

// unscheduledPod is the manifest of a pod that no scheduler assigns to a node, with a registration.
func unscheduledPod(name, service, annotation string) string {
	return string(must(json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name, "namespace": namespace,
			"labels":      map[string]string{"app": "page-test", "micro.mu/type": "service", "micro.mu/selector-" + service: "service"},
			"annotations": map[string]string{"micro.mu/service-" + service: annotation}},
		"spec": map[string]any{"schedulerName": "nobody", "securityContext": map[string]any{"runAsNonRoot": true, "seccompProfile": map[string]string{"type": "RuntimeDefault"}},
			"containers": []any{map[string]any{"name": "main", "image": probeImage,
				"securityContext": map[string]any{"allowPrivilegeEscalation": false, "capabilities": map[string]any{"drop": []string{"ALL"}}}}}}})))
}

func deleteUnscheduledPods(t *testing.T) {
	t.Helper()
	kubectl(t, "delete", "pods", "-n", namespace, "-l", "app=page-test", "--grace-period=0", "--force", "--wait=false")
}

func pageInjection(t *testing.T, b *tab) {
	t.Cleanup(func() { deleteUnscheduledPods(t) })
	// The key of a registration is the service's name with "_" for what a label does not allow.
	const name, key = `<img src=x onerror=alert(1)>evil`, "_img_src_x_onerror_alert_1__evil"
	apply(t, unscheduledPod("evil", key, string(must(json.Marshal(map[string]any{"name": name, "version": `<script>alert(2)</script>`,
		"endpoints": []any{map[string]any{"name": `<b onclick=alert(3)>Click</b>`, "request": map[string]string{"name": "x", "type": `"><script>alert(4)</script>`}}},
		"nodes":     []any{map[string]string{"id": "evil", "address": `javascript:alert(5)`}}})))))
	shown := fmt.Sprintf(`[...document.querySelectorAll('h2 .name')].some(h => h.textContent === %q)`, name)
	check := func(source string) {
		t.Helper()
		b.Wait(source, shown)
		if n := browser.Evaluate[int](b.Tab, `document.querySelectorAll(':is(#services, #changes) :is(img, script, a), #services b').length`); n != 0 {
			t.Errorf("%s: the registry added %d elements", source, n)
		}
		for _, text := range []string{`<script>alert(2)</script>`, `<b onclick=alert(3)>Click</b>`, `"><script>alert(4)</script>`, `javascript:alert(5)`} {
			if !browser.Evaluate[bool](b.Tab, fmt.Sprintf(`document.getElementById('services').textContent.includes(%q)`, text)) {
				t.Errorf("%s: the page does not show %q", source, text)
			}
		}
	}
	check("the event")
	b.Do(chromedp.Navigate(b.url))
	check("the page from the server")
	// The security policy stops scripts even if somebody could write HTML into the page.
	got := browser.Evaluate[string](b.Tab, `(() => { try { document.body.innerHTML += '<img src=x onerror=alert(6)>'; return 'written' } catch (e) { return e.name } })()`)
	if got != "TypeError" {
		t.Errorf("writing HTML: %s, want a TypeError", got)
	}
	eventually(t, 10*time.Second, "the browser to report the blocked HTML", func() error {
		if messages := b.Messages(); len(messages) != 1 || !strings.Contains(messages[0], "TrustedHTML") {
			return fmt.Errorf("the console shows %q", messages)
		}
		return nil
	})
}

func pageRollout(t *testing.T, b *tab) {
	browser.Evaluate[bool](b.Tab, `window.notReloaded = true`)
	before := pods(t, "go-micro-web")
	begin := time.Now()
	kubectl(t, "rollout", "restart", "-n", namespace, "deployment/go-micro-web")
	kubectl(t, "rollout", "status", "-n", namespace, "deployment/go-micro-web", "--timeout=2m")
	old := make([]string, 0, len(before))
	for _, p := range before {
		old = append(old, p.Name)
	}
	// An open event stream must not keep its pod running until the grace period of 30 s ends.
	eventually(t, 20*time.Second, "the old pods to be deleted", func() error {
		for name := range strings.Lines(kubectl(t, "get", "pods", "-n", namespace, "-l", "app=go-micro-web", "-o", "name")) {
			if slices.Contains(old, strings.TrimPrefix(strings.TrimSpace(name), "pod/")) {
				return errors.New(name)
			}
		}
		return nil
	})
	b.Wait("the page to reconnect by itself", fmt.Sprintf(`window.notReloaded && document.getElementById('connection').textContent === 'Live' && !%s.includes(document.getElementById('server').textContent) && %s === 2 && %s === 2`,
		must(json.Marshal(old)), rows("go-micro-web", ""), rows("go-micro-web", "ready")))
	t.Logf("the rollout took %s", time.Since(begin).Round(100*time.Millisecond))
}

// pageFrozenAPIServer freezes the API server before new pods of go-micro-web have sent
// their first greeting, and checks that this greeting is answered.
func pageFrozenAPIServer(t *testing.T, b *tab) {
	kubectl(t, "rollout", "restart", "-n", namespace, "deployment/go-micro-web")
	kubectl(t, "rollout", "status", "-n", namespace, "deployment/go-micro-web", "--timeout=2m")
	b.Wait("two new instances", fmt.Sprintf(`%s === 2 && %s === 2`, rows("go-micro-web", ""), rows("go-micro-web", "ready")))
	eventually(t, time.Minute, "a view by both pods", func() error { // the form may go to either
		seen := map[string]bool{}
		for range 20 {
			rsp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(b.url + "services.json")
			if err != nil {
				return err
			}
			var v struct{ Pod string }
			err = json.NewDecoder(rsp.Body).Decode(&v)
			rsp.Body.Close()
			if err != nil {
				return err
			}
			seen[v.Pod] = true
		}
		if len(seen) != 2 {
			return fmt.Errorf("answers come from %v", seen)
		}
		return nil
	})
	b.Do(chromedp.Navigate(b.url))
	b.Wait("the event stream", `document.getElementById("connection").textContent === "Live"`)
	greet := func(name string) {
		t.Helper()
		browser.Evaluate[bool](b.Tab, fmt.Sprintf(`document.getElementById('name').value = %q, document.querySelector('button').click(), true`, name))
		b.Wait("the answer", fmt.Sprintf(`document.querySelector('#answers .message')?.textContent === 'Hello %s!'`, name))
	}
	apiServer := nodeProcess(t, "[k]ube-apiserver --")
	thaw := sync.OnceFunc(func() { onNode(t, "kill", "-CONT", apiServer) })
	t.Cleanup(thaw)
	onNode(t, "kill", "-STOP", apiServer)
	begin := time.Now()
	greet("early")
	b.Wait("the page to notice", `document.getElementById("connection").textContent !== "Live"`)
	noticed := time.Since(begin)
	t.Logf("the page shows the silence %s after the freeze", noticed.Round(100*time.Millisecond))
	if noticed > 25*time.Second { // the script waits for 15 s
		t.Errorf("the page says Live for %s after the freeze", noticed)
	}
	b.Wait("the problem", `document.getElementById("problem").textContent`)
	for range 10 {
		if got := browser.Evaluate[string](b.Tab, `document.getElementById("connection").textContent`); got == "Live" {
			t.Fatal("the page says Live beside the problem")
		}
		time.Sleep(200 * time.Millisecond)
	}
	greet("late")
	thaw()
	b.Wait("the end of the problem", `document.getElementById("connection").textContent === "Live" && !document.getElementById("problem").textContent`)
}

func pageManyInstances(t *testing.T, b *tab) {
	t.Cleanup(func() { deleteUnscheduledPods(t) })
	const n = 500
	var list []json.RawMessage
	for i := range n {
		list = append(list, json.RawMessage(unscheduledPod(fmt.Sprintf("crowd-%03d", i), "crowd",
			fmt.Sprintf(`{"name":"crowd","version":"v1","endpoints":[{"name":"Crowd.Call"}],"nodes":[{"id":"crowd-%[1]d","address":"10.1.%[2]d.%[3]d:9100"}]}`, i, i/250, i%250))))
	}
	file := filepath.Join(t.TempDir(), "crowd.json")
	if err := os.WriteFile(file, must(json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": list})), 0o644); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	kubectl(t, "create", "-f", file)
	t.Logf("%d pods are created in %s", n, time.Since(begin).Round(100*time.Millisecond))
	begin = time.Now()
	b.Wait("all instances", fmt.Sprintf(`%s === %d`, rows("crowd", ""), n))
	t.Logf("all instances are shown %s after the last pod was created", time.Since(begin).Round(10*time.Millisecond))
	if height := browser.Evaluate[int](b.Tab, `document.documentElement.scrollHeight`); height > 3000 {
		t.Errorf("the overview is %d pixels high", height)
	}
	browser.Evaluate[bool](b.Tab, `document.querySelector('section[data-key="crowd"] summary').click(), true`)
	b.Wait("the instances", `document.querySelector('section[data-key="crowd"] .instances').clientHeight > 0`)
	if !browser.Evaluate[bool](b.Tab, `document.querySelector('section[data-key="crowd"] .instances').clientHeight < innerHeight`) {
		t.Error("the instances of one service fill the window")
	}
	b.Do(chromedp.SendKeys(chromedp.ID("query"), "CROWD-49 not"))
	b.Wait("the filtered instances", fmt.Sprintf(`%s === 10 && document.querySelectorAll('#services tbody tr:not([hidden])').length === 10`, rows("crowd", "not ready")))
	b.Do(chromedp.SendKeys(chromedp.ID("query"), strings.Repeat(kb.Backspace, len("CROWD-49 not"))))
	deleteUnscheduledPods(t)
	b.Wait("all of them to disappear", rows("crowd", "")+` === 0`)
}

func pagePhone(t *testing.T, b *tab) {
	b.Do(chromedp.EmulateViewport(320, 640, chromedp.EmulateMobile))
	defer b.Do(chromedp.ResetViewport())
	b.Wait("the layout", `innerWidth === 320`)
	if width := browser.Evaluate[int](b.Tab, `document.documentElement.scrollWidth`); width > 320 {
		t.Errorf("the page is %d pixels wide, want at most 320", width)
	}
	roles := map[string]int{}
	for _, n := range browser.Run(b.Tab, browser.Command(accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})).Nodes {
		if !n.Ignored && n.Role != nil {
			roles[strings.Trim(string(n.Role.Value), `"`)]++
		}
	}
	instances, services := browser.Evaluate[int](b.Tab, `document.querySelectorAll('#services tbody tr').length`), browser.Evaluate[int](b.Tab, `document.querySelectorAll('#services section').length`)
	for role, want := range map[string]int{"table": services, "row": services + instances, "rowheader": instances, "columnheader": 6 * services, "cell": 5 * instances, "button": 1 + 2*instances, "checkbox": 1, "alert": 0} {
		if roles[role] != want {
			t.Errorf("the accessibility tree has %d of role %s, want %d", roles[role], role, want)
		}
	}
	if roles["status"] != 5 { // the summary, the connection, the calls, the number of matches, the copied text
		t.Errorf("%d parts of the page are announced when they change, want 5", roles["status"])
	}
}

func pageWithoutScript(t *testing.T, b *tab) {
	browser.Run(b.Tab, browser.Command(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}))
	b.Do(chromedp.Navigate(b.url))
	b.Wait("the instances", rows("go-micro-srv", "ready")+` === 3`)
	b.Do(chromedp.SendKeys(chromedp.ID("name"), kb.End+" and me"), chromedp.Click(chromedp.CSS("button")))
	b.Wait("the answer", `document.querySelector('#answers li')?.textContent.startsWith('Hello you and me! go-micro-srv-')`)
}
