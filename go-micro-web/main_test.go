package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestAnswersWithPodName(t *testing.T) {
	t.Setenv("HOSTNAME", "go-micro-web-56b457b9f7-f7lds")
	srv := httptest.NewServer(http.HandlerFunc(podName))
	defer srv.Close()

	for _, request := range []struct{ name, method, path string }{
		{"root", http.MethodGet, "/"},
		{"any path below it", http.MethodGet, "/a/b?c=d"},
		{"any method", http.MethodPost, "/"},
	} {
		t.Run(request.name, func(t *testing.T) {
			req, err := http.NewRequest(request.method, srv.URL+request.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			rsp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer rsp.Body.Close()
			body, err := io.ReadAll(rsp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if rsp.StatusCode != http.StatusOK || string(body) != "go-micro-web-56b457b9f7-f7lds" {
				t.Errorf("answer is %s %q, want the name of the pod", rsp.Status, body)
			}
		})
	}
}
