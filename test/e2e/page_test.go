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
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

var screenshots = flag.Bool("screenshots", false, "TestPage writes its pictures to media/, where the READMEs show them")

// TestPage looks at go-micro-web's page in a real browser, the way a reader does:
// by the address that make demo prints, while pods come, freeze and go.
func TestPage(t *testing.T) {
	kubectl(t, "apply", "-f", "k8s/namespace.yaml", "-f", "k8s/configmap-rbac.yaml", "-f", "k8s/pod-rbac.yaml",
		"-f", "go-micro-srv/k8s/deployment.yaml", "-f", "go-micro-srv/k8s/service.yaml", "-f", "go-micro-web/k8s/deployment.yaml", "-f", "go-micro-web/k8s/service.yaml",
		"-f", "go-micro-client/k8s/deployment.yaml")
	for _, d := range []string{"go-micro-srv", "go-micro-web", "go-micro-client"} {
		kubectl(t, "rollout", "status", "-n", namespace, "deployment/"+d, "--timeout=2m")
	}
	t.Cleanup(func() { scale(t, 2) })
	b := openTab(t, pageAddress(t))
	for _, step := range []struct {
		name string
		run  func(*testing.T, *tab)
	}{
		{"it shows who is registered", pageShows},
		{"scale to 5 and 1: nodes come and go at once", pageScales},
		{"with the keyboard alone", pageKeyboard},
		{"the form is answered by one pod and another", pageGreets},
		{"a frozen pod turns unready", pageFrozen},
		{"HTML in the registry is text", pageInjected},
		{"a rollout of go-micro-web itself", pageRolled},
		{"500 nodes more", pageCrowded},
		{"on a phone", pageNarrow},
		{"without a script", pageScriptless},
	} {
		t.Run(step.name, func(t *testing.T) {
			b.t = t
			step.run(t, b)
			if said := b.complaints(); len(said) > 0 {
				t.Errorf("the browser complains: %q", said)
			}
		})
	}
}

// pageAddress is where the page is reached from outside the cluster.
func pageAddress(t *testing.T) string {
	t.Helper()
	var out bytes.Buffer
	if err := command(time.Minute, &out, "go", "run", "-C", "cluster", ".", "forward", "-name", clusterName, "go-micro/go-micro-web:9200"); err != nil {
		t.Fatal(err)
	}
	return "http://" + strings.TrimSpace(out.String()) + "/registry/"
}

// tab is a browser's tab. What it is asked takes 10 s at most.
type tab struct {
	t       *testing.T
	ctx     context.Context
	address string

	mu   sync.Mutex
	said []string // by the browser's console
}

func openTab(t *testing.T, address string) *tab {
	t.Helper()
	program := ""
	for _, name := range []string{"chromium", "google-chrome", "chromium-browser"} {
		if path, err := exec.LookPath(name); err == nil && program == "" {
			program = path
		}
	}
	if program == "" {
		t.Fatal("looking for a browser: neither chromium nor google-chrome is in PATH; install one, on Debian with `apt-get install --no-install-recommends chromium`")
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.ExecPath(program), chromedp.WindowSize(1000, 860))
	if os.Getuid() == 0 { // its sandbox wants an ordinary user
		options = append(options, chromedp.NoSandbox)
	}
	all, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, end := chromedp.NewContext(all)
	t.Cleanup(end)
	b := &tab{t: t, ctx: ctx, address: address}
	console := chromedp.Console(ctx)
	go func() {
		for m, err := range console {
			if err != nil {
				return
			}
			if m.Source != "network" { // a pod that goes cuts a stream off
				b.mu.Lock()
				b.said = append(b.said, m.String())
				b.mu.Unlock()
			}
		}
	}()
	b.do(looks("light"), chromedp.Navigate(address))
	b.wait("the live view", `document.getElementById("live").textContent === "Live"`)
	return b
}

func (b *tab) complaints() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	said := b.said
	b.said = nil
	return said
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	run(b, chromedp.Steps(steps...))
}

