package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

var amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}

// files is a build context that maps names to contents. A name that ends in / is a
// directory. Content that starts with -> makes a symlink, and with #! an executable file.
type files map[string]string

func (f files) write(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(f)) {
		content, file := f[name], filepath.Join(dir, name)
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.Symlink(target, file))
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(file, 0o755)
		} else {
			err = errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), mode), os.Chmod(file, mode))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func config(t testing.TB, img v1.Image) *v1.ConfigFile {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// layers lists the entries of each layer as "mode uid:gid name content".
func layers(t testing.TB, img v1.Image) [][]string {
	t.Helper()
	list, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var all [][]string
	for _, l := range list {
		if mt, _ := l.MediaType(); mt != types.OCILayer {
			t.Errorf("layer is a %s", mt)
		}
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var entries []string
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			if !h.ModTime.Equal(time.Unix(0, 0)) || h.Uname+h.Gname != "" {
				t.Errorf("%s has time %s, owner %q %q", h.Name, h.ModTime, h.Uname, h.Gname)
			}
			line := fmt.Sprintf("%o %d:%d %s", h.Mode, h.Uid, h.Gid, h.Name)
			if h.Typeflag == tar.TypeReg {
				line += " " + string(content)
			} else if h.Typeflag == tar.TypeSymlink {
				line += " -> " + h.Linkname
			}
			entries = append(entries, line)
		}
		all = append(all, entries)
	}
	return all
}

func TestConfig(t *testing.T) {
	const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	type ports = map[string]struct{}
	for _, tt := range []struct {
		name, dockerfile string
		want             v1.Config
	}{
		{"nothing but a base", "FROM scratch", v1.Config{}},
		{"the Dockerfile of a service", "FROM scratch\nEXPOSE 9100\nUSER 65532:65532\nCMD [\"/server\"]\n",
			v1.Config{ExposedPorts: ports{"9100/tcp": {}}, User: "65532:65532", Cmd: []string{"/server"}, ArgsEscaped: true}},
		{"lower case, a name, comments, continuation", "# build\nfrom scratch as final\n\n# why\nentrypoint [\"/a\", \\\n  \"-b\"]\ncmd []",
			v1.Config{Entrypoint: []string{"/a", "-b"}, Cmd: []string{}, ArgsEscaped: true}},
		{"ports", "FROM scratch\nARG P='80 81/udp'\nEXPOSE $P 90-91/SCTP",
			v1.Config{ExposedPorts: ports{"80/tcp": {}, "81/udp": {}, "90/sctp": {}, "91/sctp": {}}}},
		{"env, arg and their order", "ARG BASE=scratch V=1\nFROM ${BASE}\nARG V\nARG W=${V}2\nARG UNSET\nENV A=$W B=${UNSET:-none} C='$W'\nENV A=${A}3\nENV OLD value",
			v1.Config{Env: []string{path, "A=123", "B=none", "C=$W", "OLD=value"}}},
		{"an env replaced in place", "FROM scratch\nENV PATH=/bin X=1\nENV X=$PATH",
			v1.Config{Env: []string{"PATH=/bin", "X=/bin"}}},
		{"an arg from before FROM needs a line of its own", "ARG V=1\nFROM scratch\nENV A=x$V",
			v1.Config{Env: []string{path, "A=x"}}},
		{"the escape directive", "# escape=`\nFROM scratch\nENV A=a`\nb C=`$A",
			v1.Config{Env: []string{path, "A=ab", "C=$A"}}},
		{"platform arguments", "FROM scratch\nARG TARGETPLATFORM\nARG TARGETARCH\nARG BUILDARCH\nLABEL p=$TARGETPLATFORM a=$TARGETARCH b=$BUILDARCH",
			v1.Config{Labels: map[string]string{"p": "linux/amd64", "a": "amd64", "b": runtime.GOARCH}}},
		{"working directories", "FROM scratch\nWORKDIR /a\nWORKDIR b/../c", v1.Config{WorkingDir: "/a/c"}},
		{"volumes and signal", "# syntax=docker/dockerfile:1\nFROM scratch\nVOLUME /data\nVOLUME [\"/x y\"]\nSTOPSIGNAL SIGINT",
			v1.Config{Volumes: ports{"/data": {}, "/x y": {}}, StopSignal: "SIGINT"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			img, err := Build(files{"Dockerfile": tt.dockerfile}.write(t), amd64)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want.Env == nil {
				tt.want.Env = []string{path}
			}
			if tt.want.WorkingDir == "" {
				tt.want.WorkingDir = "/"
			}
			got := config(t, img)
			if got.OS != "linux" || got.Architecture != "amd64" || !got.Created.Equal(time.Unix(0, 0)) {
				t.Errorf("config is for %s/%s of %s", got.OS, got.Architecture, got.Created)
			}
			if got, want := fmt.Sprintf("%+v", got.Config), fmt.Sprintf("%+v", tt.want); got != want {
				t.Errorf("config is\n%s, want\n%s", got, want)
			}
		})
	}
}

