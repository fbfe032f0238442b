package main

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"text/template"
)

// templates are the configuration files of the components. Templates in templates/etc
// have the same paths as the files that writeConfig writes to the cluster's etc directory.
//
//go:embed all:templates
var templates embed.FS

//go:embed pause/Dockerfile
var pauseDockerfile []byte

// nodeConfig is the data of one node that the templates in templates/etc may use.
type nodeConfig struct {
	Etc, PKI         string // directories
	CNIPlugins, Runc string // directory and program
	NodeName         string
	DNS              string // address of CoreDNS
	Network          network
	Registry         string // its address
	PauseImage       string
	Cgroups          bool // the node has cgroups
}

// writeConfig writes each template in templates/etc to the directory etc.
func writeConfig(etc string, config nodeConfig) error {
	const root = "templates/etc"
	return fs.WalkDir(templates, root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := expand(name, config)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		path := filepath.Join(etc, relative)
		return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text, 0o644))
	})
}

// expand executes one template.
func expand(name string, data any) ([]byte, error) {
	t, err := template.ParseFS(templates, name)
	if err != nil {
		return nil, fmt.Errorf("reading template %q: %w", name, err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return nil, fmt.Errorf("executing template %q: %w", name, err)
	}
	return b.Bytes(), nil
}
