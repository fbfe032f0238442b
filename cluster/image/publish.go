package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// cycloneDX is the media type of an SBOM and its artifact type in a registry.
const cycloneDX types.MediaType = "application/vnd.cyclonedx+json"

// Variant is an image for one platform and its SBOM.
type Variant struct {
	Image v1.Image
	SBOM  []byte // CycloneDX, JSON
}

// Publish writes an index of the variants to the registry that ref names, with the
// credentials that docker login or podman login has stored. Each SBOM is a referrer of
// its image (OCI 1.1), so that `oras discover` and scanners find the SBOM.
func Publish(ctx context.Context, ref string, variants []Variant) (digest v1.Hash, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("pushing %q: %w", ref, err)
		}
	}()
	tag, err := name.NewTag(ref)
	if err != nil {
		return digest, fmt.Errorf("%w: write it as docker.io/you/go-micro-srv:v1", err)
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	var index v1.ImageIndex = empty.Index
	for _, v := range variants {
		config, err := v.Image.ConfigFile()
		if err != nil {
			return digest, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: v.Image, Descriptor: v1.Descriptor{Platform: config.Platform()},
		})
	}
	if err := remote.WriteIndex(tag, index, options...); err != nil {
		var response *transport.Error
		if errors.As(err, &response) && (response.StatusCode == http.StatusUnauthorized || response.StatusCode == http.StatusForbidden) {
			err = fmt.Errorf("%w: run `docker login %s`, or name your own registry with REGISTRY=", err, tag.RegistryStr())
		}
		return digest, err
	}
	for _, v := range variants {
		sbom, err := referrer(v)
		if err != nil {
			return digest, err
		}
		sbomDigest, err := sbom.Digest()
		if err != nil {
			return digest, err
		}
		if err := remote.Write(tag.Digest(sbomDigest.String()), sbom, options...); err != nil {
			return digest, fmt.Errorf("writing its SBOM: %w", err)
		}
	}
	return index.Digest()
}

// referrer returns the SBOM of v as an OCI artifact that refers to the image of v. The
// media type of its config is the artifact type.
func referrer(v Variant) (v1.Image, error) {
	subject, err := partial.Descriptor(v.Image)
	if err != nil {
		return nil, err
	}
	sbom := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), cycloneDX)
	if sbom, err = mutate.AppendLayers(sbom, static.NewLayer(v.SBOM, cycloneDX)); err != nil {
		return nil, err
	}
	return mutate.Subject(sbom, *subject).(v1.Image), nil
}
