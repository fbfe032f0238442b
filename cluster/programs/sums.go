package programs

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// sumsFile is the file of the checkout with the SHA-256 of the official files, for amd64 and
// arm64. Its lines are those of sha256sum; the name of a file is its URL without https://.
const sumsFile = "cluster/programs/sums.txt"

const sumsHeader = `# The SHA-256 of the official files that the launcher downloads. "make sums" writes this file.
`

// sums are the SHA-256 of official files by the address at which they are published.
type sums map[string]string

// readSums reads the sums of a checkout.
func readSums(root string) (sums, error) {
	b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(sumsFile)))
	if err != nil {
		return nil, fmt.Errorf("reading the checksums of official files: %w", err)
	}
	all := sums{}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if len(fields) != 2 || !sha256Pattern.MatchString(fields[0]) {
			return nil, fmt.Errorf("reading %s: want a SHA-256 and a name in %q; run `make sums`", sumsFile, strings.TrimSpace(line))
		}
		all["https://"+fields[1]] = fields[0]
	}
	return all, nil
}

// WriteSums asks the publishers for the SHA-256 of every official file, over HTTPS, and writes
// them to the file of the checkout root.
func WriteSums(ctx context.Context, root string, progress func(format string, args ...any)) error {
	return newDownloader(progress).writeSums(ctx, root)
}

func (d *downloader) writeSums(ctx context.Context, root string) error {
	goMod, err := os.ReadFile(filepath.Join(root, "cluster", "kube", "go.mod"))
	if err != nil {
		return err
	}
	r, err := parseReleases(goMod)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "sums-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	all := sums{}
	for _, arch := range []string{"amd64", "arm64"} {
		files := r.files(source{}, arch)
		for _, t := range nodeTools {
			if f, version := t.officialFile(source{}, arch); version != "" {
				files = append(files, f)
			}
		}
		for _, f := range files {
			if all[f.url] == "" {
				if all[f.url], err = d.publishedSum(ctx, tmp, f); err != nil {
					return err
				}
			}
		}
	}
	text := sumsHeader
	for _, address := range slices.Sorted(maps.Keys(all)) {
		text += all[address] + "  " + strings.TrimPrefix(address, "https://") + "\n"
	}
	d.progress("%d checksums written to %s", len(all), sumsFile)
	return os.WriteFile(filepath.Join(root, filepath.FromSlash(sumsFile)), []byte(text), 0o644)
}

var sha256Pattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// findSum finds the SHA-256 of the file name in a text that is either this sum alone or has
// lines of sums and names, as sha256sum prints them.
func findSum(name, text string) (string, error) {
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(strings.ToLower(lines.Text()))
		if len(fields) == 0 || !sha256Pattern.MatchString(fields[0]) {
			continue
		}
		if len(fields) == 1 || len(fields) == 2 && path.Base(strings.TrimPrefix(fields[1], "*")) == strings.ToLower(name) {
			return fields[0], nil
		}
	}
	return "", fmt.Errorf("it has no SHA-256 of %q", name)
}

func sha256OfFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
