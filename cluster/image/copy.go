package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// entry is one path that a layer adds to the image.
type entry struct {
	tar.Header        // without name and size
	from       string // a regular file's path in the context
}

type owner struct{ uid, gid int }

// parseOwner parses uid[:gid]. Without a gid, the gid equals the uid, as with Docker.
func parseOwner(s string) (owner, error) {
	if s == "" {
		return owner{}, nil
	}
	user, group, ok := strings.Cut(s, ":")
	if !ok {
		group = user
	}
	uid, err := strconv.ParseUint(user, 10, 31)
	gid, err2 := strconv.ParseUint(group, 10, 31)
	if err != nil || err2 != nil {
		return owner{}, fmt.Errorf("owner %q: a scratch image has no /etc/passwd to look up names in: write numbers, uid[:gid]", s)
	}
	return owner{int(uid), int(gid)}, nil
}

// readIgnore returns the patterns of the ignore file, or no patterns if there is none.
func readIgnore(root *os.Root) (*patternmatcher.PatternMatcher, error) {
	for _, name := range []string{"Dockerfile.dockerignore", ".dockerignore"} {
		text, err := root.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		patterns, err2 := ignorefile.ReadAll(bytes.NewReader(text))
		matcher, err3 := patternmatcher.New(patterns)
		if err := errors.Join(err, err2, err3); err != nil {
			return nil, fmt.Errorf("reading %q: %w", name, err)
		}
		return matcher, nil
	}
	return patternmatcher.New(nil)
}

func (b *builder) ignored(name string) (bool, error) {
	if name == "." {
		return false, nil
	}
	return b.ignore.MatchesOrParentMatches(name)
}

// copy adds sources to the layer by the rules of Docker: a directory adds its contents;
// a file takes the name of the destination, unless the destination is a directory. If
// unpacks is true, Docker would unpack archives, which copy refuses.
func (b *builder) copy(c instructions.SourcesAndDest, chown, chmod string, unpacks bool) error {
	fileOwner, err := parseOwner(chown)
	if err != nil {
		return err
	}
	mode := int64(-1) // -1 keeps the mode of each file
	if chmod != "" {
		if mode, err = strconv.ParseInt(chmod, 8, 64); err != nil || mode < 0 || mode > 0o7777 {
			return fmt.Errorf("--chmod=%s is not an octal mode: write 755 or 0644", chmod)
		}
	}
	var found []string
	for _, src := range c.SourcePaths {
		names, err := b.find(src)
		if err != nil {
			return fmt.Errorf("copying %q: %w", src, err)
		}
		found = append(found, names...)
	}
	dst := b.absolute(c.DestPath)
	intoDirectory := strings.HasSuffix(c.DestPath, "/") || path.Base(c.DestPath) == "." || b.tree[dst] == tar.TypeDir
	if b.tree[dst] == tar.TypeSymlink {
		return fmt.Errorf("copying to %q: it is a symlink in the image, and following it is not supported: name its target", c.DestPath)
	}
	if len(found) > 1 && !intoDirectory {
		return fmt.Errorf("copying %d sources to %q: only a directory can hold them: end it with a slash", len(found), c.DestPath)
	}
	for _, name := range found {
		if err := b.copyOne(name, dst, intoDirectory, fileOwner, mode, unpacks); err != nil {
			return fmt.Errorf("copying %q: %w", name, err)
		}
	}
	return nil
}