func TestAuthorAndHistory(t *testing.T) {
	img, err := Build(files{"Dockerfile": "FROM scratch\nMAINTAINER jiangjiancc\nADD ./server /server\nWORKDIR /", "server": "s"}.write(t), amd64)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	c := config(t, img)
	for _, h := range c.History {
		got = append(got, fmt.Sprint(h.CreatedBy, " ", h.EmptyLayer))
	}
	want := []string{"MAINTAINER jiangjiancc true", "ADD ./server /server false", "WORKDIR / true"}
	if c.Author != "jiangjiancc" || !slices.Equal(got, want) {
		t.Errorf("author %q, history %q, want %q", c.Author, got, want)
	}
}

func TestCopy(t *testing.T) {
	context := files{
		"server": "#!s", "a.txt": "a", "b.txt": "b", "-x": "x", "c.TXT": "C",
		"conf/app.yaml": "y", "conf/sub/deep": "d", "conf/current": "->sub/deep", "conf/empty/": "",
		"link": "->conf/app.yaml", "dirlink": "->conf", "file.tar.note": "no archive", "we[i]rd": "w",
	}
	for _, tt := range []struct {
		name, lines string
		want        [][]string // one list for each layer
	}{
		{"file to a name", "COPY server /server", [][]string{{"755 0:0 server #!s"}}},
		{"file to a directory", "ADD ./server /bin/", [][]string{{"755 0:0 bin/", "755 0:0 bin/server #!s"}}},
		{"file to the root", "COPY a.txt /", [][]string{{"644 0:0 a.txt a"}}},
		{"parents are made once", "COPY a.txt /x/y/a\nCOPY b.txt /x/y/b",
			[][]string{{"755 0:0 x/", "755 0:0 x/y/", "644 0:0 x/y/a a"}, {"644 0:0 x/y/b b"}}},
		{"relative to WORKDIR", "WORKDIR /w\nCOPY a.txt .\nCOPY a.txt sub/c\nCOPY a.txt ../d",
			[][]string{{"755 0:0 w/"}, {"644 0:0 w/a.txt a"}, {"755 0:0 w/sub/", "644 0:0 w/sub/c a"}, {"644 0:0 d a"}}},
		{"a name that is a directory already", "WORKDIR /w\nCOPY a.txt b.txt /w", [][]string{{"755 0:0 w/"}, {"644 0:0 w/a.txt a", "644 0:0 w/b.txt b"}}},
		{"a later file replaces an earlier one", "COPY a.txt /z\nCOPY b.txt /z", [][]string{{"644 0:0 z a"}, {"644 0:0 z b"}}},
		{"a directory gives its contents", "COPY conf /etc/app", [][]string{{
			"755 0:0 etc/", "755 0:0 etc/app/", "644 0:0 etc/app/app.yaml y", "777 0:0 etc/app/current -> sub/deep",
			"755 0:0 etc/app/empty/", "755 0:0 etc/app/sub/", "644 0:0 etc/app/sub/deep d"}}},
		{"a directory to the root", "COPY conf/sub /", [][]string{{"644 0:0 deep d"}}},
		{"a directory below", "COPY conf/../conf/sub/ /s/", [][]string{{"755 0:0 s/", "644 0:0 s/deep d"}}},
		{"symlinks are followed by name", "COPY link /l\nCOPY dirlink/sub /m", [][]string{{"644 0:0 l y"}, {"755 0:0 m/", "644 0:0 m/deep d"}}},
		{"a symlink to a directory", "COPY dirlink/ /l/", [][]string{{
			"755 0:0 l/", "644 0:0 l/app.yaml y", "777 0:0 l/current -> sub/deep", "755 0:0 l/empty/", "755 0:0 l/sub/", "644 0:0 l/sub/deep d"}}},
		{"wildcards", "COPY ?.txt /t/", [][]string{{"755 0:0 t/", "644 0:0 t/a.txt a", "644 0:0 t/b.txt b"}}},
		{"a wildcard with one match", "COPY a*.txt /t", [][]string{{"644 0:0 t a"}}},
		{"a wildcard in the middle", "COPY */sub/d* /t/", [][]string{{"755 0:0 t/", "644 0:0 t/deep d"}}},
		{"an escaped wildcard", `COPY we\\[i\\]rd /t`, [][]string{{"644 0:0 t w"}}},
		{"JSON form", `COPY ["a.txt", "/a b"]`, [][]string{{"644 0:0 a b a"}}},
		{"variables", "ARG N=a\nENV D=/d\nCOPY ${N}.txt $D/", [][]string{{"755 0:0 d/", "644 0:0 d/a.txt a"}}},
		{"owner and mode", "COPY --chown=65532 --chmod=0750 a.txt /o/", [][]string{{"750 65532:65532 o/", "750 65532:65532 o/a.txt a"}}},
		{"owner, group and variables", "ARG U=1 M=4711\nADD --chown=$U:2 --chmod=$M a.txt /o", [][]string{{"4711 1:2 o a"}}},
		{"mode of a directory's contents", "COPY --chmod=700 conf/sub conf/empty /o/", [][]string{{"700 0:0 o/", "700 0:0 o/deep d"}}},
		{"WORKDIR belongs to USER", "USER 7\nWORKDIR /h\nCOPY a.txt .", [][]string{{"755 7:7 h/"}, {"644 0:0 h/a.txt a"}}},
		{"ADD of a plain file", "ADD file.tar.note /n", [][]string{{"644 0:0 n no archive"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			context["Dockerfile"] = "FROM scratch\n" + tt.lines
			img, err := Build(context.write(t), amd64)
			if err != nil {
				t.Fatal(err)
			}
			if got := layers(t, img); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("layers are\n%q, want\n%q", got, tt.want)
			}
		})
	}
}