func run[T any](b *tab, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// call is a command of the browser's protocol.
func call[P, R any](command cdp.Command[P, R], params P) chromedp.Action[R] {
	return func(ctx context.Context, t *chromedp.Target) (R, error) { return cdp.Call(ctx, t, command, params) }
}

// looks makes the system one of a light or dark theme. Nothing is animated.
func looks(theme string) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (v chromedp.Void, err error) {
		_, err = cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
		return v, err
	}
}

// is evaluates an expression of JavaScript.
func is[T any](b *tab, expression string) T {
	b.t.Helper()
	return run(b, chromedp.Evaluate[T](expression))
}

// wait waits until an expression is true.
func (b *tab) wait(what, expression string) {
	b.t.Helper()
	eventually(b.t, time.Minute, what, func() error {
		if !is[bool](b, "!!("+expression+")") {
			return errors.New(is[string](b, `document.body.innerText`))
		}
		return nil
	})
}

// rows is the number of a service's nodes that are shown in a state, or in any.
func rows(service, state string) string {
	state = map[bool]string{true: ` .state[data-state="` + state + `"]`}[state != ""]
	return fmt.Sprintf(`document.querySelectorAll('section[data-key=%q] tbody tr:not([hidden])%s').length`, service, state)
}

// moment is when a pod of go-micro-srv got into a state.
type moment struct {
	Pod   string `json:"pod"`
	State string `json:"state"`
	At    int64  `json:"at"` // Unix time in milliseconds
}

// compare notes when go-micro-srv's pods change in the API server and when they
// do on the page, until seen is called. It returns the page's moments, and how
// much later they are than the API server's.
func (b *tab) compare() (seen func(states ...string) (onPage []moment, late []time.Duration)) {
	b.t.Helper()
	is[bool](b, `(() => {
		const was = new Map()
		window.moments = []
		const look = () => {
			const is = new Map([...document.querySelectorAll('section[data-key="go-micro-srv"] tbody tr')].map(row => [row.querySelector('.pod').textContent, row.querySelector('.state').textContent]))
			for (const pod of was.keys()) if (!is.has(pod)) is.set(pod, 'gone')
			for (const [pod, state] of is) if (was.get(pod) !== state) {
				was.set(pod, state)
				moments.push({pod, state, at: Date.now()})
			}
		}
		look()
		moments.length = 0
		new MutationObserver(look).observe(document.getElementById('services'), {childList: true, subtree: true, characterData: true})
		return true
	})()`)
	ctx, stop := context.WithCancel(context.Background())
	watch := exec.CommandContext(ctx, "kubectl", "get", "pods", "-n", namespace, "-l", "app=go-micro-srv", "--watch-only", "--output-watch-events", "--no-headers",
		"-o", `custom-columns=E:.type,N:.object.metadata.name,D:.object.metadata.deletionTimestamp,L:.object.metadata.labels.micro\.mu/selector-go-micro-srv,R:.object.status.conditions[?(@.type=="Ready")].status`)
	out, err := watch.StdoutPipe()
	if err == nil {
		err = watch.Start()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	var mu sync.Mutex
	first := map[moment]int64{} // without its time -> its time
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
				state = "gone"
			case f[2] != "<none>":
				state = "stopping"
			case f[3] == "<none>":
				continue // not registered yet
			case f[4] == "True":
				state = "ready"
			}
			mu.Lock()
			if m := (moment{Pod: f[1], State: state}); first[m] == 0 {
				first[m] = time.Now().UnixMilli()
			}
			mu.Unlock()
		}
	}()
	end := sync.OnceFunc(func() { stop(); <-ended; _ = watch.Wait() })
	b.t.Cleanup(end)
	return func(states ...string) (onPage []moment, late []time.Duration) {
		b.t.Helper()
		onPage = is[[]moment](b, `moments`)
		end()
		mu.Lock()
		defer mu.Unlock()
		for _, m := range onPage {
			at, ok := first[moment{Pod: m.Pod, State: m.State}]
			if ok && slices.Contains(states, m.State) {
				late = append(late, time.Duration(m.At-at)*time.Millisecond)
			}
		}
		slices.Sort(late)
		return onPage, late
	}
}

