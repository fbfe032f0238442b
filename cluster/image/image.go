// Package image builds OCI images from Dockerfiles without Docker, pushes them to
// registries, and implements the image registry of a cluster.
//
//	img, err := image.Build("go-micro-srv", v1.Platform{OS: "linux", Architecture: "amd64"})
//	_, err = image.Push(ctx, img, "846602483/go-micro-srv:kubernetes", dialTheClustersRegistry)
//	_, err = image.Publish(ctx, "docker.io/you/go-micro-srv:v1", []image.Variant{{amd64, sbomOfAmd64}, {arm64, sbomOfArm64}})
//
// Build knows what an image of a static program needs, and nothing else:
//
//	FROM scratch
//	LABEL key="value" ...
//	COPY [--chmod=octal] FILE DESTINATION
//	EXPOSE 9100 53/udp ...
//	USER uid:gid
//	CMD ["/program"]
//	ENTRYPOINT ["/program"]
//
// Every other instruction, flag and form is an error with its name and line: RUN, ENV,
// ARG and variables, another base image, a second stage, and COPY of a directory, of a
// symlink or with wildcards. So Build either makes the image of docker build or returns an
// error. TestSameAsDocker compares the images of the four services. An ignore file has no
// effect: it could only forbid what a COPY names.
//
// The same files give the same digest: every modification time is 1970, and every owner is
// 0:0. Without --chmod the mode is that of the file, as with Docker, so a checkout with
// another umask gives another image. Another Go release may compress differently and give
// another digest.
package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// defaultPath is the PATH that Docker sets in a scratch image.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

type builder struct {
	dir     string
	root    *os.Root // the context: the builder reads no file outside of it
	started bool     // FROM has been executed
	config  *v1.ConfigFile
	adds    []mutate.Addendum
	isDir   map[string]bool // the paths in the image so far: directories and files
}

// Build builds the Dockerfile in contextDir for a platform, whose OS must be linux.
func Build(contextDir string, p v1.Platform) (img v1.Image, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("building %q: %w", filepath.Join(contextDir, "Dockerfile"), err)
		}
	}()
	if p.OS != "linux" || p.Architecture == "" {
		return nil, fmt.Errorf("platform %q is not supported: name linux and an architecture", p.String())
	}
	root, err := os.OpenRoot(contextDir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	dockerfile, err := root.ReadFile("Dockerfile")
	if err != nil {
		return nil, err
	}
	instructions, err := parse(string(dockerfile))
	if err != nil {
		return nil, err
	}
	base, err := empty.Image.ConfigFile()
	if err != nil {
		return nil, err
	}
	b := &builder{dir: contextDir, root: root, config: base.DeepCopy(), isDir: map[string]bool{"/": true}}
	b.config.OS, b.config.Architecture, b.config.Variant = p.OS, p.Architecture, p.Variant
	b.config.Created.Time = time.Unix(0, 0).UTC()
	b.config.Config = v1.Config{
		Env: []string{defaultPath}, WorkingDir: "/", Labels: map[string]string{}, ExposedPorts: map[string]struct{}{},
	}
	for _, i := range instructions {
		if err := b.execute(i); err != nil {
			return nil, fmt.Errorf("line %d: %w", i.line, err)
		}
	}
	if !b.started {
		return nil, errors.New("no FROM: start with FROM scratch")
	}
	img = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.ConfigFile(img, b.config); err != nil {
		return nil, err
	}
	return mutate.Append(img, b.adds...)
}

// execute executes one instruction and appends it to the image's history.
func (b *builder) execute(i instruction) error {
	if i.name == "FROM" {
		return b.from(i)
	}
	if !b.started {
		return fmt.Errorf("%s before FROM: start with FROM scratch", i.name)
	}
	layer, err := b.apply(i)
	if err != nil {
		return err
	}
	b.adds = append(b.adds, mutate.Addendum{Layer: layer, History: v1.History{
		Created: b.config.Created, CreatedBy: i.text, EmptyLayer: layer == nil,
	}})
	return nil
}

func (b *builder) from(i instruction) error {
	if b.started {
		return errors.New("a second FROM needs a build in stages, which is not supported: make the file before the build and COPY it, or use docker build")
	}
	if i.args != "scratch" {
		return fmt.Errorf("FROM %s is not supported, because this builder downloads no base image: make a static binary and start FROM scratch, or use docker build", i.args)
	}
	b.started = true
	return nil
}