func TestDockerignore(t *testing.T) {
	for _, tt := range []struct {
		name   string
		ignore files
		want   []string // names in the image
	}{
		{"none", files{}, []string{"Dockerfile", "doc/", "doc/a.md", "doc/b.md", "server"}},
		{"a pattern", files{".dockerignore": "*.md\n**/a.md\nDockerfile\n.dockerignore"}, []string{"doc/", "doc/b.md", "server"}},
		{"a directory", files{".dockerignore": "doc\n.dockerignore"}, []string{"Dockerfile", "server"}},
		{"all but", files{".dockerignore": "*\n!server\n!doc/b.md"}, []string{"doc/", "doc/b.md", "server"}},
		{"Dockerfile.dockerignore comes first", files{".dockerignore": "server", "Dockerfile.dockerignore": "*\n!server"}, []string{"server"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			maps.Copy(tt.ignore, files{"Dockerfile": "FROM scratch\nCOPY . /", "server": "s", "doc/a.md": "a", "doc/b.md": "b"})
			img, err := Build(tt.ignore.write(t), amd64)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, line := range layers(t, img)[0] {
				got = append(got, strings.Fields(line)[2])
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("image holds %q, want %q", got, tt.want)
			}
		})
	}
}

// Each platform gets its own binary and its own configuration.
func TestPlatforms(t *testing.T) {
	dir := files{"Dockerfile": "FROM scratch\nARG TARGETARCH TARGETVARIANT\nCOPY server-$TARGETARCH$TARGETVARIANT /server", "server-arm64v8": "arm", "server-amd64": "amd"}.write(t)
	for want, p := range map[string]v1.Platform{"arm": {OS: "linux", Architecture: "arm64", Variant: "v8"}, "amd": amd64} {
		img, err := Build(dir, p)
		if err != nil {
			t.Fatal(err)
		}
		if got := layers(t, img)[0][0]; got != "644 0:0 server "+want {
			t.Errorf("%s has %q", p, got)
		}
		if c := config(t, img); c.Architecture != p.Architecture || c.Variant != p.Variant {
			t.Errorf("%s says %s %s", p, c.Architecture, c.Variant)
		}
	}
}

