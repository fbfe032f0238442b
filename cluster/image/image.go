// Package image builds OCI images from Dockerfiles without Docker, pushes them to
// registries, and implements the image registry of a cluster.
//
// It reads a Dockerfile with BuildKit's parser, like docker build, and either makes
// the same image or returns an error. It never ignores an instruction.
//
//	img, err := image.Build("go-micro-srv", v1.Platform{OS: "linux", Architecture: "amd64"})
//	_, err = image.Push(ctx, img, "846602483/go-micro-srv:kubernetes", dialTheClustersRegistry)
//	_, err = image.Publish(ctx, "docker.io/you/go-micro-srv:v1", []image.Variant{{amd64, sbomOfAmd64}, {arm64, sbomOfArm64}})
//
// Supported, in one stage that starts FROM scratch:
//
//   - COPY and ADD of files and directories of the context, with wildcards,
//     --chown=uid[:gid] and --chmod=octal, one layer each
//   - WORKDIR, which makes the directory, and USER, EXPOSE, VOLUME, STOPSIGNAL
//   - CMD and ENTRYPOINT as JSON arrays, because scratch has no shell for the shell form
//   - LABEL, MAINTAINER, ENV and ARG, whose variables later lines may use; the platform
//     arguments such as TARGETARCH are set; there is no --build-arg
//   - Dockerfile.dockerignore or, if that does not exist, .dockerignore
//
// Everything else is an error that contains the line number: RUN, another base image, a
// second stage, URLs, archives that ADD would unpack, heredocs, HEALTHCHECK,
// symbolic modes, user names where a number is needed, sources outside the context.
//
// The same files give the same digest: entries are sorted, every modification time
// is 1970, and owners are 0:0 without --chown. File modes are those of the context,
// as with Docker, so a checkout with another umask gives another image, unless
// --chmod sets the modes. Another Go release may compress differently and give
// another digest.
//
// A supported Dockerfile gives the same image as BuildKit, except that a wildcard without
// a match is an error. TestSameAsBuildKit compares the images. As with BuildKit, and
// unlike Docker's reference, an ARG below an ENV of the same name replaces its value.
package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/patternmatcher"
)

// defaultPath is the PATH that BuildKit sets in a scratch image.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// unsupported contains the instructions that Build refuses, each with reason and remedy.
var unsupported = map[string]string{
	"RUN":         "needs a running container, which this builder does not have: make the file before the build and COPY it, or use docker build",
	"HEALTHCHECK": "is ignored by Kubernetes: write probes in the pod's manifest",
	"ONBUILD":     "is for images that others build from: leave it out, or use docker build",
	"SHELL":       "names a shell, which a scratch image does not contain: leave it out",
}

var stopSignals = strings.Fields("HUP INT QUIT ABRT KILL USR1 USR2 PIPE ALRM TERM CONT STOP TSTP WINCH")

type builder struct {
	dir     string
	root    *os.Root // the context: the builder reads no file outside of it
	ignore  *patternmatcher.PatternMatcher
	lex     *shell.Lex
	global  []string // platform arguments and each ARG before FROM, as key=value
	env     []string // variables that the current line may use
	started bool     // FROM has been executed
	image   *v1.ConfigFile
	adds    []mutate.Addendum
	tree    map[string]byte   // the tar type of each path in the image so far
	layer   map[string]*entry // paths that the current instruction adds to tree
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
	if syntax, _, location, ok := parser.DetectSyntax(dockerfile); ok && !strings.Contains("/"+syntax, "/docker/dockerfile") {
		return nil, fmt.Errorf("line %d: syntax %q is not that of a Dockerfile: leave the line out, or use docker build", location[0].Start.Line, syntax)
	}
	parsed, err := parser.Parse(bytes.NewReader(dockerfile))
	if err != nil {
		return nil, withLine(err)
	}
	base, err := empty.Image.ConfigFile()
	if err != nil {
		return nil, err
	}
	b := &builder{
		dir: contextDir, root: root, lex: shell.NewLex(parsed.EscapeToken),
		global: platformArgs(p), image: base.DeepCopy(), tree: map[string]byte{"/": tar.TypeDir},
	}
	b.env = b.global
	if b.ignore, err = readIgnore(root); err != nil {
		return nil, err
	}
	b.image.OS, b.image.Architecture, b.image.Variant = p.OS, p.Architecture, p.Variant
	b.image.Created.Time = time.Unix(0, 0).UTC()
	b.image.Config = v1.Config{
		Env: []string{defaultPath}, WorkingDir: "/",
		Labels: map[string]string{}, ExposedPorts: map[string]struct{}{}, Volumes: map[string]struct{}{},
	}
	for _, n := range parsed.AST.Children {
		if err := b.line(n); err != nil {
			return nil, fmt.Errorf("line %d: %w", n.StartLine, err)
		}
	}
	if !b.started {
		return nil, errors.New("no FROM: start with FROM scratch")
	}
	img = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.ConfigFile(img, b.image); err != nil {
		return nil, err
	}
	return mutate.Append(img, b.adds...)
}

