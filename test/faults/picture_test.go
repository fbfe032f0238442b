package faults

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

const root = "../.."

// The picture contains every fault, the numbers of the axes and both lines.
func TestDraw(t *testing.T) {
	recording := strings.Join(Columns, ",") + "\n"
	for _, f := range All {
		recording += "10.5,,go-micro,300,0,1,5\n11.0,,pod/,310,0,1,5\n12.5," + f.Name + ",go-micro,0,17,0,0\n13.0," + f.Name + ",pod/,305,0,1,5\n"
	}
	b, err := Draw(root, []byte(recording))
	if err != nil {
		t.Fatal(err)
	}
	picture := string(b)
	for d := xml.NewDecoder(strings.NewReader(picture)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	wanted := []string{">300<", ">15<", ">11<", `<path class="plugin" d="M80.0 `, `<path class="ours" d="M`, `viewBox="0 0 720 `}
	for _, f := range All {
		wanted = append(wanted, ">"+f.Label+"<")
		if len(f.Label) == 0 || len(f.Label) > 22 {
			t.Errorf("the label %q of fault %q has %d characters, want 1 to 22", f.Label, f.Name, len(f.Label))
		}
	}
	for _, want := range wanted {
		if !strings.Contains(picture, want) {
			t.Errorf("the picture does not contain %q", want)
		}
	}
	if spans := strings.Count(picture, `class="span"`); spans != 2*len(All) {
		t.Errorf("the picture has %d shaded spans, want %d in each of two panels", spans, len(All))
	}
}

func TestDrawRefusesOtherFiles(t *testing.T) {
	header := strings.Join(Columns, ",") + "\n"
	for _, content := range []string{
		"",
		"a,b\n1,2\n3,4\n",
		header + "1,,else,1,1,1,1\n2,,pod/,1,1,1,1\n",
		header + "1,unknown,pod/,1,1,1,1\n2,,pod/,1,1,1,1\n",
		header + "1,,pod/,many,1,1,1\n2,,pod/,1,1,1,1\n",
		header + "1,,go-micro,1,1,1,1\n1,,pod/,1,1,1,1\n",
	} {
		if _, err := Draw(root, []byte(content)); err == nil {
			t.Errorf("%q is drawn", content)
		}
	}
}