func TestRefused(t *testing.T) {
	var gz, tarball bytes.Buffer
	w := gzip.NewWriter(&gz)
	tw := tar.NewWriter(&tarball)
	if err := errors.Join(w.Close(), tw.WriteHeader(&tar.Header{Name: "x"}), tw.Close()); err != nil {
		t.Fatal(err)
	}
	context := files{
		"server": "#!s", "a": "a", "conf/x": "x", "a.tgz": gz.String(), "a.tar": tarball.String(),
		"out": "->../../etc/passwd", "abs": "->/etc/passwd", "outdir": "->/etc", "dangling": "->nothing", "links/l": "->x", ".dockerignore": "secret\n", "secret": "s",
	}
	for _, tt := range []struct {
		name, dockerfile, want string // want follows `building "DIR/Dockerfile": `
	}{
		{"empty", "", "line 1: file with no instructions"},
		{"comments only", "# a\n# b\n", "line 2: file with no instructions"},
		{"no FROM", "ARG A", "no FROM: start with FROM scratch"},
		{"before FROM", "ARG A\nCOPY server /", "line 2: COPY before FROM: start with FROM scratch"},
		{"another base", "# c\nFROM alpine", `line 2: FROM "alpine" needs a base image, which this builder does not download: make a static binary and start FROM scratch, or use docker build`},
		{"another base by variable", "ARG B=alpine\nFROM $B", `line 2: FROM "alpine" needs a base image`},
		{"a platform of the base", "FROM --platform=linux/arm64 scratch", "line 1: FROM --platform is not supported"},
		{"a second stage", "FROM scratch AS a\nFROM scratch\nCOPY --from=a /x /", "line 2: a second FROM needs a build in stages"},
		{"RUN", "FROM scratch\n\nRUN echo", "line 3: RUN needs a running container, which this builder does not have: make the file before the build and COPY it, or use docker build"},
		{"RUN with a heredoc", "FROM scratch\nRUN <<E\necho\nE", "line 2: RUN needs a running container"},
		{"HEALTHCHECK", "FROM scratch\nHEALTHCHECK NONE", "line 2: HEALTHCHECK is ignored by Kubernetes"},
		{"ONBUILD", "FROM scratch\nONBUILD COPY a /", "line 2: ONBUILD is for images that others build from"},
		{"SHELL", "FROM scratch\nSHELL [\"sh\"]", "line 2: SHELL names a shell"},
		{"a misspelt word", "FROM scratch\nCOPPY a /", "line 2: unknown instruction: COPPY (did you mean COPY?)"},
		{"another language", "# syntax=example.com/frontend:1\nFROM scratch", `line 1: syntax "example.com/frontend:1" is not that of a Dockerfile`},
		{"a directive twice", "# escape=`\n# escape=`\nFROM scratch", "line 1: only one escape parser directive can be used"},
		{"CMD in shell form", "FROM scratch\nCMD /server", `line 2: CMD in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, CMD ["/server"]`},
		{"CMD in single quotes", "FROM scratch\nCMD ['/server']", "line 2: CMD in shell form"},
		{"ENTRYPOINT in shell form", "FROM scratch\nENTRYPOINT /server", "line 2: ENTRYPOINT in shell form"},
		{"EXPOSE a word", "FROM scratch\nEXPOSE http", `line 2: EXPOSE "http" is not a port: write 9100, 9100/udp or 9100-9110`},
		{"EXPOSE beyond", "FROM scratch\nEXPOSE 65536", "line 2: EXPOSE"},
		{"EXPOSE a host's port", "FROM scratch\nEXPOSE 80:80", "line 2: EXPOSE"},
		{"EXPOSE backwards", "FROM scratch\nEXPOSE 9-8", "line 2: EXPOSE"},
		{"EXPOSE another protocol", "FROM scratch\nEXPOSE 9/http", "line 2: EXPOSE"},
		{"STOPSIGNAL", "FROM scratch\nSTOPSIGNAL SIGNOT", `line 2: STOPSIGNAL "SIGNOT" is not a known signal: write its number`},
		{"STOPSIGNAL beyond", "FROM scratch\nSTOPSIGNAL 65", "line 2: STOPSIGNAL"},
		{"WORKDIR for a user's name", "FROM scratch\nUSER app\nWORKDIR /a", `line 3: making "/a" for USER: owner "app": a scratch image has no /etc/passwd`},
		{"a missing variable", "FROM scratch\nVOLUME ${B:?say B}", "line 2: failed to process"},
		{"an empty name", "FROM scratch\nCOPY $B /", `line 2: copying "": the name expands to an empty string`},
		{"COPY without destination", "FROM scratch\nCOPY a", "line 2: COPY requires at least two arguments"},
		{"COPY --from", "FROM scratch\nCOPY --from=x /a /", "line 2: COPY --from is not supported, as there is one stage and one context: leave it out, or use docker build"},
		{"COPY --link", "FROM scratch\nCOPY --link a /", "line 2: COPY --link is not supported"},
		{"COPY --parents", "FROM scratch\nCOPY --parents a /", "line 2: COPY --parents is not supported"},
		{"COPY of a heredoc", "FROM scratch\nCOPY <<E /a\nx\nE", "line 2: COPY of a heredoc is not supported"},
		{"COPY by a user's name", "FROM scratch\nCOPY --chown=app a /", `line 2: owner "app": a scratch image has no /etc/passwd to look up names in: write numbers, uid[:gid]`},
		{"COPY with a symbolic mode", "FROM scratch\nCOPY --chmod=u+x a /", "line 2: --chmod=u+x is not an octal mode: write 755 or 0644"},
		{"COPY with a mode beyond", "FROM scratch\nCOPY --chmod=10000 a /", "line 2: --chmod=10000"},
		{"a missing file", "FROM scratch\nCOPY client /", `line 2: copying "client": no such file in "DIR": ` + "`make build` makes what a service's image needs"},
		{"a missing match", "FROM scratch\nCOPY cl* /", `line 2: copying "cl*": no such file in "DIR"`},
		{"a dangling symlink", "FROM scratch\nCOPY dangling /", `line 2: copying "dangling": no such file in "DIR"`},
		{"a bad pattern", "FROM scratch\nCOPY [a /x", `line 2: copying "[a": syntax error in pattern`},
		{"an ignored file", "FROM scratch\nCOPY secret /", `line 2: copying "secret": .dockerignore excludes it: include it by a line`},
		{"outside", "FROM scratch\nCOPY conf/../../x /", `line 2: copying "conf/../../x": it is outside the context "DIR": move it inside`},
		{"a symlink out", "FROM scratch\nCOPY out /", `line 2: copying "out": `},
		{"an absolute symlink out", "FROM scratch\nCOPY abs /", `line 2: copying "abs": `},
		{"through a symlink out", "FROM scratch\nCOPY outdir/passwd /", `line 2: copying "outdir/passwd": `},
		{"a wildcard through a symlink out", "FROM scratch\nCOPY outdir/pass* /", `line 2: copying "outdir/pass*": `},
		{"ADD a URL", "FROM scratch\nADD https://example.com/x /", `line 2: copying "https://example.com/x": downloading is not supported`},
		{"ADD a repository", "FROM scratch\nADD git@example.com:x/y.git /", `line 2: copying "git@example.com:x/y.git": downloading is not supported`},
		{"ADD an archive", "FROM scratch\nADD a.tar /", `line 2: copying "a.tar": ADD would unpack this archive, which is not supported: unpack it before the build, or COPY it`},
		{"ADD a compressed archive", "FROM scratch\nADD a.tgz /", `line 2: copying "a.tgz": ADD would unpack this archive`},
		{"two files to one name", "FROM scratch\nCOPY a server /x", `line 2: copying 2 sources to "/x": only a directory can hold them: end it with a slash`},
		{"a symlink of the image", "FROM scratch\nCOPY links /\nCOPY a /l", `line 3: copying to "/l": it is a symlink in the image, and following it is not supported: name its target`},
		{"below a symlink of the image", "FROM scratch\nCOPY links /\nCOPY a /l/x", `line 3: copying "a": "/l" is already in the image`},
		{"a socket", "FROM scratch\nCOPY . /", `line 2: copying ".": "socket" is neither a file nor a directory nor a symlink: exclude it in .dockerignore`},
		{"a file below a file", "FROM scratch\nCOPY a /x\nCOPY a /x/y", `line 3: copying "a": "/x" is already in the image, and only one of the two is a directory: choose another destination`},
		{"a directory over a file", "FROM scratch\nCOPY a /x\nCOPY conf /x", `line 3: copying "conf": "/x" is already in the image`},
		{"a file over a directory", "FROM scratch\nCOPY a /b/x/y\nCOPY conf /b", `line 3: copying "conf": "/b/x" is already in the image`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			context["Dockerfile"] = tt.dockerfile
			dir := context.write(t)
			if tt.name == "a socket" {
				t.Chdir(dir) // a socket's path is limited to 108 bytes
				l, err := net.Listen("unix", "socket")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
			}
			_, err := Build(dir, amd64)
			if err == nil {
				t.Fatal("an image was made")
			}
			got, ok := strings.CutPrefix(err.Error(), fmt.Sprintf("building %q: ", filepath.Join(dir, "Dockerfile")))
			if got = strings.ReplaceAll(got, dir, "DIR"); !ok || !strings.HasPrefix(got, tt.want) {
				t.Errorf("error is\n%s, want\n%s", err, tt.want)
			}
			if strings.Contains(got, "root:") {
				t.Errorf("error shows a file outside the context: %s", got)
			}
		})
	}
	if _, err := Build(t.TempDir(), amd64); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a Dockerfile: %v", err)
	}
	if _, err := Build(files{"Dockerfile": "FROM scratch"}.write(t), v1.Platform{OS: "windows", Architecture: "amd64"}); err == nil {
		t.Error("an image for windows was made")
	}
}