// withLine adds the line number to an error of the parser.
func withLine(err error) error {
	var at *parser.LocationError
	if errors.As(err, &at) && len(at.Locations) > 0 && len(at.Locations[0]) > 0 {
		// The parser numbers the lines of directives from 0, and all other lines from 1.
		return fmt.Errorf("line %d: %w", max(1, at.Locations[0][0].Start.Line), err)
	}
	return err
}

// platformArgs returns the variables that BuildKit predefines for a platform.
func platformArgs(p v1.Platform) []string {
	build := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	return []string{
		"TARGETPLATFORM=" + p.String(), "TARGETOS=" + p.OS, "TARGETARCH=" + p.Architecture, "TARGETVARIANT=" + p.Variant,
		"BUILDPLATFORM=" + build.String(), "BUILDOS=" + build.OS, "BUILDARCH=" + build.Architecture, "BUILDVARIANT=",
		"TARGETSTAGE=default",
	}
}

func (b *builder) expand(word string) (string, error) {
	word, _, err := b.lex.ProcessWord(word, shell.EnvsFromSlice(b.env))
	return word, err
}

// line executes one instruction.
func (b *builder) line(n *parser.Node) error {
	name := strings.ToUpper(n.Value)
	if reason, ok := unsupported[name]; ok {
		return fmt.Errorf("%s %s", name, reason)
	}
	for _, f := range n.Flags {
		if flag, _, _ := strings.Cut(f, "="); flag != "--chown" && flag != "--chmod" {
			return fmt.Errorf("%s %s is not supported, as there is one stage and one context: leave it out, or use docker build", name, flag)
		}
	}
	if len(n.Heredocs) > 0 {
		return fmt.Errorf("%s of a heredoc is not supported: write a file and COPY it, or use docker build", name)
	}
	cmd, err := instructions.ParseInstruction(n)
	if err != nil {
		return err
	}
	switch c := cmd.(type) {
	case *instructions.Stage:
		return b.from(c)
	case *instructions.ArgCommand:
		return b.arg(c)
	}
	if !b.started {
		return fmt.Errorf("%s before FROM: start with FROM scratch", name)
	}
	if words, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		if err := words.Expand(b.expand); err != nil {
			return err
		}
	}
	b.layer = map[string]*entry{}
	if err := b.apply(cmd); err != nil {
		return err
	}
	add := mutate.Addendum{History: v1.History{
		Created: b.image.Created, CreatedBy: strings.TrimSpace(n.Original), EmptyLayer: len(b.layer) == 0,
	}}
	if len(b.layer) > 0 {
		if add.Layer, err = b.pack(); err != nil {
			return err
		}
	}
	b.adds = append(b.adds, add)
	return nil
}

func (b *builder) from(c *instructions.Stage) error {
	if b.started {
		return errors.New("a second FROM needs a build in stages, which is not supported: make the file before the build and COPY it, or use docker build")
	}
	base, err := b.expand(c.BaseName)
	if err != nil {
		return err
	}
	if base != "scratch" {
		return fmt.Errorf("FROM %q needs a base image, which this builder does not download: make a static binary and start FROM scratch, or use docker build", base)
	}
	b.global, b.env, b.started = b.env, []string{defaultPath}, true
	return nil
}

