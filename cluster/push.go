package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/jiangjiancc/go_micro_k8s/cluster/image"
)

// push builds images for whoever runs them, not for this machine.
func push(args []string) error {
	if len(args) == 0 {
		return errors.New("pushing images: none named; want IMAGE=DIR, such as docker.io/you/go-micro-srv:v1=go-micro-srv")
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
		say("pushed %s for linux/amd64 and linux/arm64 (%s)", ref, digest.String()[:19])
	}
	return nil
}
