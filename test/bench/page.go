//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	viewers      = 500 // of the page at the same time
	changingPods = 200
)

// page measures the page of go-micro-web: the delay until all viewers have a
// change, and the memory of the process. The viewers connect over loopback.
func page(k *kube, n sizes, t *table) error {
	progress("page of go-micro-web: %d viewers, %d changing pods (%s)", viewers, changingPods, n.Watched)
	if err := k.enterNamespace("page"); err != nil {
		return err
	}
	if _, err := k.fill("page", "web", 1, "", "", true); err != nil {
		return err
	}
	names, err := k.fill("page", "pod", changingPods, "greeter", "10.0.0.1:9100", true)
	if err != nil {
		return err
	}
	if _, err := k.fill("page", "a-probe", 1, "a-probe", "0.0.0.0:1", true); err != nil { // sorts first in each view
		return err
	}
	web, address, err := startWeb(n.Root)
	if err != nil {
		return err
	}
	defer func() { _ = web.Process.Kill(); _ = web.Wait() }()
	time.Sleep(settle)
	memory := []string{resident(web.Process.Pid)}

	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer func() { cancel(); running.Wait() }()
	var counter probeCounter
	failed := make(chan error, viewers+1)
	for i := range viewers {
		running.Go(func() {
			client := net.IPv4(127, 0, 1, byte(1+i/50)) // an address has at most 100 streams
			if err := counter.view(ctx, client, "http://"+address+"/registry/events"); ctx.Err() == nil {
				failed <- fmt.Errorf("reading events: %w", err)
			}
		})
	}
	running.Go(func() { // 40 changes a second
		for ready := false; ctx.Err() == nil; ready = !ready {
			for _, name := range names {
				if err := k.setStatus("page", name, ready); err != nil && ctx.Err() == nil {
					failed <- err
					return
				}
				select {
				case <-time.After(25 * time.Millisecond):
				case <-ctx.Done():
					return
				}
			}
		}
	})
	var took []time.Duration
	for i, end := 1, time.Now().Add(n.Watched); time.Now().Before(end); i++ {
		sent := time.Now()
		if err := k.do("PATCH", pods("page")+"a-probe-0", object{"metadata": registrationMetadata("a-probe-0", "a-probe", fmt.Sprintf("0.0.0.0:%d", i))}, nil); err != nil {
			return err
		}
		last := counter.wait(i)
		select {
		case at := <-last:
			if i > 3 { // the first probes include the time to connect
				took = append(took, at.Sub(sent))
			}
		case err := <-failed:
			return err
		case <-time.After(30 * time.Second):
			return fmt.Errorf("waiting for probe %d at all %d viewers: not within 30 s", i, viewers)
		}
		time.Sleep(rand.N(200 * time.Millisecond)) // no fixed rhythm, which could match the interval between two views
	}
	memory = append(memory, resident(web.Process.Pid))
	cancel()
	running.Wait()
	time.Sleep(12 * time.Second) // the observation continues for 10 s
	memory = append(memory, resident(web.Process.Pid))
	t.row(fmt.Sprintf("page: a change until the last of %d viewers has it, while %d pods change 40 times per second", viewers, changingPods), "", percentiles(took))
	t.row("memory of go-micro-web: without viewers / with them / 12 s after them", "", strings.Join(memory, " / "))
	return nil
}

// startWeb builds and starts go-micro-web as the pod web-0.
func startWeb(root string) (*exec.Cmd, string, error) {
	program := filepath.Join(os.TempDir(), fmt.Sprintf("bench-web-%d", os.Getpid()))
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./go-micro-web")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, "", fmt.Errorf("building go-micro-web: %w: %s", err, out)
	}
	defer os.Remove(program)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	address := l.Addr().String()
	l.Close()
	web := exec.Command(program)
	web.Env = append(os.Environ(), "POD_NAME=web-0", "HOSTNAME=web-0", "MICRO_SERVER_ADDRESS="+address)
	web.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	web.Stderr = os.Stderr
	if err := web.Start(); err != nil {
		return nil, "", err
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		rsp, err := http.Get("http://" + address + "/readyz")
		if err == nil {
			rsp.Body.Close()
			if rsp.StatusCode == http.StatusOK {
				return web, address, nil
			}
		}
		if time.Now().After(end) {
			_ = web.Process.Kill()
			_ = web.Wait()
			return nil, "", errors.Join(errors.New("starting go-micro-web: it is not ready after 10 s"), err)
		}
	}
}

// resident returns the resident memory of a process without mapped files.
func resident(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(b), "RssAnon:")
	kilobytes, _ := strconv.Atoi(strings.Fields(rest + " 0")[0])
	return fmt.Sprintf("%.0f MiB", float64(kilobytes)/1024)
}

// probeCounter counts the viewers that have received a probe: the port in the address
// of the pod a-probe-0.
type probeCounter struct {
	mu      sync.Mutex
	wanted  int
	missing int
	last    chan time.Time
}

// wait returns a channel that delivers the time at which the last viewer received
// the probe or a later one.
func (m *probeCounter) wait(probe int) <-chan time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wanted, m.missing, m.last = probe, viewers, make(chan time.Time, 1)
	return m.last
}

// view reads an event stream from a local address until ctx ends.
func (m *probeCounter) view(ctx context.Context, client net.IP, url string) error {
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return err
	}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: client}}
	rsp, err := (&http.Transport{DisableKeepAlives: true, DialContext: dialer.DialContext}).RoundTrip(r)
	if err != nil {
		return err
	}
	defer rsp.Body.Close()
	if rsp.StatusCode != http.StatusOK {
		return errors.New(rsp.Status)
	}
	counted := 0
	for events := bufio.NewReaderSize(rsp.Body, 4<<10); ; {
		line, err := events.ReadSlice('\n') // only the first bytes of an event are kept
		head := bytes.Clone(line[:min(len(line), 1<<10)])
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = events.ReadSlice('\n')
		}
		if err != nil {
			return err
		}
		_, rest, ok := bytes.Cut(head, []byte("0.0.0.0:"))
		if !ok {
			continue
		}
		port, _, _ := bytes.Cut(rest, []byte(`"`))
		probe, _ := strconv.Atoi(string(port))
		m.mu.Lock()
		if probe >= m.wanted && m.wanted > counted {
			counted = m.wanted
			if m.missing--; m.missing == 0 {
				m.last <- time.Now()
			}
		}
		m.mu.Unlock()
	}
}