func TestReproducible(t *testing.T) {
	context := files{"Dockerfile": "FROM scratch\nARG A=1 B=2\nLABEL z=$A y=$B x=3\nEXPOSE 2 1 3\nCOPY . /app\nCOPY server /\n"}
	for i := range 50 {
		context[fmt.Sprintf("d%d/f%d", i%7, i)] = fmt.Sprint(i)
	}
	context["server"] = "#!s"
	digest := func(age time.Duration) v1.Hash {
		dir := context.write(t)
		err := filepath.Walk(dir, func(p string, _ os.FileInfo, err error) error {
			return errors.Join(err, os.Chtimes(p, time.Now(), time.Now().Add(-age)))
		})
		if err != nil {
			t.Fatal(err)
		}
		img, err := Build(dir, amd64)
		if err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	first := digest(0)
	if second := digest(1000 * time.Hour); first != second {
		t.Errorf("two builds of the same files: %s and %s", first, second)
	}
	context["server"] = "#!t"
	if third := digest(0); third == first {
		t.Error("the digest is the same after a file has changed")
	}
}

// An image does not depend on its files after the build.
func TestImageOutlivesItsFiles(t *testing.T) {
	dir := files{"Dockerfile": "FROM scratch\nCOPY server /", "server": "s"}.write(t)
	img, err := Build(dir, amd64)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if got := layers(t, img); len(got) != 1 || got[0][0] != "644 0:0 server s" {
		t.Errorf("layers are %q", got)
	}
}

func FuzzBuild(f *testing.F) {
	for _, s := range []string{
		"FROM scratch\nMAINTAINER x\nADD ./server /server\nEXPOSE 9100\nCMD [\"/server\"]\n",
		"# escape=`\n# syntax=docker/dockerfile:1\nARG A=1 B\nFROM scratch AS x\nENV A=${A:-b} C=${B#*x}\nWORKDIR $A\nUSER 1:2\n",
		"FROM scratch\nCOPY --chown=1:2 --chmod=755 [\"conf\", \"/a b/\"]\nVOLUME [\"/x\"]\nSTOPSIGNAL 9\nLABEL a=b c='d e'\nARG A B=2\nENTRYPOINT []\n",
		"FROM scratch\nCOPY <<-E <<\"F\" /\n\tx\n\tE\nF\nRUN --mount=type=cache,target=/x y\nHEALTHCHECK --interval=5s CMD x\nONBUILD COPY <<E /\nE",
		"\xef\xbb\xbfFROM scratch\r\nCOPY */s* ser\\ver /x/\\\n\n# c\n /y\n",
	} {
		f.Add([]byte(s))
	}
	dir := files{"server": "s", "conf/a": "x", "conf/link": "->a"}.write(f)
	f.Fuzz(func(t *testing.T, dockerfile []byte) {
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), dockerfile, 0o644); err != nil {
			t.Fatal(err)
		}
		img, err := Build(dir, amd64)
		if err != nil {
			return
		}
		if _, err := img.Digest(); err != nil {
			t.Error(err)
		}
		for _, name := range slices.Concat(layers(t, img)...) {
			if name := strings.Fields(name)[2]; strings.HasPrefix(name, "/") || strings.Contains("/"+name, "/../") {
				t.Errorf("the image has an entry %q", name)
			}
		}
	})
}

// A static Go service is about 25 MB; random bytes are the worst case for gzip.
func BenchmarkBuild25MB(b *testing.B) {
	exe, err := os.ReadFile(os.Args[0])
	if err != nil {
		b.Fatal(err)
	}
	random := make([]byte, 25<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(random)
	for name, server := range map[string][]byte{"executable": bytes.Repeat(exe, 25<<20/len(exe)+1)[:25<<20], "random": random} {
		b.Run(name, func(b *testing.B) {
			dir := files{"Dockerfile": "FROM scratch\nCOPY server /\nCMD [\"/server\"]", "server": string(server)}.write(b)
			b.SetBytes(25 << 20)
			for b.Loop() {
				if _, err := Build(dir, amd64); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