// timely wants n changes to have been shown soon. The second is for a
// quiet machine.
func timely(t *testing.T, late []time.Duration, n int) {
	t.Helper()
	if len(late) < n {
		t.Fatalf("%d changes are shown, want %d", len(late), n)
	}
	t.Logf("%d changes, shown after the API server's word: median %s, last %s", len(late), late[len(late)/2], late[len(late)-1])
	if late[len(late)-1] > 3*time.Second {
		t.Errorf("the last comes after %s", late[len(late)-1])
	}
}

// ---- the steps ----

func pageShows(t *testing.T, b *tab) {
	for _, service := range []string{"go-micro-srv", "go-micro-web"} {
		var want []string
		for _, p := range pods(t, service) {
			s, err := registration(p, service)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprintf("%s ready %s latest", p.Name, s.Nodes[0].Address))
		}
		got := is[[]string](b, fmt.Sprintf(`[...document.querySelectorAll('section[data-key=%q] tbody tr')].map(row => [...row.children].slice(0, 4).map(cell => cell.textContent).join(' '))`, service))
		slices.Sort(want)
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("of %s it shows %q, want %q", service, got, want)
		}
	}
	if got := is[string](b, `document.querySelector('section[data-key="go-micro-srv"] .endpoints').textContent`); got != "Greeter.Hello(HelloRequest{name string}) → HelloResponse{greeting string}" {
		t.Errorf("go-micro-srv's endpoint is %q", got)
	}
	rsp, err := http.Get(b.address + "services.json")
	if err != nil {
		t.Fatal(err)
	}
	defer rsp.Body.Close()
	var view struct{ Services []struct{ Name string } }
	if err := json.NewDecoder(rsp.Body).Decode(&view); err != nil || len(view.Services) != 3 {
		t.Errorf("to scripts it says %v, %v", view, err)
	}
}

func pageScales(t *testing.T, b *tab) {
	seen := b.compare()
	for _, n := range []int{5, 1} {
		scale(t, n)
		b.wait(fmt.Sprintf("%d nodes", n), fmt.Sprintf("%s === %d && %s === %d", rows("go-micro-srv", ""), n, rows("go-micro-srv", "ready"), n))
	}
	onPage, late := seen("ready", "stopping", "gone")
	timely(t, late, 3+4+4)
	last := map[string][]string{}
	for _, m := range onPage {
		last[m.Pod] = append(last[m.Pod], m.State)
	}
	gone := 0
	for pod, states := range last {
		if n := len(states); states[n-1] == "gone" {
			if gone++; n < 2 || states[n-2] != "stopping" {
				t.Errorf("%s was %q: it is to be seen stopping", pod, states)
			}
		}
	}
	if gone != 4 {
		t.Errorf("%d were seen going, want 4: %v", gone, onPage)
	}
}

func pageKeyboard(t *testing.T, b *tab) {
	on := func() string {
		return is[string](b, `document.activeElement.id || document.activeElement.className || document.activeElement.tagName`)
	}
	b.do(chromedp.Navigate(b.address), chromedp.KeyEvent(kb.Tab))
	if got := on(); got != "name" {
		t.Fatalf("the first Tab leads to %q", got)
	}
	b.do(chromedp.KeyEvent("the keyboard"), chromedp.KeyEvent(kb.Enter)) // what is there is selected, as browsers do on Tab
	b.wait("an answer to Enter", `document.querySelector('#answers li')?.textContent.startsWith('Hello the keyboard! go-micro-srv-')`)
	b.do(chromedp.KeyEvent(kb.Tab))
	if got := on(); got != "BUTTON" {
		t.Fatalf("the second Tab leads to %q", got)
	}
	b.do(chromedp.KeyEvent(" "))
	b.wait("an answer to the space bar", `document.querySelectorAll('#answers li').length === 2`)
	b.do(chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Tab)) // the nodes of the client or srv
	if got := on(); got != "nodes" {
		t.Fatalf("the fourth Tab leads to %q", got)
	}
	if outline := is[string](b, `getComputedStyle(document.activeElement).outlineStyle`); outline == "none" {
		t.Error("the focus cannot be seen")
	}
	is[bool](b, `window.focused = document.activeElement, true`)
	scale(t, 3)
	b.wait("three nodes", rows("go-micro-srv", "ready")+` === 3`)
	if !is[bool](b, `document.activeElement === window.focused`) {
		t.Errorf("with new nodes the focus has moved to %q", on())
	}
	for range 5 {
		b.do(chromedp.KeyEvent(kb.Tab))
		if on() == "A" {
			return
		}
	}
	t.Errorf("Tab does not lead to the link; it is on %q", on())
}

