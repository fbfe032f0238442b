// Package mtls is mutual TLS between workloads that have SPIFFE IDs, with credentials from a directory of files.
//
//	Open          source.go   reads the directory; Start reads it again every second
//	newSet        files.go    what the files of one moment mean: certificate, authorities, callers
//	Source.Client client.go   credentials of a connection to a service: is it the account of that service
//	Source.Server server.go   options of a server: TLS, or TLS and plaintext; who may call, at each call
//	refuser       refuser.go  answers those who speak plaintext to a server that does not
//
// Certificates are compared by their SPIFFE ID, never by names of hosts. What crosses the wall are grpc-go's credentials and
// options of a server. The package knows no go-micro and no registry. It uses crypto/tls and crypto/x509 alone: of
// github.com/spiffe/go-spiffe/v2 it would need the parser of IDs, which is shorter than what that module requires.
package mtls

import (
	"cmp"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Config is what a source needs to know.
type Config struct {
	Dir        string            // of the files
	Permissive bool              // the server accepts plaintext, too
	Account    map[string]string // the service accounts of services that are not named as their account

	Now     func() time.Time                         // nil for time.Now
	Logf    func(format string, args ...any)         // nil for no log
	Changed func()                                   // called when clients must open new connections
	Refusal func(code codes.Code, text string) error // the error of a refused call; nil for a plain status
}

// interval is how often the files are read again and the connections of callers are checked.
const interval = time.Second

// Source is the credentials of a process. Make it with Open. It is safe for concurrent use.
type Source struct {
	Config
	current  atomic.Pointer[set]
	refusals limiter
	server   *server

	failure string // why the files were not used the last time; only the goroutine of Start writes
	failed  files  // those files
	expires bool   // whether the log says that the certificate expires

	stop    chan struct{}
	stopped sync.WaitGroup
}

// Open reads a directory. The error says which file is missing or wrong.
func Open(c Config) (*Source, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	if c.Refusal == nil {
		c.Refusal = status.Error
	}
	s := &Source{Config: c, stop: make(chan struct{})}
	s.refusals.now = c.Now
	f, err := readFiles(c.Dir)
	if err == nil {
		var first *set
		if first, err = newSet(f, c.Now); err == nil {
			s.use(first)
		}
	}
	if err != nil {
		return nil, err
	}
	s.server = newServer(s)
	return s, nil
}

// ID returns the ID of this process.
func (s *Source) ID() ID { return s.current.Load().id }

// Start reads the files every second from now on, and ends the connections of callers that are no longer permitted.
func (s *Source) Start() {
	s.server.refuser.start(&s.stopped)
	s.stopped.Go(func() {
		t := time.NewTicker(interval)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				s.reload()
				s.server.closeEnded()
			case <-s.stop:
				return
			}
		}
	})
}

// Stop ends what Start has begun, and waits. The last credentials stay.
func (s *Source) Stop() {
	close(s.stop)
	s.server.refuser.stop()
	s.stopped.Wait()
}

// reload reads the files. If they are broken, the credentials stay as they are, and the log has one line for each change of the files.
func (s *Source) reload() {
	before := s.current.Load()
	f, err := readFiles(s.Dir)
	if err == nil && f.equal(before.files) {
		s.failure = ""
		s.warnOfEnd(before)
		return
	}
	var next *set
	if err == nil {
		next, err = newSet(f, s.Now)
	}
	if err != nil {
		if err.Error() != s.failure || !f.equal(s.failed) {
			s.Logf("keeping the credentials of before, which expire at %s: %v", before.leaf.NotAfter.UTC().Format(time.RFC3339), err)
		}
		s.failure, s.failed = err.Error(), f
		s.warnOfEnd(before)
		return
	}
	s.failure = ""
	s.use(next)
	if !next.leaf.Equal(before.leaf) || !next.authorities.Equal(before.authorities) {
		s.Changed()
	}
}

// use makes a set the current one.
func (s *Source) use(next *set) {
	s.current.Store(next)
	s.expires = false
	if next.callers.listed != nil && len(next.callers.listed) == 0 {
		s.Logf("the list of callers is empty: nobody may call this service")
	}
	for _, why := range next.callers.unreadable {
		s.Logf("skipping a caller in %s: %s", callersFile, why)
	}
}

// warnOfEnd logs once that a certificate is in the last tenth of its lifetime: whoever renews it is away.
func (s *Source) warnOfEnd(c *set) {
	if left, lifetime := c.leaf.NotAfter.Sub(s.Now()), c.leaf.NotAfter.Sub(c.leaf.NotBefore); left < lifetime/10 && !s.expires {
		s.expires = true
		s.Logf("the certificate of %s expires at %s and has not been renewed", c.id.URI, c.leaf.NotAfter.UTC().Format(time.RFC3339))
	}
}

// accountOf returns the service account of a service.
func (s *Source) accountOf(service string) string { return cmp.Or(s.Account[service], service) }

// limiter says which lines to log: one a minute for each key.
type limiter struct {
	now func() time.Time

	mu   sync.Mutex
	keys map[string]*limited
}

type limited struct {
	last    time.Time
	skipped int // lines since
}

const (
	logPause = time.Minute
	maxKeys  = 1000 // that are told apart: others can invent any number
)

// allow reports whether to log a line, and how many lines with the key were not logged since the last one.
func (l *limiter) allow(key string) (skipped string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	k := l.keys[key]
	if k == nil && len(l.keys) >= maxKeys {
		for other, k := range l.keys {
			if now.Sub(k.last) >= logPause {
				delete(l.keys, other)
			}
		}
		if len(l.keys) >= maxKeys {
			key = "" // all others together
			k = l.keys[key]
		}
	}
	switch {
	case k == nil:
		if l.keys == nil {
			l.keys = map[string]*limited{}
		}
		l.keys[key] = &limited{last: now}
		return "", true
	case now.Sub(k.last) < logPause:
		k.skipped++
		return "", false
	}
	if k.skipped > 0 {
		skipped = fmt.Sprintf(" (and %d times more since the last line)", k.skipped)
	}
	k.last, k.skipped = now, 0
	return skipped, true
}
