package programs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// officialFile is a file that a project publishes with its releases.
type officialFile struct {
	url      string
	sum      string   // its SHA-256 in the repository, or ""
	sumsURL  string   // of a file of the publisher with its SHA-256
	programs []string // what it contains; a file that is no archive is the only program itself
}

// downloader downloads files over HTTP and HTTPS. It uses the proxies of the environment
// variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
type downloader struct {
	client           *http.Client
	parallel         int           // number of files at the same time
	stallTimeout     time.Duration // a connection that delivers nothing for this long is cut
	retryDelay       time.Duration // between attempts
	progress         func(format string, args ...any)
	progressInterval time.Duration // between two lines of progress

	total, done atomic.Int64 // bytes; total is 0 when it is unknown
	space       int64        // bytes on the disk that the files need at most, 0 if unknown
}

// attempts is how often in a row a download may end without getting further.
const attempts = 3

func newDownloader(progress func(format string, args ...any)) *downloader {
	return &downloader{
		client: &http.Client{
			Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, DisableCompression: true, MaxIdleConnsPerHost: 8},
			CheckRedirect: func(req *http.Request, via []*http.Request) error {
				if len(via) >= 10 {
					return errors.New("stopped after 10 redirects")
				}
				if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
					return fmt.Errorf("refused to leave HTTPS for %q", req.URL.Redacted())
				}
				return nil
			},
		},
		parallel: 4, stallTimeout: 30 * time.Second, retryDelay: time.Second, progress: progress, progressInterval: 5 * time.Second,
	}
}