func pageGreets(t *testing.T, b *tab) {
	answered := map[string]bool{}
	for i := range 20 {
		is[bool](b, fmt.Sprintf(`document.getElementById('name').value = 'caller %d', document.querySelector('button').click(), true`, i))
		b.wait("an answer", fmt.Sprintf(`document.querySelector('#answers .says')?.textContent === 'Hello caller %d!'`, i))
		answered[is[string](b, `document.querySelector('#answers .pod').textContent`)] = true
	}
	for _, p := range pods(t, "go-micro-srv") {
		delete(answered, p.Name)
	}
	if len(answered) > 0 {
		t.Errorf("answers came from %v, which are no pods of go-micro-srv", answered)
	}
	if n := is[int](b, `new Set([...document.querySelectorAll('#answers .pod')].map(pod => pod.textContent)).size`); n < 2 {
		t.Error("one pod has answered all of the last calls")
	}
}

func pageFrozen(t *testing.T, b *tab) {
	all := pods(t, "go-micro-srv")
	victim := podProcess(t, all[0])
	seen := b.compare()
	is[bool](b, `document.getElementById('answers').replaceChildren(), document.activeElement.blur(), true`) // for the pictures
	for n := 1; n <= 3 || n <= 8 && is[int](b, `new Set([...document.querySelectorAll('#answers .pod')].map(pod => pod.textContent)).size`) == 1; n++ {
		is[bool](b, `document.getElementById('name').value = 'you', document.querySelector('button').click(), true`)
		b.wait("an answer", fmt.Sprintf(`document.querySelectorAll('#answers li').length === %d`, n))
	}
	thaw := sync.OnceFunc(func() { onNode(t, "sh", "-c", "kill -CONT "+victim+" || true") })
	t.Cleanup(thaw)
	onNode(t, "kill", "-STOP", victim)
	begin := time.Now()
	b.wait("the frozen one being not ready", rows("go-micro-srv", "not ready")+` === 1`)
	kubectl(t, "delete", "pod", "-n", namespace, "--wait=false", all[1].Name)
	is[bool](b, `document.querySelectorAll('.answered').forEach(row => row.classList.remove('answered')), true`)
	b.wait("another one stopping, and the summary saying so", rows("go-micro-srv", "stopping")+` === 1 && document.getElementById('summary').textContent.includes('stopping')`)
	b.picture("registry-light", "light")
	b.picture("registry-dark", "dark")
	thaw()
	b.wait("all being ready again", fmt.Sprintf(`%s === 3 && %s === 3`, rows("go-micro-srv", ""), rows("go-micro-srv", "ready")))
	onPage, late := seen("not ready", "ready", "stopping", "gone")
	timely(t, late, 2)
	for _, m := range onPage {
		if m.Pod == all[0].Name {
			t.Logf("%+6.1f s after its freezing: %s", time.UnixMilli(m.At).Sub(begin).Seconds(), m.State)
		}
	}
}

// picture takes one of the page as it is, in a theme.
func (b *tab) picture(name, theme string) {
	b.t.Helper()
	b.do(looks(theme))
	png := run(b, chromedp.FullScreenshot(100))
	b.do(looks("light"))
	dir := b.t.TempDir()
	if *screenshots {
		dir = filepath.Join(root, "media")
	}
	if len(png) < 10<<10 || len(png) > 150<<10 {
		b.t.Errorf("picture %q is %d bytes", name, len(png))
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)); err != nil {
		b.t.Error(err)
	}
}