// find returns the paths in the context that match one source. It differs from
// Docker in one case: a symlink that is not ignored may point to an ignored file.
func (b *builder) find(src string) ([]string, error) {
	name := path.Clean(strings.TrimLeft(src, "/"))
	switch {
	case src == "":
		return nil, errors.New("the name expands to an empty string: give its variable a value")
	case strings.Contains(src, "://") || strings.HasPrefix(src, "git@"):
		return nil, errors.New("downloading is not supported: download the file before the build and COPY it, or use docker build")
	case name == ".." || strings.HasPrefix(name, "../"):
		return nil, fmt.Errorf("it is outside the context %q: move it inside", b.dir)
	}
	names, hasWildcard := []string{name}, strings.ContainsAny(name, `*?[\`)
	if hasWildcard {
		var err error
		if names, err = fs.Glob(b.root.FS(), name); err != nil {
			return nil, fmt.Errorf("%w: wildcards are those of Go's path.Match", err)
		}
	}
	var found []string
	for _, name := range names {
		info, err := b.root.Stat(name) // refuses to follow a symlink out of the context
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: it must lie in the context %q itself", err, b.dir)
		}
		ignored, err := b.ignored(name)
		if err != nil {
			return nil, err
		}
		// The ignore file may include some contents of an ignored directory.
		if !ignored || info.IsDir() && b.ignore.Exclusions() {
			found = append(found, name)
		} else if !hasWildcard {
			return nil, errors.New(".dockerignore excludes it: include it by a line that starts with !")
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no such file in %q: `make build` makes what a service's image needs", b.dir)
	}
	return found, nil
}

func (b *builder) copyOne(name, dst string, intoDirectory bool, fileOwner owner, mode int64, unpacks bool) error {
	info, err := b.root.Stat(name)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		if unpacks && b.isArchive(name) {
			return errors.New("ADD would unpack this archive, which is not supported: unpack it before the build, or COPY it")
		}
		if intoDirectory {
			dst = path.Join(dst, path.Base(name))
		}
		return b.putFile(name, info, dst, fileOwner, mode)
	}
	if err := b.mkdirs(dst, fileOwner, mode); err != nil {
		return err
	}
	dir, err := fs.Sub(b.root.FS(), name)
	if err != nil {
		return err
	}
	return fs.WalkDir(dir, ".", func(rel string, d fs.DirEntry, err error) error {
		if err != nil || rel == "." {
			return err
		}
		from := path.Join(name, rel)
		switch ignored, err := b.ignored(from); {
		case err != nil:
			return err
		case ignored && d.IsDir() && !b.ignore.Exclusions():
			return fs.SkipDir
		case ignored:
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return b.putFile(from, info, path.Join(dst, rel), fileOwner, mode)
	})
}

// isArchive reports whether ADD might unpack the file. It also returns true for a
// compressed file that contains no archive, which Docker would copy.
func (b *builder) isArchive(name string) bool {
	f, err := b.root.Open(name)
	if err != nil {
		return false // write returns the error later
	}
	defer f.Close()
	_, notTar := tar.NewReader(f).Next()
	head := make([]byte, 6)
	n, _ := f.ReadAt(head, 0)
	return notTar == nil || slices.ContainsFunc([]string{"\x1f\x8b\x08", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"},
		func(magic string) bool { return bytes.HasPrefix(head[:n], []byte(magic)) })
}

// putFile adds a file, a directory, or a symlink inside a copied directory.
func (b *builder) putFile(from string, info fs.FileInfo, to string, fileOwner owner, mode int64) error {
	link := ""
	if info.Mode().Type() == fs.ModeSymlink {
		var err error
		if link, err = b.root.Readlink(from); err != nil {
			return err
		}
	} else if !info.IsDir() && !info.Mode().IsRegular() {
		return fmt.Errorf("%q is neither a file nor a directory nor a symlink: exclude it in .dockerignore", from)
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	if mode >= 0 && link == "" {
		h.Mode = mode
	}
	if err := b.mkdirs(path.Dir(to), fileOwner, mode); err != nil {
		return err
	}
	return b.put(to, h.Typeflag, h.Mode, fileOwner, link, from)
}

// mkdirs adds missing directories as Docker does: with the owner and the mode that the
// instruction sets for the files in them. If mode is -1, the mode is 0755.
func (b *builder) mkdirs(dir string, fileOwner owner, mode int64) error {
	if b.tree[dir] == tar.TypeDir {
		return nil
	}
	if err := b.mkdirs(path.Dir(dir), fileOwner, mode); err != nil {
		return err
	}
	if mode < 0 {
		mode = 0o755
	}
	return b.put(dir, tar.TypeDir, mode, fileOwner, "", "")
}

// put adds an entry to the layer.
func (b *builder) put(name string, typ byte, mode int64, fileOwner owner, link, from string) error {
	if old, ok := b.tree[name]; ok && (old == tar.TypeDir) != (typ == tar.TypeDir) {
		return fmt.Errorf("%q is already in the image, and only one of the two is a directory: choose another destination", name)
	}
	b.tree[name] = typ
	b.layer[name] = &entry{from: from, Header: tar.Header{
		Typeflag: typ, Mode: mode, Uid: fileOwner.uid, Gid: fileOwner.gid, Linkname: link, ModTime: time.Unix(0, 0),
	}}
	return nil
}

// pack writes the layer to memory, so that the image does not depend on the files
// afterwards. Package tarball compresses the layer once, with gzip's fastest level.
func (b *builder) pack() (v1.Layer, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(b.layer)) {
		if err := b.write(tw, name, b.layer[name]); err != nil {
			return nil, fmt.Errorf("packing %q: %w", name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

func (b *builder) write(tw *tar.Writer, name string, e *entry) error {
	e.Name = strings.TrimPrefix(name, "/")
	if e.Typeflag == tar.TypeDir {
		e.Name += "/"
	}
	if e.Typeflag != tar.TypeReg {
		return tw.WriteHeader(&e.Header)
	}
	f, err := b.root.Open(e.from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	e.Size = info.Size()
	if err := tw.WriteHeader(&e.Header); err != nil {
		return err
	}
	_, err = io.CopyN(tw, f, e.Size)
	return err
}
