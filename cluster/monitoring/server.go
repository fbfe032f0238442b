package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	startTimeout  = 30 * time.Second // of VictoriaMetrics, which needs less than a second
	scrapeTimeout = 30 * time.Second // until the first pod is scraped
	stopTimeout   = 5 * time.Second  // after SIGINT
)

var errInterrupted = errors.New("interrupted")

// server is a process of VictoriaMetrics.
type server struct {
	address string
	log     bytes.Buffer // of the process; complete when ended is closed
	ended   chan struct{}
}

// serve runs VictoriaMetrics while use runs. It leaves nothing behind.
func serve(ctx context.Context, program, address string, config, dashboard []byte, use func(*server) error) (err error) {
	dir, err := os.MkdirTemp("", "k8s-micro-monitoring-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := &server{ended: make(chan struct{})}
	if s.address, err = listenAddress(address); err != nil {
		return err
	}
	dashboards := filepath.Join(dir, "dashboards")
	if err := errors.Join(os.Mkdir(dashboards, 0o700), os.WriteFile(filepath.Join(dashboards, "dashboard.json"), dashboard, 0o600),
		os.WriteFile(filepath.Join(dir, "scrape.yaml"), config, 0o600)); err != nil {
		return err
	}
	cmd := exec.Command(program, "-httpListenAddr="+s.address, "-storageDataPath="+filepath.Join(dir, "data"), "-retentionPeriod=1d", "-promscrape.config="+filepath.Join(dir, "scrape.yaml"),
		"-vmui.customDashboardsPath="+dashboards, "-http.disableCORS", "-memory.allowedBytes=32MB", "-search.latencyOffset=1s", "-loggerLevel=WARN")
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	childOfThis(cmd)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting VictoriaMetrics: %w", err)
	}
	go func() {
		_ = cmd.Wait()
		close(s.ended)
	}()
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-s.ended:
		case <-time.After(stopTimeout):
			_ = cmd.Process.Kill()
			<-s.ended
		}
	}()
	err = s.wait(ctx, startTimeout, func() bool { _, err := s.get("/health"); return err == nil })
	if err != nil {
		return fmt.Errorf("starting VictoriaMetrics: %w", err)
	}
	return use(s)
}

// wait waits until a condition holds, for at most a time.
func (s *server) wait(ctx context.Context, timeout time.Duration, condition func() bool) error {
	deadline := time.After(timeout)
	for !condition() {
		select {
		case <-ctx.Done():
			return errInterrupted
		case <-s.ended:
			return fmt.Errorf("it has ended: %s", lastLine(s.log.Bytes()))
		case <-deadline:
			return fmt.Errorf("not within %s", timeout)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// until waits until ctx ends, the process ends, or the cluster no longer runs.
func (s *server) until(ctx context.Context, runs func() bool) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.ended:
			return fmt.Errorf("running VictoriaMetrics: it has ended: %s", lastLine(s.log.Bytes()))
		case <-time.After(time.Second):
			if !runs() {
				return errors.New("scraping the cluster: it has stopped")
			}
		}
	}
}

// scraping waits until the first pod is scraped.
func (s *server) scraping(ctx context.Context) error {
	var last string
	err := s.wait(ctx, scrapeTimeout, func() bool {
		var answer struct {
			Data struct {
				ActiveTargets []struct{ Health, LastError string }
			}
		}
		b, err := s.get("/api/v1/targets?state=active")
		if err != nil || json.Unmarshal(b, &answer) != nil {
			return false
		}
		for _, t := range answer.Data.ActiveTargets {
			if t.Health == "up" {
				return true
			}
			last = t.LastError
		}
		return false
	})
	if err != nil && last != "" {
		return fmt.Errorf("scraping the pods: %w; the last error: %s", err, last)
	} else if err != nil {
		return fmt.Errorf("scraping the pods: %w", err)
	}
	return nil
}

var httpClient = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}} // without a proxy

func (s *server) get(path string) ([]byte, error) {
	rsp, err := httpClient.Get("http://" + s.address + path)
	if err != nil {
		return nil, err
	}
	defer rsp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(rsp.Body); err != nil || rsp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %s: %w", rsp.Status, err)
	}
	return b.Bytes(), nil
}

func lastLine(b []byte) string {
	b = bytes.TrimSpace(b)
	return string(bytes.TrimSpace(b[bytes.LastIndexByte(b, '\n')+1:]))
}