// neverRuns is a pod that no scheduler takes, registered as the annotation says.
func neverRuns(name, service, annotation string) string {
	return string(must(json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name, "namespace": namespace,
			"labels":      map[string]string{"app": "page-test", "micro.mu/type": "service", "micro.mu/selector-" + service: "service"},
			"annotations": map[string]string{"micro.mu/service-" + service: annotation}},
		"spec": map[string]any{"schedulerName": "nobody", "securityContext": map[string]any{"runAsNonRoot": true, "seccompProfile": map[string]string{"type": "RuntimeDefault"}},
			"containers": []any{map[string]any{"name": "main", "image": probeImage,
				"securityContext": map[string]any{"allowPrivilegeEscalation": false, "capabilities": map[string]any{"drop": []string{"ALL"}}}}}}})))
}

func forgetPageTest(t *testing.T) {
	t.Helper()
	kubectl(t, "delete", "pods", "-n", namespace, "-l", "app=page-test", "--grace-period=0", "--force", "--wait=false")
}

func pageInjected(t *testing.T, b *tab) {
	t.Cleanup(func() { forgetPageTest(t) })
	const name = `<img src=x onerror=alert(1)>`
	apply(t, neverRuns("evil", "evil", string(must(json.Marshal(map[string]any{"name": name, "version": `<script>alert(2)</script>`,
		"endpoints": []any{map[string]any{"name": `<b onclick=alert(3)>Click</b>`, "request": map[string]string{"name": "x", "type": `"><script>alert(4)</script>`}}},
		"nodes":     []any{map[string]string{"id": "evil", "address": `javascript:alert(5)`}}})))))
	there := fmt.Sprintf(`[...document.querySelectorAll('h2 .name')].some(h => h.textContent === %q)`, name)
	as := func(what string) {
		t.Helper()
		b.wait(what, there)
		if n := is[int](b, `document.querySelectorAll('#services :is(img, script, b, a)').length`); n != 0 {
			t.Errorf("%s: %d elements came from the registry", what, n)
		}
		for _, text := range []string{`<script>alert(2)</script>`, `<b onclick=alert(3)>Click</b>`, `"><script>alert(4)</script>`, `javascript:alert(5)`} {
			if !is[bool](b, fmt.Sprintf(`document.getElementById('services').textContent.includes(%q)`, text)) {
				t.Errorf("%s: it does not show %q", what, text)
			}
		}
	}
	as("as an event")
	b.do(chromedp.Navigate(b.address))
	as("in the page")
	// Even somebody who could write markup into the page runs nothing by it.
	got := is[string](b, `(() => { try { document.body.innerHTML += '<img src=x onerror=alert(6)>'; return 'written' } catch (e) { return e.name } })()`)
	if got != "TypeError" {
		t.Errorf("markup is %s", got)
	}
	eventually(t, 10*time.Second, "the browser saying that it has blocked it", func() error {
		if said := b.complaints(); len(said) != 1 || !strings.Contains(said[0], "TrustedHTML") {
			return fmt.Errorf("it says %q", said)
		}
		return nil
	})
}

func pageRolled(t *testing.T, b *tab) {
	is[bool](b, `window.loadedOnce = true`)
	before := pods(t, "go-micro-web")
	begin := time.Now()
	kubectl(t, "rollout", "restart", "-n", namespace, "deployment/go-micro-web")
	kubectl(t, "rollout", "status", "-n", namespace, "deployment/go-micro-web", "--timeout=2m")
	old := make([]string, 0, len(before))
	for _, p := range before {
		old = append(old, p.Name)
	}
	// An open stream must not hold its pod until the grace period of 30 s ends.
	eventually(t, 20*time.Second, "the old pods being gone", func() error {
		for name := range strings.Lines(kubectl(t, "get", "pods", "-n", namespace, "-l", "app=go-micro-web", "-o", "name")) {
			if slices.Contains(old, strings.TrimPrefix(strings.TrimSpace(name), "pod/")) {
				return errors.New(name)
			}
		}
		return nil
	})
	b.wait("the page being live again, by itself", fmt.Sprintf(`window.loadedOnce && document.getElementById('live').textContent === 'Live' && !%s.includes(document.getElementById('seen').textContent) && %s === 2 && %s === 2`,
		must(json.Marshal(old)), rows("go-micro-web", ""), rows("go-micro-web", "ready")))
	t.Logf("rolled in %s", time.Since(begin).Round(100*time.Millisecond))
}