// arg sets variables for the following lines. An ARG without a value takes its value from
// the ARG of the same name before FROM, or from the platform arguments.
func (b *builder) arg(c *instructions.ArgCommand) error {
	for _, a := range c.Args {
		if a.Value != nil {
			v, err := b.expand(*a.Value)
			if err != nil {
				return err
			}
			b.env = setEnv(b.env, a.Key, v)
		} else if v, ok := shell.EnvsFromSlice(b.global).Get(a.Key); ok {
			b.env = setEnv(b.env, a.Key, v)
		}
	}
	return nil
}

func setEnv(env []string, key, value string) []string {
	env = slices.Clone(env)
	for i := range env {
		if strings.HasPrefix(env[i], key+"=") {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

func (b *builder) apply(cmd any) error {
	config := &b.image.Config
	switch c := cmd.(type) {
	case *instructions.EnvCommand:
		for _, kv := range c.Env {
			b.env, config.Env = setEnv(b.env, kv.Key, kv.Value), setEnv(config.Env, kv.Key, kv.Value)
		}
	case *instructions.LabelCommand:
		for _, kv := range c.Labels {
			config.Labels[kv.Key] = kv.Value
		}
	case *instructions.MaintainerCommand:
		b.image.Author = c.Maintainer
	case *instructions.UserCommand:
		config.User = c.User
	case *instructions.WorkdirCommand:
		fileOwner, err := parseOwner(config.User)
		if err != nil {
			return fmt.Errorf("making %q for USER: %w", c.Path, err)
		}
		config.WorkingDir = b.absolute(c.Path)
		return b.mkdirs(config.WorkingDir, fileOwner, -1)
	case *instructions.ExposeCommand:
		for _, spec := range c.Ports {
			words, err := b.lex.ProcessWords(spec, shell.EnvsFromSlice(b.env))
			if err != nil {
				return err
			}
			for _, word := range words {
				if err := b.expose(word); err != nil {
					return err
				}
			}
		}
	case *instructions.VolumeCommand:
		for _, v := range c.Volumes {
			config.Volumes[v] = struct{}{}
		}
	case *instructions.StopSignalCommand:
		number, err := strconv.Atoi(c.Signal)
		if (err != nil || number < 1 || number > 64) && !slices.Contains(stopSignals, strings.TrimPrefix(c.Signal, "SIG")) {
			return fmt.Errorf("STOPSIGNAL %q is not a known signal: write its number", c.Signal)
		}
		config.StopSignal = c.Signal
	case *instructions.CmdCommand:
		config.Cmd, config.ArgsEscaped = c.CmdLine, true
		return execForm("CMD", c.ShellDependantCmdLine)
	case *instructions.EntrypointCommand:
		config.Entrypoint, config.ArgsEscaped = c.CmdLine, true
		return execForm("ENTRYPOINT", c.ShellDependantCmdLine)
	case *instructions.CopyCommand:
		return b.copy(c.SourcesAndDest, c.Chown, c.Chmod, false)
	case *instructions.AddCommand:
		return b.copy(c.SourcesAndDest, c.Chown, c.Chmod, true)
	default:
		return fmt.Errorf("%T is not supported: leave it out, or use docker build", cmd)
	}
	return nil
}

// execForm returns an error unless the command is a JSON array.
func execForm(name string, c instructions.ShellDependantCmdLine) error {
	if c.PrependShell {
		return fmt.Errorf("%s in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, %s [\"/server\"]", name, name)
	}
	return nil
}

// expose adds a port or a range of ports.
func (b *builder) expose(spec string) error {
	ports, proto, _ := strings.Cut(spec, "/")
	if proto = strings.ToLower(proto); proto == "" {
		proto = "tcp"
	}
	from, to, ok := strings.Cut(ports, "-")
	if !ok {
		to = from
	}
	first, err := strconv.ParseUint(from, 10, 16)
	last, err2 := strconv.ParseUint(to, 10, 16)
	if err != nil || err2 != nil || first > last || !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
		return fmt.Errorf("EXPOSE %q is not a port: write 9100, 9100/udp or 9100-9110", spec)
	}
	for ; first <= last; first++ {
		b.image.Config.ExposedPorts[fmt.Sprintf("%d/%s", first, proto)] = struct{}{}
	}
	return nil
}

// absolute resolves a path in the image relative to WORKDIR.
func (b *builder) absolute(p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join(b.image.Config.WorkingDir, p)
}
