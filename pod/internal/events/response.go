package events

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"
)

// ServeRequest serves a request with a handler and reports its end. Without a callback it only serves it.
func (h *Hub) ServeRequest(service string, w http.ResponseWriter, r *http.Request, next http.Handler) {
	c := h.Get()
	if c.ServedRequest == nil {
		next.ServeHTTP(w, r)
		return
	}
	begin, o := time.Now(), &observedResponse{ResponseWriter: w, status: http.StatusOK}
	completed := false
	defer func() { // also after a panic, which net/http recovers
		if !completed && !o.written {
			o.status = http.StatusInternalServerError
		}
		c.ServedRequest(r, ServedRequest{Service: service, Route: r.Pattern, Status: o.status, Duration: time.Since(begin)})
	}()
	next.ServeHTTP(o.withOptionalMethods(), r)
	completed = true
}

// observedResponse records the status of a response.
type observedResponse struct {
	http.ResponseWriter
	status  int
	written bool
}

func (o *observedResponse) WriteHeader(status int) {
	if !o.written && status >= 200 { // the others are only hints
		o.status, o.written = status, true
	}
	o.ResponseWriter.WriteHeader(status)
}

func (o *observedResponse) Write(b []byte) (int, error) {
	o.written = true
	return o.ResponseWriter.Write(b)
}

// ReadFrom lets net/http copy a file without a buffer.
func (o *observedResponse) ReadFrom(r io.Reader) (int64, error) {
	o.written = true
	return io.Copy(o.ResponseWriter, r)
}

// Unwrap is for http.ResponseController.
func (o *observedResponse) Unwrap() http.ResponseWriter { return o.ResponseWriter }

// withOptionalMethods returns a response that has Flush and Hijack if the original one has them, for handlers that
// look for these methods instead of using http.ResponseController.
func (o *observedResponse) withOptionalMethods() http.ResponseWriter {
	flusher, canFlush := o.ResponseWriter.(http.Flusher)
	hijacker, canHijack := o.ResponseWriter.(http.Hijacker)
	switch {
	case canFlush && canHijack:
		return struct {
			*observedResponse
			http.Flusher
			http.Hijacker
		}{o, flusher, switching{o, hijacker}}
	case canFlush:
		return struct {
			*observedResponse
			http.Flusher
		}{o, flusher}
	}
	return o
}

// switching records that a connection leaves HTTP, as for a WebSocket.
type switching struct {
	response *observedResponse
	http.Hijacker
}

func (s switching) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := s.Hijacker.Hijack()
	if err == nil && !s.response.written {
		s.response.status, s.response.written = http.StatusSwitchingProtocols, true
	}
	return conn, rw, err
}
