// Package plot draws measurements as SVG in the style of the hand-written pictures in media/. All
// of them share one style sheet, which has colours for light and dark mode, so one file serves
// both, and `go test ./test/docs -update` writes the Chinese copy with the texts of media/zh.txt.
//
// A Picture is 720 units wide, and y grows downwards. An Area maps values to a part of it.
package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Width is that of every picture.
const Width = 720

// Picture is an SVG file. A class is one of the style sheet.
type Picture struct{ elements strings.Builder }

// Text writes text at a point, which class "c" makes its middle and class "e" its end.
func (p *Picture) Text(class string, x, y float64, text string) {
	attribute := ""
	if class != "" {
		attribute = fmt.Sprintf("class=%q ", class)
	}
	fmt.Fprintf(&p.elements, "<text %sx=\"%.0f\" y=\"%.0f\">%s</text>\n", attribute, x, y, escape(text))
}

// Path draws a path in the syntax of SVG.
func (p *Picture) Path(class, path string) {
	fmt.Fprintf(&p.elements, "<path class=%q d=%q/>\n", class, path)
}

// Legend explains the lines of a class.
func (p *Picture) Legend(class string, x, y float64, text string) {
	p.Path(class, fmt.Sprintf("M%.0f %.0f h70", x, y))
	p.Text("", x+88, y+9, text)
}

// SVG returns the file. The title and the description are for screen readers; root is the
// checkout, whose media/overview.svg has the style sheet.
func (p *Picture) SVG(root, title, description string, height int) ([]byte, error) {
	model, err := os.ReadFile(filepath.Join(root, "media", "overview.svg"))
	if err != nil {
		return nil, fmt.Errorf("reading the style sheet: %w", err)
	}
	style := regexp.MustCompile(`(?s)<style>.*</defs>`).Find(model)
	if style == nil {
		return nil, errors.New("reading the style sheet: media/overview.svg has none")
	}
	const shown = 480 // width on the page
	return fmt.Appendf(nil, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-labelledby="title desc">
<title id="title">%s</title>
<desc id="desc">%s</desc>
%s
<rect class="paper" x="1" y="1" width="%d" height="%d" rx="16"/>
%s</svg>
`, Width, height, shown, height*shown/Width, escape(title), escape(description), style, Width-2, height-2, &p.elements), nil
}

func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a write to a buffer returns no error
	return strings.ReplaceAll(b.String(), "&#39;", "'")
}

// Area is a rectangle of a picture in which values from 0 to MaxX and from 0 to MaxY are drawn.
type Area struct {
	Left, Right, Top, Bottom float64
	MaxX, MaxY               float64
}

// X returns where a value is in the picture.
func (a Area) X(value float64) float64 { return a.Left + (a.Right-a.Left)*value/a.MaxX }

// Y returns where a value is in the picture. A value above MaxY is drawn at MaxY.
func (a Area) Y(value float64) float64 {
	return a.Bottom - (a.Bottom-a.Top)*min(value, a.MaxY)/a.MaxY
}

// Horizontal draws a labelled line at a value of y.
func (a Area) Horizontal(p *Picture, y float64, label string) {
	p.Path("rule", fmt.Sprintf("M%.0f %.0f H%.0f", a.Left, a.Y(y), a.Right))
	p.Text("e soft", a.Left-14, a.Y(y)+9, label)
}

// Vertical draws a labelled line at a value of x.
func (a Area) Vertical(p *Picture, x float64, label string) {
	p.Path("rule", fmt.Sprintf("M%.0f %.0f V%.0f", a.X(x), a.Top, a.Bottom))
	a.Below(p, x, label)
}

// Below writes the label of a value of x.
func (a Area) Below(p *Picture, x float64, label string) {
	p.Text("c soft", a.X(x), a.Bottom+38, label)
}

// Curve draws a line through the points.
func (a Area) Curve(p *Picture, class string, points []Point) {
	var path []string
	for _, at := range points {
		path = append(path, fmt.Sprintf("%.1f %.1f", a.X(at.X), a.Y(at.Y)))
	}
	p.Path(class, "M"+strings.Join(path, " L"))
}

// Point is a value of x and one of y.
type Point struct{ X, Y float64 }
