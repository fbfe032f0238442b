package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

var amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}

// files is a build context that maps names to contents. Content that starts with -> makes a
// symlink, and with #! an executable file.
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
		{"lower case, comments, continuation, CRLF", "# build\r\nfrom scratch\r\n\r\n # why\r\nentrypoint [\"/a\", \\ \r\n\r\n# in between\r\n  \"-$b\"]\r\ncmd\t[] \\",
			v1.Config{Entrypoint: []string{"/a", "-$b"}, Cmd: []string{}, ArgsEscaped: true}},
		{"ports", "FROM scratch\nEXPOSE 80 81/udp\nEXPOSE 090/sctp",
			v1.Config{ExposedPorts: ports{"80/tcp": {}, "81/udp": {}, "90/sctp": {}}}},
		{"labels", "FROM scratch\nLABEL a=1 b.c/d=\"x\ty's # z\" \\\n  e=\"\"\nLABEL a=2 f=",
			v1.Config{Labels: map[string]string{"a": "2", "b.c/d": "x\ty's # z", "e": "", "f": ""}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			img, err := Build(files{"Dockerfile": tt.dockerfile}.write(t), amd64)
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Env, tt.want.WorkingDir = []string{path}, "/"
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

func TestHistory(t *testing.T) {
	img, err := Build(files{"Dockerfile": "FROM scratch\n\nLABEL a=b \\\n  c=\"d\"\nCOPY ./server /server\nUSER 1", "server": "s"}.write(t), amd64)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range config(t, img).History {
		got = append(got, fmt.Sprint(h.CreatedBy, " ", h.EmptyLayer))
	}
	if want := []string{`LABEL a=b   c="d" true`, "COPY ./server /server false", "USER 1 true"}; !slices.Equal(got, want) {
		t.Errorf("history %q, want %q", got, want)
	}
}

func TestCopy(t *testing.T) {
	context := files{"server": "#!s", "a.txt": "a", "b.txt": "b", "conf/sub/deep": "d", "dirlink": "->conf"}
	for _, tt := range []struct {
		name, lines string
		want        [][]string // one list for each layer
	}{
		{"file to a name", "COPY server /server", [][]string{{"755 0:0 server #!s"}}},
		{"file to a directory", "COPY ./server /bin/", [][]string{{"755 0:0 bin/", "755 0:0 bin/server #!s"}}},
		{"file to the root", "COPY a.txt /", [][]string{{"644 0:0 a.txt a"}}},
		{"parents are made once", "COPY a.txt /x/y/a\nCOPY b.txt /x/y/b",
			[][]string{{"755 0:0 x/", "755 0:0 x/y/", "644 0:0 x/y/a a"}, {"644 0:0 x/y/b b"}}},
		{"relative names", "COPY a.txt .\nCOPY /a.txt sub/c\nCOPY conf/../a.txt ../d",
			[][]string{{"644 0:0 a.txt a"}, {"755 0:0 sub/", "644 0:0 sub/c a"}, {"644 0:0 d a"}}},
		{"a name that is a directory already", "COPY a.txt /w/\nCOPY b.txt /w", [][]string{{"755 0:0 w/", "644 0:0 w/a.txt a"}, {"644 0:0 w/b.txt b"}}},
		{"a later file replaces an earlier one", "COPY a.txt /z\nCOPY b.txt /z", [][]string{{"644 0:0 z a"}, {"644 0:0 z b"}}},
		{"a file below, through a symlink in the context", "COPY dirlink/sub/deep /m", [][]string{{"644 0:0 m d"}}},
		{"mode", "COPY --chmod=0750 a.txt /o/\nCOPY --chmod=4711 a.txt /p", [][]string{{"750 0:0 o/", "750 0:0 o/a.txt a"}, {"4711 0:0 p a"}}},
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

// Each platform gets its own configuration.
func TestPlatforms(t *testing.T) {
	dir := files{"Dockerfile": "FROM scratch"}.write(t)
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "arm64", Variant: "v8"}, amd64} {
		img, err := Build(dir, p)
		if err != nil {
			t.Fatal(err)
		}
		if c := config(t, img); c.Architecture != p.Architecture || c.Variant != p.Variant {
			t.Errorf("%s says %s %s", p, c.Architecture, c.Variant)
		}
	}
}

func TestRefused(t *testing.T) {
	context := files{"server": "#!s", "a": "a", "conf/x": "x", "link": "->a", "out": "->../../etc/passwd", "outdir": "->/etc"}
	for _, tt := range []struct {
		name, dockerfile, want string // want follows `building "DIR/Dockerfile": `
	}{
		{"empty", "", "no FROM: start with FROM scratch"},
		{"comments only", "# a\n# b\n", "no FROM: start with FROM scratch"},
		{"before FROM", "# c\nCOPY server /", "line 2: COPY before FROM: start with FROM scratch"},
		{"another base", "# c\nFROM alpine", "line 2: FROM alpine is not supported, because this builder downloads no base image: make a static binary and start FROM scratch, or use docker build"},
		{"a platform of the base", "FROM --platform=linux/arm64 scratch", "line 1: FROM --platform=linux/arm64 scratch is not supported"},
		{"a stage", "FROM scratch AS a", "line 1: FROM scratch AS a is not supported"},
		{"a second stage", "FROM scratch\nFROM scratch\nCOPY --from=a /x /", "line 2: a second FROM needs a build in stages"},
		{"RUN", "FROM scratch\n\nRUN echo", "line 3: RUN needs a running container, which this builder does not have: make the file before the build and COPY it, or use docker build"},
		{"RUN with a heredoc", "FROM scratch\nRUN <<E\necho\nE", "line 2: RUN needs a running container"},
		{"ADD", "FROM scratch\nADD a /", "line 2: ADD is not supported: COPY the file, or use docker build"},
		{"ENV", "FROM scratch\nLABEL a=b \\\n  c=d\nENV A=b", "line 4: ENV is not supported: set the variable in the pod's manifest, or use docker build"},
		{"HEALTHCHECK", "FROM scratch\nHEALTHCHECK NONE", "line 2: HEALTHCHECK is ignored by Kubernetes"},
		{"ARG", "FROM scratch\nARG A", "line 2: ARG is not supported: this builder knows FROM scratch, LABEL, COPY, EXPOSE, USER, CMD and ENTRYPOINT; leave it out, or use docker build"},
		{"WORKDIR", "FROM scratch\nWORKDIR /", "line 2: WORKDIR is not supported: this builder knows FROM scratch, LABEL, COPY, EXPOSE, USER, CMD and ENTRYPOINT; leave it out, or use docker build"},
		{"VOLUME", "FROM scratch\nVOLUME /x", "line 2: VOLUME is not supported: this builder knows FROM scratch, LABEL, COPY, EXPOSE, USER, CMD and ENTRYPOINT; leave it out, or use docker build"},
		{"STOPSIGNAL", "FROM scratch\nSTOPSIGNAL 9", "line 2: STOPSIGNAL is not supported: this builder knows FROM scratch, LABEL, COPY, EXPOSE, USER, CMD and ENTRYPOINT; leave it out, or use docker build"},
		{"MAINTAINER", "FROM scratch\nMAINTAINER x", "line 2: MAINTAINER is not supported: this builder knows FROM scratch, LABEL, COPY, EXPOSE, USER, CMD and ENTRYPOINT; leave it out, or use docker build"},
		{"ONBUILD", "FROM scratch\nONBUILD COPY a /", "line 2: ONBUILD is not supported: this builder knows FROM scratch, LABEL, COPY, EXPOSE, USER, CMD and ENTRYPOINT; leave it out, or use docker build"},
		{"SHELL", "FROM scratch\nSHELL [\"sh\"]", "line 2: SHELL is not supported: this builder knows FROM scratch, LABEL, COPY, EXPOSE, USER, CMD and ENTRYPOINT; leave it out, or use docker build"},
		{"copyy", "FROM scratch\ncopyy a /", "line 2: COPYY is not supported: this builder knows FROM scratch, LABEL, COPY, EXPOSE, USER, CMD and ENTRYPOINT; leave it out, or use docker build"},
		{"another language", "# syntax=example.com/frontend:1\nFROM scratch", `line 1: "# syntax=example.com/frontend:1" changes the language of the file, which is not supported: leave the line out, or use docker build`},
		{"another escape character", "# escape=`\nFROM scratch", "line 1: \"# escape=`\" changes the language"},
		{"CMD with shell form", "FROM scratch\nCMD /server", `line 2: CMD in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, CMD ["/server"]`},
		{"CMD with single quotes", "FROM scratch\nCMD ['/server']", `line 2: CMD in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, CMD ["/server"]`},
		{"CMD with a number", "FROM scratch\nCMD [\"/server\", 1]", `line 2: CMD in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, CMD ["/server"]`},
		{"CMD with null", "FROM scratch\nCMD [null]", `line 2: CMD in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, CMD ["/server"]`},
		{"CMD with text after the array", "FROM scratch\nCMD [\"/server\"] x", `line 2: CMD in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, CMD ["/server"]`},
		{"CMD with nothing", "FROM scratch\nCMD ", `line 2: CMD in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, CMD ["/server"]`},
		{"ENTRYPOINT with shell form", "FROM scratch\nENTRYPOINT /server", `line 2: ENTRYPOINT in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, ENTRYPOINT ["/server"]`},
		{"ENTRYPOINT with single quotes", "FROM scratch\nENTRYPOINT ['/server']", `line 2: ENTRYPOINT in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, ENTRYPOINT ["/server"]`},
		{"ENTRYPOINT with a number", "FROM scratch\nENTRYPOINT [\"/server\", 1]", `line 2: ENTRYPOINT in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, ENTRYPOINT ["/server"]`},
		{"ENTRYPOINT with null", "FROM scratch\nENTRYPOINT [null]", `line 2: ENTRYPOINT in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, ENTRYPOINT ["/server"]`},
		{"ENTRYPOINT with text after the array", "FROM scratch\nENTRYPOINT [\"/server\"] x", `line 2: ENTRYPOINT in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, ENTRYPOINT ["/server"]`},
		{"ENTRYPOINT with nothing", "FROM scratch\nENTRYPOINT ", `line 2: ENTRYPOINT in shell form needs /bin/sh, which a scratch image does not contain: write a JSON array, ENTRYPOINT ["/server"]`},
		{"EXPOSE a word", "FROM scratch\nEXPOSE http", `line 2: EXPOSE "http" is not a port: write 9100 or 9100/udp`},
		{"EXPOSE beyond", "FROM scratch\nEXPOSE 65536", `line 2: EXPOSE "65536" is not a port`},
		{"EXPOSE a host's port", "FROM scratch\nEXPOSE 80:80", `line 2: EXPOSE "80:80" is not a port`},
		{"EXPOSE a range", "FROM scratch\nEXPOSE 80-90", `line 2: EXPOSE "80-90" is not a port`},
		{"EXPOSE another protocol", "FROM scratch\nEXPOSE 9/http", `line 2: EXPOSE "9/http" is not a port`},
		{"EXPOSE no protocol", "FROM scratch\nEXPOSE 9/", `line 2: EXPOSE "9/" is not a port`},
		{"EXPOSE a variable", "FROM scratch\nEXPOSE $P", "line 2: EXPOSE $P: the character $ is not supported: write plain words without variables, quotes and escapes, or use docker build"},
		{"USER a variable", "FROM scratch\nUSER ${U:-1}", "line 2: USER ${U:-1}: the character $ is not supported"},
		{"USER two words", "FROM scratch\nUSER a b", `line 2: USER "a b" is not one word: write uid:gid`},
		{"USER nothing", "FROM scratch\nUSER", `line 2: USER "" is not one word`},
		{"LABEL with a variable", "FROM scratch\nLABEL x=y\nLABEL a=\"$B\"", `line 3: LABEL a="$B" is not supported: write key="value" without variables and escapes, or use docker build`},
		{"LABEL with single quotes", "FROM scratch\nLABEL x=y\nLABEL a='b'", `line 3: LABEL a='b' is not supported: write key="value" without variables and escapes, or use docker build`},
		{"LABEL with an escape", "FROM scratch\nLABEL x=y\nLABEL a=b\\ c", `line 3: LABEL a=b\ c is not supported: write key="value" without variables and escapes, or use docker build`},
		{"LABEL with an escaped quote", "FROM scratch\nLABEL x=y\nLABEL a=\"b\\\"c\"", `line 3: LABEL a="b\"c" is not supported: write key="value" without variables and escapes, or use docker build`},
		{"LABEL with half quotes", "FROM scratch\nLABEL x=y\nLABEL a=\"b", `line 3: LABEL a="b is not supported: write key="value" without variables and escapes, or use docker build`},
		{"LABEL with text after a quote", "FROM scratch\nLABEL x=y\nLABEL a=\"b\"c", `line 3: LABEL a="b"c is not supported: write key="value" without variables and escapes, or use docker build`},
		{"LABEL with a space", "FROM scratch\nLABEL x=y\nLABEL a b", `line 3: LABEL a b is not supported: write key="value" without variables and escapes, or use docker build`},
		{"LABEL with nothing", "FROM scratch\nLABEL x=y\nLABEL ", `line 3: LABEL  is not supported: write key="value" without variables and escapes, or use docker build`},
		{"LABEL with a wrong second pair", "FROM scratch\nLABEL a=b c", "line 2: LABEL c is not supported"},
		{"COPY a variable", "FROM scratch\nCOPY $B /", "line 2: COPY $B /: the character $ is not supported"},
		{"COPY in JSON form", "FROM scratch\nCOPY [\"a\", \"/a\"]", `line 2: COPY ["a", "/a"]: the character " is not supported`},
		{"COPY an escape", "FROM scratch\nCOPY a\\ b /", "line 2: COPY a\\ b /: the character \\ is not supported"},
		{"COPY without destination", "FROM scratch\nCOPY a", "line 2: COPY takes one file and its destination here: write one COPY for each file, or use docker build"},
		{"COPY two files", "FROM scratch\nCOPY a server /x/", "line 2: COPY takes one file and its destination here"},
		{"COPY --from=x", "FROM scratch\nCOPY --chmod=755 --from=x a /", "line 2: COPY --from is not supported: leave it out, or use docker build"},
		{"COPY --link", "FROM scratch\nCOPY --chmod=755 --link a /", "line 2: COPY --link is not supported: leave it out, or use docker build"},
		{"COPY --parents", "FROM scratch\nCOPY --chmod=755 --parents a /", "line 2: COPY --parents is not supported: leave it out, or use docker build"},
		{"COPY --chown=1", "FROM scratch\nCOPY --chmod=755 --chown=1 a /", "line 2: COPY --chown is not supported: leave it out, or use docker build"},
		{"COPY --exclude=a", "FROM scratch\nCOPY --chmod=755 --exclude=a a /", "line 2: COPY --exclude is not supported: leave it out, or use docker build"},
		{"COPY of a heredoc", "FROM scratch\nCOPY <<E /a\nx\nE", `line 2: copying "<<E": wildcards, JSON arrays and heredocs are not supported`},
		{"COPY with a symbolic mode", "FROM scratch\nCOPY --chmod=u+x a /", "line 2: COPY --chmod=u+x is not an octal mode: write --chmod=755 or --chmod=0644"},
		{"COPY with a mode beyond", "FROM scratch\nCOPY --chmod=10000 a /", "line 2: COPY --chmod=10000 is not an octal mode"},
		{"a missing file", "FROM scratch\nCOPY client /", "line 2: copying \"client\": no such file in \"DIR\": `make build` makes what a service's image needs"},
		{"a wildcard a*", "FROM scratch\nCOPY a* /", `line 2: copying "a*": wildcards, JSON arrays and heredocs are not supported: name a file, or use docker build`},
		{"a wildcard ?", "FROM scratch\nCOPY ? /", `line 2: copying "?": wildcards, JSON arrays and heredocs are not supported: name a file, or use docker build`},
		{"a wildcard [a]", "FROM scratch\nCOPY [a] /", `line 2: copying "[a]": wildcards, JSON arrays and heredocs are not supported: name a file, or use docker build`},
		{"a directory", "FROM scratch\nCOPY conf /", `line 2: copying "conf": it is not a regular file, and directories and symlinks are not supported: name each file, or use docker build`},
		{"the context", "FROM scratch\nCOPY . /", `line 2: copying ".": it is not a regular file`},
		{"a symlink", "FROM scratch\nCOPY link /", `line 2: copying "link": it is not a regular file`},
		{"a symlink out", "FROM scratch\nCOPY out /", `line 2: copying "out": it is not a regular file`},
		{"outside", "FROM scratch\nCOPY conf/../../x /", `line 2: copying "conf/../../x": it is outside the context "DIR": move it inside`},
		{"through a symlink out", "FROM scratch\nCOPY outdir/passwd /", `line 2: copying "outdir/passwd": `},
		{"a URL", "FROM scratch\nCOPY https://example.com/x /", `line 2: copying "https://example.com/x": no such file`},
		{"a file below a file", "FROM scratch\nCOPY a /x\nCOPY a /x/y", `line 3: copying "a": "/x" is already in the image, and only one of the two is a directory: choose another destination`},
		{"a file over a directory", "FROM scratch\nCOPY a /b/x/y\nCOPY conf/x /b", `line 3: copying "conf/x": "/b/x" is already in the image`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			context["Dockerfile"] = tt.dockerfile
			dir := context.write(t)
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
	context := files{"Dockerfile": "FROM scratch\nLABEL z=1 y=2 x=3\nEXPOSE 2 1 3\nCOPY server /app/\nCOPY conf/a /app/conf/\n", "server": "#!s", "conf/a": "a"}
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
		"FROM scratch\nCOPY ./server /server\nEXPOSE 9100\nCMD [\"/server\"]\n",
		"# escape=`\n# syntax=docker/dockerfile:1\nFROM scratch AS x\nENV A=${A:-b}\nUSER 1:2\n",
		"FROM scratch\nCOPY --chmod=755 conf/a ../x/\nLABEL a=b c=\"d e\" \\\n f=\nENTRYPOINT []\n",
		"FROM scratch\nCOPY <<-E <<\"F\" /\n\tx\n\tE\nF\nCOPY conf/link /x\n",
		"\xef\xbb\xbfFROM scratch\r\nCOPY server /x/\\\n\n# c\n /y\n",
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