// find asks the servers for every file with HEAD, at the same time, and returns the
// number of bytes of all, 0 if a server does not tell. It returns an error if a file is
// missing or a server does not answer within limit.
func (d *downloader) find(ctx context.Context, files []officialFile, limit time.Duration) (size int64, err error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	group, groupCtx := errgroup.WithContext(limited)
	sizes := make([]int64, len(files))
	for i, f := range files {
		group.Go(func() error {
			resp, err := d.request(groupCtx, http.MethodHead, f.url, nil)
			if err != nil {
				if limited.Err() != nil && ctx.Err() == nil {
					err = fmt.Errorf("no answer within %s", limit)
				}
				return fmt.Errorf("asking for %q: %w", f.url, err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("asking for %q: %s", f.url, resp.Status)
			}
			sizes[i] = resp.ContentLength
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	for i, s := range sizes {
		if s < 0 {
			d.space = 0
			return 0, nil
		}
		size += s
		d.space += s
		if isArchive(files[i].url) {
			d.space += 3 * s // what is in it
		}
	}
	return size, nil
}

// request sends a request. Its errors do not repeat the URL.
func (d *downloader) request(ctx context.Context, method, address string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := d.client.Do(req)
	for inner := errors.Unwrap(err); inner != nil && strings.Contains(err.Error(), address); inner = errors.Unwrap(err) {
		err = inner
	}
	return resp, err
}

// verifiedSuffix ends the name of a directory with the programs of an incomplete download.
// Each program in it is complete and verified. incompleteSuffix ends the names of the others.
const verifiedSuffix, incompleteSuffix = ".verified", ".download"

// missing returns the files of which the directory dir, or an earlier attempt to fill it,
// lacks a program.
func missing(dir string, files []officialFile) (m []officialFile) {
	for _, f := range files {
		if slices.ContainsFunc(f.programs, func(name string) bool { return !exists(filepath.Join(dir+verifiedSuffix, name)) }) {
			m = append(m, f)
		}
	}
	return m
}

// programs downloads files, compares them with their checksums, and puts their programs
// into the directory dir, which appears only when it is complete and check, unless it is
// nil, accepts it. After an error the next call needs only the files that missing returns.
func (d *downloader) programs(ctx context.Context, dir string, files []officialFile, check func(dir string) error) error {
	verified := dir + verifiedSuffix
	if err := os.MkdirAll(verified, 0o755); err != nil {
		return err
	}
	defer os.Remove(verified) // if it is empty
	if free := freeBytes(verified); free >= 0 && free < d.space {
		return fmt.Errorf("downloading to %q: %d MB free, %d MB needed; free space, or set XDG_CACHE_HOME to another file system", verified, free/1e6, d.space/1e6)
	}
	begin := time.Now()
	defer repeat(d.progressInterval, func() { d.progress("  %s", downloadProgress(d.done.Load(), d.total.Load(), time.Since(begin))) })()
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(d.parallel)
	for _, f := range files {
		group.Go(func() error { return d.program(groupCtx, verified, f) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if check != nil {
		if err := check(verified); err != nil {
			return errors.Join(err, os.RemoveAll(verified))
		}
	}
	return os.Rename(verified, dir)
}

// program downloads one file to dir, verifies it and unpacks it if it is an archive.
func (d *downloader) program(ctx context.Context, dir string, f officialFile) error {
	name, want, says := path.Base(f.url), f.sum, sumsFile
	if want == "" {
		says = f.sumsURL
		var err error
		if want, err = d.publishedSum(ctx, dir, f); err != nil {
			return err
		}
	}
	file := filepath.Join(dir, name+incompleteSuffix)
	defer os.Remove(file)
	if err := d.fetch(ctx, f.url, file, &d.done); err != nil {
		return err
	}
	got, err := sha256OfFile(file)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("downloading %q: its SHA-256 is %s, but %q says %s; the file is deleted", f.url, got, says, want)
	}
	if isArchive(name) {
		err = unpackPrograms(file, dir, f.programs)
	} else {
		err = errors.Join(os.Chmod(file, 0o755), os.Rename(file, filepath.Join(dir, f.programs[0])))
	}
	if err != nil {
		return fmt.Errorf("unpacking %q: %w", f.url, err)
	}
	return nil
}

// publishedSum returns the SHA-256 that the publisher of a file names. It uses the directory
// dir for a temporary file.
func (d *downloader) publishedSum(ctx context.Context, dir string, f officialFile) (string, error) {
	name := path.Base(f.url)
	file := filepath.Join(dir, name+".sums"+incompleteSuffix)
	defer os.Remove(file)
	if err := d.fetch(ctx, f.sumsURL, file, nil); err != nil {
		return "", err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	sum, err := findSum(name, string(text))
	if err != nil {
		return "", fmt.Errorf("reading %q: %w", f.sumsURL, err)
	}
	return sum, nil
}

// permanent is an error that another attempt does not change.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// fetch downloads a file. When the connection is cut, fetch resumes where it ended, if the
// server supports this, and otherwise starts again. It counts the bytes in done unless
// done is nil.
func (d *downloader) fetch(ctx context.Context, address, file string, done *atomic.Int64) error {
	if done == nil {
		done = new(atomic.Int64)
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	validator := ""   // ETag of the version that f contains
	var longest int64 // the most bytes that f has had: a server that always ends at the same byte must not be asked forever
	for attempt := 1; ; {
		before, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		err = d.resume(ctx, address, f, before, &validator, done)
		if err == nil {
			return f.Sync()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		after, seekErr := f.Seek(0, io.SeekEnd)
		if seekErr != nil {
			return seekErr
		}
		if after > longest {
			attempt, longest = 1, after
		} else {
			attempt++
		}
		if attempt > attempts || errors.As(err, new(permanent)) {
			return fmt.Errorf("downloading %q: after %d bytes: %w", address, after, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d.retryDelay):
		}
	}
}

// resume downloads the rest of a file of which f contains the first bytes.
func (d *downloader) resume(ctx context.Context, address string, f *os.File, from int64, validator *string, done *atomic.Int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(d.stallTimeout, func() { cancel(fmt.Errorf("nothing arrived for %s", d.stallTimeout)) })
	defer watchdog.Stop()
	header := http.Header{}
	if from > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		if *validator != "" {
			header.Set("If-Range", *validator)
		}
	}
	restart := func() error {
		done.Add(-from)
		_, err := f.Seek(0, io.SeekStart)
		return errors.Join(err, f.Truncate(0))
	}
	resp, err := d.request(ctx, http.MethodGet, address, header)
	if err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", from)):
	case resp.StatusCode == http.StatusOK: // from the beginning: the server does not resume, or the file has changed
		if err := restart(); err != nil {
			return permanent{err}
		}
		if *validator = resp.Header.Get("ETag"); strings.HasPrefix(*validator, "W/") {
			*validator = ""
		}
	case resp.StatusCode == http.StatusPartialContent || resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return errors.Join(fmt.Errorf("the server refuses to resume: %s", resp.Status), restart())
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500:
		return errors.New(resp.Status)
	default:
		return permanent{errors.New(resp.Status)}
	}
	buffer := make([]byte, 128<<10)
	for {
		n, err := resp.Body.Read(buffer)
		if n > 0 {
			watchdog.Reset(d.stallTimeout)
			done.Add(int64(n))
			if _, err := f.Write(buffer[:n]); err != nil {
				return permanent{err}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
	}
}

// downloadProgress describes a download. total is 0 if it is unknown.
func downloadProgress(done, total int64, elapsed time.Duration) string {
	const mb = 1e6
	rate := float64(done) / elapsed.Seconds()
	if total == 0 {
		return fmt.Sprintf("%.0f MB, %.1f MB/s", float64(done)/mb, rate/mb)
	}
	left := "unknown time"
	if done > 0 {
		left = time.Duration(float64(max(total-done, 0)) / rate * float64(time.Second)).Round(time.Second).String()
	}
	return fmt.Sprintf("%.0f of %.0f MB, %.1f MB/s, %s left", float64(done)/mb, float64(total)/mb, rate/mb, left)
}
