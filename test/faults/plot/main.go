// Command plot draws the calls that `make faults` has recorded: the successful and the failed calls per
// second of both clients, with the faults as shaded spans.
//
//	go run . CALLS.csv DIRECTORY
//
// It writes faults-light.svg, faults-dark.svg and their Chinese versions. It has a module of its
// own, so that the services do not require a plotting library.
package main

import (
	"bytes"
	_ "embed"
	"encoding/csv"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// labels has one line for each label: the key, the English and the Chinese text, separated by tabs.
//
//go:embed labels.txt
var labels string

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("reading arguments %q: want CALLS.csv DIRECTORY", args)
	}
	r, err := readRecording(args[0])
	if err != nil {
		return fmt.Errorf("reading %q: %w", args[0], err)
	}
	for language, suffix := range []string{"", "_zh"} {
		translations := map[string]string{}
		for line := range strings.Lines(labels) {
			fields := strings.Split(strings.TrimSpace(line), "\t")
			if len(fields) != 3 {
				return fmt.Errorf("reading labels.txt: the line %q does not have three fields", line)
			}
			translations[fields[0]] = fields[1+language]
		}
		for name, c := range map[string]colors{"light": light, "dark": dark} {
			picture, err := r.draw(c, translations)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(args[1], "faults-"+name+suffix+".svg"), picture, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// recording is the content of calls.csv.
type recording struct {
	end     float64 // seconds
	clients map[string]*client
	faults  []span
}

type client struct{ succeeded, failed plotter.XYs }

type span struct {
	name     string
	from, to float64
}

// The names of the clients in calls.csv.
const (
	plugin = "go-micro"
	pod    = "pod/"
)

func readRecording(file string) (*recording, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	rows, err := csv.NewReader(bytes.NewReader(b)).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(rows) < 3 || strings.Join(rows[0], ",") != "second,fault,client,succeeded,failed,p50_ms,p99_ms" {
		return nil, fmt.Errorf("it is not a recording of make faults")
	}
	r := &recording{clients: map[string]*client{plugin: {}, pod: {}}}
	start := math.NaN()
	for i, row := range rows[1:] {
		second, err1 := strconv.ParseFloat(row[0], 64)
		succeeded, err2 := strconv.ParseFloat(row[3], 64)
		failed, err3 := strconv.ParseFloat(row[4], 64)
		c := r.clients[row[2]]
		if err1 != nil || err2 != nil || err3 != nil || c == nil {
			return nil, fmt.Errorf("line %d is invalid: %q", i+2, row)
		}
		if math.IsNaN(start) {
			start = second
		}
		second -= start
		r.end = max(r.end, second)
		c.succeeded = append(c.succeeded, plotter.XY{X: second, Y: succeeded})
		c.failed = append(c.failed, plotter.XY{X: second, Y: failed})
		if name := row[1]; name != "" {
			if n := len(r.faults); n == 0 || r.faults[n-1].name != name {
				r.faults = append(r.faults, span{name, second - 1, second})
			}
			r.faults[len(r.faults)-1].to = second
		}
	}
	return r, nil
}

// colors are those of GitHub's light and dark themes.
type colors struct{ paper, text, grid, shade, plugin, pod color.NRGBA }

var (
	light = colors{rgb(0xffffff), rgb(0x1f2328), rgb(0xd1d9e0), rgb(0xeff2f5), rgb(0xcf222e), rgb(0x0969da)}
	dark  = colors{rgb(0x0d1117), rgb(0xf0f6fc), rgb(0x3d444d), rgb(0x212830), rgb(0xf85149), rgb(0x4493f8)}
)

func rgb(v uint32) color.NRGBA {
	return color.NRGBA{uint8(v >> 16), uint8(v >> 8), uint8(v), 255}
}

const (
	width       = 720
	textSize    = 20
	lineHeight  = 28
	margin      = 16
	panelHeight = 200
)

// draw returns the picture as SVG.
func (r *recording) draw(c colors, label map[string]string) ([]byte, error) {
	rows := (len(r.faults) + 1) / 2
	legend := vg.Length(lineHeight * (rows + 1))
	height := vg.Length(2*panelHeight+4*lineHeight+2*margin) + legend
	svg := vgsvg.New(width, height)
	all := draw.NewCanvas(svg, width, height)
	all.SetColor(c.paper)
	all.Fill(rectangle(all.Rectangle))

	style := text.Style{Color: c.text, Font: font.From(plot.DefaultFont, textSize), Handler: plot.DefaultTextHandler}
	style.Font.Variant = "Sans"
	write := func(x, y vg.Length, color color.Color, s string) {
		style := style
		style.Color = color
		all.FillText(style, vg.Point{X: x, Y: y}, s)
	}
	top := height - margin - textSize
	write(margin, top, c.plugin, label[plugin])
	write(width/2, top, c.pod, label[pod])

	for i, panel := range []struct {
		title string
		data  func(*client) plotter.XYs
	}{
		{"succeeded", func(c *client) plotter.XYs { return c.succeeded }},
		{"failed", func(c *client) plotter.XYs { return c.failed }},
	} {
		p := plot.New()
		p.BackgroundColor = c.paper
		for _, axis := range []*plot.Axis{&p.X, &p.Y} {
			axis.Color, axis.Tick.Color, axis.Tick.Label.Color = c.grid, c.grid, c.text
			axis.Tick.Label.Font = style.Font
			axis.Tick.Label.Font.Size = textSize - 4
			axis.Tick.Length, axis.Padding = 0, 4
		}
		p.X.Tick.Marker = minutes(label["min"])
		p.Y.Tick.Marker = wholeNumbers{}
		p.X.Min, p.X.Max, p.Y.Min = 0, r.end, 0
		for _, client := range []string{plugin, pod} {
			for _, xy := range panel.data(r.clients[client]) {
				p.Y.Max = max(p.Y.Max, xy.Y)
			}
		}
		p.Y.Max = max(1, p.Y.Max*1.05)
		numbered := style
		numbered.Font.Size = textSize - 4
		p.Add(shading{r.faults, c.shade, numbered, i == 0})
		grid := plotter.NewGrid()
		grid.Horizontal.Color, grid.Vertical.Width = c.grid, 0
		p.Add(grid)
		for _, client := range []string{plugin, pod} {
			line, err := plotter.NewLine(panel.data(r.clients[client]))
			if err != nil {
				return nil, err
			}
			line.Width, line.Color = 1.5, c.plugin
			if client == pod {
				line.Color = c.pod
			}
			p.Add(line)
		}
		bottom := legend + margin + vg.Length(1-i)*(panelHeight+lineHeight)
		title := bottom + panelHeight + 6
		if i == 0 {
			title += lineHeight - 4 // the numbers of the faults are in between
		}
		write(margin, title, c.text, label[panel.title])
		// The widths of the labels of the y-axis differ, the panels must not.
		area := draw.Canvas{Canvas: all.Canvas, Rectangle: vg.Rectangle{Min: vg.Point{X: margin, Y: bottom}, Max: vg.Point{X: width - margin, Y: bottom + panelHeight}}}
		left := p.DataCanvas(area).Min.X
		area.Min.X += 60 - left
		p.Draw(area)
	}
	for i, f := range r.faults {
		x, y := vg.Length(margin), legend-vg.Length(lineHeight*(i%rows+1))
		if i >= rows {
			x = width / 2
		}
		name, ok := label[f.name]
		if !ok {
			return nil, fmt.Errorf("drawing fault %q: labels.txt does not have it", f.name)
		}
		write(x, y, c.text, fmt.Sprintf("%d  %s", i+1, name))
	}
	var b bytes.Buffer
	if _, err := svg.WriteTo(&b); err != nil {
		return nil, err
	}
	return accessible(b.String(), label)
}

// accessible makes the SVG scale with the page, use the fonts of the other pictures, and
// tell a screen reader what it shows.
func accessible(svg string, label map[string]string) ([]byte, error) {
	root := regexp.MustCompile(`(?s)^.*?<svg [^>]*?(viewBox="[^"]*")[^>]*>`)
	if !root.MatchString(svg) {
		return nil, fmt.Errorf("drawing: the library's SVG has no root element: %.200s", svg)
	}
	svg = root.ReplaceAllString(svg, `<svg xmlns="http://www.w3.org/2000/svg" ${1} width="720" role="img" aria-labelledby="title desc">
<title id="title">`+label["title"]+`</title>
<desc id="desc">`+label["desc"]+`</desc>
<style>text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif }</style>`)
	return []byte(regexp.MustCompile(`font-family:[^;"]*;font-variant:[^;"]*;font-weight:[^;"]*;font-style:[^;"]*;?`).ReplaceAllString(svg, "")), nil
}

func rectangle(r vg.Rectangle) vg.Path {
	var p vg.Path
	p.Move(r.Min)
	p.Line(vg.Point{X: r.Max.X, Y: r.Min.Y})
	p.Line(r.Max)
	p.Line(vg.Point{X: r.Min.X, Y: r.Max.Y})
	p.Close()
	return p
}

// shading draws the faults as spans of the whole height, with their numbers above.
type shading struct {
	faults   []span
	color    color.Color
	style    text.Style
	numbered bool
}

func (s shading) Plot(c draw.Canvas, p *plot.Plot) {
	x, _ := p.Transforms(&c)
	free := vg.Length(0) // where the next number has room
	for i, f := range s.faults {
		c.SetColor(s.color)
		c.Fill(rectangle(vg.Rectangle{Min: vg.Point{X: x(f.from), Y: c.Min.Y}, Max: vg.Point{X: max(x(f.to), x(f.from)+2), Y: c.Max.Y}}))
		if s.numbered {
			number := strconv.Itoa(i + 1)
			w := s.style.Width(number)
			at := max(free, (x(f.from)+x(f.to)-w)/2)
			free = at + w + 4
			c.FillText(s.style, vg.Point{X: at, Y: c.Max.Y + 2}, number)
		}
	}
}

// minutes marks the minutes of an axis in seconds, followed by the unit.
type minutes string

func (unit minutes) Ticks(lower, upper float64) (all []plot.Tick) {
	step := 60.0
	if upper > 600 {
		step = 120
	}
	if upper < 120 {
		step = 15
	}
	for at := 0.0; at <= upper; at += step {
		all = append(all, plot.Tick{Value: at, Label: strconv.FormatFloat(at/60, 'f', -1, 64) + string(unit)})
	}
	return all
}

// wholeNumbers marks about four whole numbers.
type wholeNumbers struct{}

func (wholeNumbers) Ticks(lower, upper float64) (all []plot.Tick) {
	step := 1.0
	for _, factor := 0, []float64{2, 2.5, 2}; upper/step > 4.5; {
		step *= factor[int(math.Round(math.Log10(step)*3))%3]
	}
	for at := 0.0; at <= upper; at += step {
		all = append(all, plot.Tick{Value: at, Label: strconv.FormatFloat(at, 'f', -1, 64)})
	}
	return all
}