func pageCrowded(t *testing.T, b *tab) {
	t.Cleanup(func() { forgetPageTest(t) })
	const n = 500
	var list []json.RawMessage
	for i := range n {
		list = append(list, json.RawMessage(neverRuns(fmt.Sprintf("crowd-%03d", i), "crowd",
			fmt.Sprintf(`{"name":"crowd","version":"v1","endpoints":[{"name":"Crowd.Call"}],"nodes":[{"id":"crowd-%[1]d","address":"10.1.%[2]d.%[3]d:9100"}]}`, i, i/250, i%250))))
	}
	file := filepath.Join(t.TempDir(), "crowd.json")
	if err := os.WriteFile(file, must(json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": list})), 0o644); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	kubectl(t, "create", "-f", file)
	t.Logf("%d pods are made in %s", n, time.Since(begin).Round(100*time.Millisecond))
	begin = time.Now()
	b.wait("all of them", fmt.Sprintf(`%s === %d`, rows("crowd", ""), n))
	t.Logf("all of them are shown %s after the last was made", time.Since(begin).Round(10*time.Millisecond))
	if !is[bool](b, `document.querySelector('section[data-key="crowd"] .nodes').clientHeight < innerHeight`) {
		t.Error("they do not fit into the window: the other services are out of sight")
	}
	b.do(chromedp.SendKeys(chromedp.ID("words"), "CROWD-49 not"))
	b.wait("those that the filter leaves", fmt.Sprintf(`%s === 10 && document.querySelectorAll('tbody tr:not([hidden])').length === 10`, rows("crowd", "not ready")))
	b.do(chromedp.SendKeys(chromedp.ID("words"), strings.Repeat(kb.Backspace, len("CROWD-49 not"))))
	forgetPageTest(t)
	b.wait("all of them gone", rows("crowd", "")+` === 0`)
}

func pageNarrow(t *testing.T, b *tab) {
	b.do(chromedp.EmulateViewport(320, 640, chromedp.EmulateMobile))
	defer b.do(chromedp.ResetViewport())
	b.wait("the layout", `innerWidth === 320`)
	if width := is[int](b, `document.documentElement.scrollWidth`); width > 320 {
		t.Errorf("it is %d pixels wide", width)
	}
	roles := map[string]int{}
	for _, n := range run(b, call(accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})).Nodes {
		if !n.Ignored && n.Role != nil {
			roles[strings.Trim(string(n.Role.Value), `"`)]++
		}
	}
	nodes, services := is[int](b, `document.querySelectorAll('tbody tr').length`), is[int](b, `document.querySelectorAll('section').length`)
	for role, want := range map[string]int{"table": services, "row": services + nodes, "rowheader": nodes, "columnheader": 5 * services, "cell": 4 * nodes, "button": 1, "alert": 0} {
		if roles[role] != want {
			t.Errorf("to a screen reader it has %d of role %s, want %d", roles[role], role, want)
		}
	}
	if roles["status"] != 2 {
		t.Errorf("%d parts are read out when they change, want 2", roles["status"])
	}
}

func pageScriptless(t *testing.T, b *tab) {
	run(b, call(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}))
	b.do(chromedp.Navigate(b.address))
	b.wait("the nodes", rows("go-micro-srv", "ready")+` === 3`)
	b.do(chromedp.SendKeys(chromedp.ID("name"), kb.End+" and me"), chromedp.Click(chromedp.CSS("button")))
	b.wait("the answer", `document.querySelector('#answers li')?.textContent.startsWith('Hello you and me! go-micro-srv-')`)
}
