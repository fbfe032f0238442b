package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/jiangjiancc/go_micro_k8s/cluster/image"
)

// load builds images for the node's platform and pushes them to the cluster's
// registry. Each argument is IMAGE=DIR.
func (c *cluster) load(args []string) error {
	s, err := c.running()
	if err != nil {
		return err
	}
	if s.ControlPlane {
		return fmt.Errorf("loading images into cluster %q: it has no node to run images on", c.name)
	}
	if len(args) == 0 {
		return errors.New("loading images: no image named; want IMAGE=DIR, such as 846602483/go-micro-srv:kubernetes=go-micro-srv")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, a := range args {
		ref, dir, ok := strings.Cut(a, "=")
		if !ok {
			return fmt.Errorf("loading image %q: want IMAGE=DIR", a)
		}
		img, err := image.Build(dir, nodePlatform)
		if err != nil {
			return err
		}
		changed, err := image.Push(ctx, img, ref, c.dialRegistry)
		if err != nil {
			return err
		}
		if !changed {
			progress("%s is up to date", ref)
			continue
		}
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		size, err := compressedSize(img)
		if err != nil {
			return err
		}
		progress("loaded %s (%.1f MB, %s)", ref, float64(size)/1e6, digest.String()[:19])
	}
	return nil
}

// save builds images for linux/arch and writes them to a file in the format of
// docker save, which Docker, Podman, containerd, kind, minikube and k3s can import. Each
// argument after the file is IMAGE=DIR.
func save(arch string, args []string) error {
	if len(args) < 2 {
		return errors.New("saving images: want a file and IMAGE=DIR, such as srv.tar 846602483/go-micro-srv:kubernetes=go-micro-srv")
	}
	file := args[0]
	images := map[name.Tag]v1.Image{}
	for _, a := range args[1:] {
		ref, dir, ok := strings.Cut(a, "=")
		if !ok {
			return fmt.Errorf("saving image %q: want IMAGE=DIR", a)
		}
		tag, err := name.NewTag(ref)
		if err != nil {
			return fmt.Errorf("saving image %q: %w: write it as you/go-micro-srv:v1", ref, err)
		}
		if images[tag], err = image.Build(dir, v1.Platform{OS: "linux", Architecture: arch}); err != nil {
			return err
		}
	}
	// A file that exists is complete, because a node may import what it finds.
	part := file + ".part"
	if err := tarball.MultiWriteToFile(part, images); err != nil {
		_ = os.Remove(part)
		return fmt.Errorf("writing %q: %w", file, err)
	}
	if err := os.Rename(part, file); err != nil {
		return err
	}
	progress("wrote %s for linux/%s", file, arch)
	return nil
}

// dialRegistry connects to the cluster's registry. The registry accepts images on a
// Unix socket that only the cluster's owner can reach.
func (c *cluster) dialRegistry(ctx context.Context) (net.Conn, error) {
	address, done, err := c.socket("registry.sock")
	if err != nil {
		return nil, err
	}
	defer done()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", address.Name)
	if err != nil {
		err = fmt.Errorf("%w; was cluster %q started by an older checkout? stop it with `make cluster-down` and start it again", err, c.name)
	}
	return conn, err
}

// compressedSize returns the number of bytes of all layers as a registry stores them.
func compressedSize(img v1.Image) (total int64, err error) {
	layers, err := img.Layers()
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, err
}

// push builds images for linux/amd64 and linux/arm64, with an SBOM for each, and
// pushes them to the registry that the image's name contains. Each argument is
// IMAGE=DIR.
func push(args []string) error {
	if len(args) == 0 {
		return errors.New("pushing images: no image named; want IMAGE=DIR, such as docker.io/you/go-micro-srv:v1=go-micro-srv")
	}
	for _, a := range args {
		ref, dir, ok := strings.Cut(a, "=")
		if !ok {
			return fmt.Errorf("pushing image %q: want IMAGE=DIR", a)
		}
		var variants []image.Variant
		for _, arch := range []string{"amd64", "arm64"} {
			build := exec.Command("make", "--no-print-directory", "-C", dir, "sbom", "GOARCH="+arch)
			build.Stdout, build.Stderr = os.Stdout, os.Stderr
			if err := build.Run(); err != nil {
				return fmt.Errorf("building %q for linux/%s: %w", dir, arch, err)
			}
			img, err := image.Build(dir, v1.Platform{OS: "linux", Architecture: arch})
			if err != nil {
				return err
			}
			sbom, err := os.ReadFile(filepath.Join(dir, "sbom.cdx.json"))
			if err != nil {
				return err
			}
			variants = append(variants, image.Variant{Image: img, SBOM: sbom})
		}
		digest, err := image.Publish(context.Background(), ref, variants)
		if err != nil {
			return err
		}
		progress("pushed %s for linux/amd64 and linux/arm64 (%s)", ref, digest.String()[:19])
	}
	return nil
}
