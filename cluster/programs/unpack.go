package programs

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// isArchive reports whether a file is a compressed tar archive.
func isArchive(name string) bool {
	return strings.HasSuffix(name, ".tgz") || strings.HasSuffix(name, ".tar.gz")
}

// unpackPrograms writes those files of a compressed tar archive to dir that have the given
// base names.
func unpackPrograms(archive, dir string, names []string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	missing := map[string]bool{}
	for _, n := range names {
		missing[n] = true
	}
	for entries := tar.NewReader(unzipped); len(missing) > 0; {
		entry, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := path.Base(entry.Name)
		if entry.Typeflag != tar.TypeReg || !missing[name] {
			continue
		}
		if err := writeProgram(filepath.Join(dir, name), entries); err != nil {
			return err
		}
		delete(missing, name)
	}
	for _, n := range names {
		if missing[n] {
			return fmt.Errorf("it contains no file %q", n)
		}
	}
	return nil
}

// writeProgram writes a program, which appears only when it is complete.
func writeProgram(file string, content io.Reader) error {
	part := file + incompleteSuffix
	defer os.Remove(part)
	out, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, content)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	return os.Rename(part, file)
}
