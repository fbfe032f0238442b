// Package browser drives Chromium in tests: it opens a page, waits until a
// JavaScript expression is true, and collects the messages of the console.
package browser

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// Tab is the only tab of a browser. Each of its operations may take a minute and fails
// the test T if it does not succeed.
type Tab struct {
	T   *testing.T // the test that runs; a subtest sets its own
	ctx context.Context

	mu       sync.Mutex
	messages []string
}

// Open starts a browser with a light theme and no animations, and opens a page.
// The browser ends with the test. flags are flags of Chromium, without dashes.
func Open(t *testing.T, url string, flags map[string]string) *Tab {
	t.Helper()
	dir := temporary(t)
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.ExecPath(find(t)), chromedp.WindowSize(1000, 860),
		chromedp.UserDataDir(filepath.Join(dir, "profile")), chromedp.Env("TMPDIR="+dir), chromedp.WSURLReadTimeout(time.Minute))
	if os.Getuid() == 0 { // the sandbox of Chromium does not work for root
		options = append(options, chromedp.NoSandbox)
	}
	for name, value := range flags {
		options = append(options, chromedp.Flag(name, value))
	}
	browser, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, end := chromedp.NewContext(browser)
	t.Cleanup(end)
	b := &Tab{T: t, ctx: ctx}
	console := chromedp.Console(ctx)
	go func() {
		for m, err := range console {
			if err != nil {
				return
			}
			if m.Source != "network" { // a terminating pod ends its streams
				b.mu.Lock()
				b.messages = append(b.messages, m.String())
				b.mu.Unlock()
			}
		}
	}()
	b.Do(Theme("light"), chromedp.Navigate(url))
	return b
}

// temporary returns a directory for all files of a browser, which a browser that is killed leaves
// behind. It is not t.TempDir: its path may be too long for Chromium's Unix socket, and Chromium's child
// processes end, and stop writing, a moment after the browser.
func temporary(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "browser-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end := time.Now().Add(20 * time.Second)
		for err := os.RemoveAll(dir); err != nil; err = os.RemoveAll(dir) {
			if time.Now().After(end) {
				t.Error(err)
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	return dir
}

func find(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "google-chrome", "chromium-browser"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatal("looking for a browser: neither chromium nor google-chrome is in PATH; install one, on Debian with `apt-get install --no-install-recommends chromium`")
	return ""
}

// Messages returns the console messages since the last call.
func (b *Tab) Messages() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	messages := b.messages
	b.messages = nil
	return messages
}

// Do runs actions without a result.
func (b *Tab) Do(actions ...chromedp.Action[chromedp.Void]) {
	b.T.Helper()
	Run(b, chromedp.Steps(actions...))
}

// Wait waits until a JavaScript expression is true, at most a minute. While the page navigates, evaluations fail.
func (b *Tab) Wait(what, expression string) {
	b.T.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		is, err := run(b, chromedp.Evaluate[bool]("!!("+expression+")"))
		if is && err == nil {
			return
		}
		if time.Now().After(end) {
			b.T.Fatalf("waiting for %s: not within a minute (%v); the page shows\n%s", what, err, Evaluate[string](b, `document.body.innerText`))
		}
	}
}

// Run runs an action and returns its result.
func Run[T any](b *Tab, action chromedp.Action[T]) T {
	b.T.Helper()
	v, err := run(b, action)
	if err != nil {
		b.T.Fatal(err)
	}
	return v
}

func run[T any](b *Tab, action chromedp.Action[T]) (T, error) {
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	return chromedp.Run(ctx, action)
}

// Evaluate returns the value of a JavaScript expression.
func Evaluate[T any](b *Tab, expression string) T {
	b.T.Helper()
	return Run(b, chromedp.Evaluate[T](expression))
}

// Command returns an action that sends a command of the DevTools protocol.
func Command[P, R any](command cdp.Command[P, R], params P) chromedp.Action[R] {
	return func(ctx context.Context, t *chromedp.Target) (R, error) { return cdp.Call(ctx, t, command, params) }
}

// Theme makes the browser prefer a light or dark theme, without animations.
func Theme(theme string) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (v chromedp.Void, err error) {
		_, err = cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
		return v, err
	}
}
