package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Push writes an image, or an index of images for several platforms, to the Writer
// of a Registry, from which containerd pulls it as ref. dial connects to the Writer,
// which speaks plain HTTP. ref may name any registry; the default is docker.io, so
// "busybox" means docker.io/library/busybox:latest. ctx limits the total time. Push
// returns whether it changed the registry.
func Push(ctx context.Context, img remote.Taggable, ref string, dial func(context.Context) (net.Conn, error)) (changed bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("pushing %q: %w", ref, err)
		}
	}()
	tag, err := storedName(ref)
	if err != nil {
		return false, err
	}
	transport := &http.Transport{ // uses no proxy
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}
	defer transport.CloseIdleConnections()
	// The default waits 4 s between attempts and does not stop waiting when ctx ends.
	backoff := remote.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Steps: 3}
	options := []remote.Option{remote.WithContext(ctx), remote.WithTransport(transport), remote.WithRetryBackoff(backoff)}
	if digest, err := partial.Digest(img); err == nil {
		if existing, err := remote.Head(tag, options...); err == nil && existing.Digest == digest {
			return false, nil
		}
	}
	return true, remote.Push(tag, img, options...)
}

// storedName returns the name under which a Registry stores ref. It parses ref with
// the package that containerd uses.
func storedName(ref string) (name.Tag, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return name.Tag{}, fmt.Errorf("%w: write it as user/service:tag", err)
	}
	tagged, ok := named.(reference.Tagged)
	if !ok {
		return name.Tag{}, errors.New("it names a digest, which depends on the content: use a tag")
	}
	// The host is a placeholder, because dial does not use it.
	return name.NewTag("registry.invalid/"+hostDirectory(reference.Domain(named))+"/"+reference.Path(named)+":"+tagged.Tag(), name.Insecure)
}