// apply changes the image's configuration, or returns a layer.
func (b *builder) apply(i instruction) (layer v1.Layer, err error) {
	config := &b.config.Config
	switch i.name {
	case "LABEL":
		pairs, err := i.labels()
		for key, value := range pairs {
			config.Labels[key] = value
		}
		return nil, err
	case "COPY":
		return b.copy(i)
	case "EXPOSE":
		return nil, b.expose(i)
	case "USER":
		words, err := i.words()
		if err == nil && len(words) != 1 {
			err = fmt.Errorf("USER %q is not one word: write uid:gid", i.args)
		}
		config.User = i.args
		return nil, err
	case "CMD":
		config.Cmd, err = i.execForm()
		config.ArgsEscaped = true
		return nil, err
	case "ENTRYPOINT":
		config.Entrypoint, err = i.execForm()
		config.ArgsEscaped = true
		return nil, err
	}
	return nil, i.unsupported()
}

// expose adds ports.
func (b *builder) expose(i instruction) error {
	words, err := i.words()
	if err != nil {
		return err
	}
	for _, spec := range words {
		port, protocol, found := strings.Cut(spec, "/")
		if !found {
			protocol = "tcp"
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
			return fmt.Errorf("EXPOSE %q is not a port: write 9100 or 9100/udp", spec)
		}
		b.config.Config.ExposedPorts[fmt.Sprintf("%d/%s", n, protocol)] = struct{}{}
	}
	return nil
}

// copy returns a layer with one file and the directories above it that the image lacks.
func (b *builder) copy(i instruction) (v1.Layer, error) {
	words, err := i.words()
	if err != nil {
		return nil, err
	}
	mode := int64(-1)
	for ; len(words) > 0 && strings.HasPrefix(words[0], "--"); words = words[1:] {
		flag, value, _ := strings.Cut(words[0], "=")
		if flag != "--chmod" {
			return nil, fmt.Errorf("COPY %s is not supported: leave it out, or use docker build", flag)
		}
		if mode, err = strconv.ParseInt(value, 8, 64); err != nil || mode < 0 || mode > 0o7777 {
			return nil, fmt.Errorf("COPY %s is not an octal mode: write --chmod=755 or --chmod=0644", words[0])
		}
	}
	if len(words) != 2 {
		return nil, errors.New("COPY takes one file and its destination here: write one COPY for each file, or use docker build")
	}
	from, to := path.Clean(strings.TrimLeft(words[0], "/")), path.Join("/", words[1])
	content, fileMode, err := b.read(from)
	if err != nil {
		return nil, fmt.Errorf("copying %q: %w", words[0], err)
	}
	if strings.HasSuffix(words[1], "/") || b.isDir[to] {
		to = path.Join(to, path.Base(from))
	}
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	if mode < 0 {
		err = errors.Join(b.addDirs(tw, path.Dir(to), 0o755), b.add(tw, to, fileMode, content))
	} else { // Docker gives the mode to the directories too
		err = errors.Join(b.addDirs(tw, path.Dir(to), mode), b.add(tw, to, mode, content))
	}
	if err = errors.Join(err, tw.Close()); err != nil {
		return nil, fmt.Errorf("copying %q: %w", words[0], err)
	}
	// The layer is in memory, so the image does not depend on the files afterwards. Package
	// tarball compresses it once, with gzip's fastest level.
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

// read returns the content and the mode of a file in the context.
func (b *builder) read(name string) (content []byte, mode int64, err error) {
	switch {
	case strings.ContainsAny(name, "*?[") || strings.HasPrefix(name, "<<"):
		return nil, 0, errors.New("wildcards, JSON arrays and heredocs are not supported: name a file, or use docker build")
	case !fs.ValidPath(name):
		return nil, 0, fmt.Errorf("it is outside the context %q: move it inside", b.dir)
	}
	info, err := b.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("no such file in %q: `make build` makes what a service's image needs", b.dir)
	}
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, errors.New("it is not a regular file, and directories and symlinks are not supported: name each file, or use docker build")
	}
	header, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return nil, 0, err
	}
	content, err = b.root.ReadFile(name)
	return content, header.Mode, err
}

// addDirs adds the directory dir, and those above it, unless the image contains them.
func (b *builder) addDirs(tw *tar.Writer, dir string, mode int64) error {
	if b.isDir[dir] {
		return nil
	}
	if err := b.addDirs(tw, path.Dir(dir), mode); err != nil {
		return err
	}
	return b.add(tw, dir+"/", mode, nil)
}

// add adds one path to a layer. The name of a directory ends in a slash.
func (b *builder) add(tw *tar.Writer, name string, mode int64, content []byte) error {
	clean, isDir, typeflag := path.Clean(name), strings.HasSuffix(name, "/"), byte(tar.TypeReg)
	if isDir {
		typeflag = tar.TypeDir
	}
	if was, ok := b.isDir[clean]; ok && was != isDir {
		return fmt.Errorf("%q is already in the image, and only one of the two is a directory: choose another destination", clean)
	}
	b.isDir[clean] = isDir
	header := &tar.Header{Typeflag: typeflag, Name: strings.TrimPrefix(name, "/"), Mode: mode, Size: int64(len(content)), ModTime: time.Unix(0, 0)}
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	_, err := tw.Write(content)
	return err
}
