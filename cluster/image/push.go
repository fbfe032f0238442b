package image

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Push writes an image, or an index of images for several platforms, to the
// registry at registryAddr (host:port, plain http), under the path at which
// containerd looks for ref when that registry mirrors docker.io: "busybox" goes
// to library/busybox, tag latest. ctx limits the total time. Push returns whether
// it changed the registry.
func Push(ctx context.Context, img remote.Taggable, ref, registryAddr string) (changed bool, err error) {
	tag, err := mirrored(ref, registryAddr)
	if err != nil {
		return false, fmt.Errorf("pushing %q: %w", ref, err)
	}
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // a proxy could not reach the loopback
	defer transport.CloseIdleConnections()
	// The default waits 4 s between attempts and does not stop waiting when ctx ends.
	backoff := remote.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Steps: 3}
	options := []remote.Option{remote.WithContext(ctx), remote.WithTransport(transport), remote.WithRetryBackoff(backoff)}
	if digest, err := partial.Digest(img); err == nil {
		if there, err := remote.Head(tag, options...); err == nil && there.Digest == digest {
			return false, nil
		}
	}
	if err = remote.Push(tag, img, options...); err != nil {
		return false, fmt.Errorf("pushing %q to the registry at %s: %w", ref, registryAddr, err)
	}
	return true, nil
}

// mirrored is the name of ref in the registry. It parses ref with the package that
// containerd uses.
func mirrored(ref, registryAddr string) (name.Tag, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return name.Tag{}, fmt.Errorf("%w: write it as user/service:tag", err)
	}
	if domain := reference.Domain(named); domain != "docker.io" {
		return name.Tag{}, fmt.Errorf("it belongs to %s, the registry here serves docker.io: leave the host out", domain)
	}
	tagged, ok := named.(reference.Tagged)
	if !ok {
		return name.Tag{}, fmt.Errorf("it names a digest, which depends on the content: use a tag")
	}
	registry, err := name.NewRegistry(registryAddr, name.Insecure, name.StrictValidation)
	if err != nil {
		return name.Tag{}, err
	}
	return registry.Repo(reference.Path(named)).Tag(tagged.Tag()), nil
}
