package faults

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/jiangjiancc/go_micro_k8s/test/plot"
)

// The clients of a recording: one with go-micro's plugin and selector, one with package pod. Service is a third client of test/orders:
// grpc-go without go-micro, through the Kubernetes Service.
const (
	Plugin  = "go-micro"
	Pod     = "pod/"
	Service = "grpc-go"
)

// Columns are those of a recording, the calls of each second and client as CSV.
var Columns = []string{"second", "fault", "client", "succeeded", "failed", "p50_ms", "p99_ms"}

// recording is the content of calls.csv.
type recording struct {
	end               float64                 // seconds
	succeeded, failed map[string][]plot.Point // by client
	faults            []period
}

// period is when a fault was in effect.
type period struct {
	fault    Fault
	from, to float64
}

func readRecording(b []byte) (r recording, err error) {
	rows, err := csv.NewReader(bytes.NewReader(b)).ReadAll()
	if err != nil {
		return r, err
	}
	if len(rows) < 3 || strings.Join(rows[0], ",") != strings.Join(Columns, ",") {
		return r, errors.New("it is not a recording of make faults")
	}
	r.succeeded, r.failed = map[string][]plot.Point{}, map[string][]plot.Point{}
	start := math.NaN()
	for i, row := range rows[1:] {
		second, err1 := strconv.ParseFloat(row[0], 64)
		succeeded, err2 := strconv.ParseFloat(row[3], 64)
		failed, err3 := strconv.ParseFloat(row[4], 64)
		name, client := row[1], row[2]
		if err := errors.Join(err1, err2, err3); err != nil {
			return r, fmt.Errorf("line %d: %w", i+2, err)
		}
		if client != Plugin && client != Pod {
			return r, fmt.Errorf("line %d: client %q is unknown", i+2, client)
		}
		if math.IsNaN(start) {
			start = second
		}
		second -= start
		r.end = max(r.end, second)
		r.succeeded[client] = append(r.succeeded[client], plot.Point{X: second, Y: succeeded})
		r.failed[client] = append(r.failed[client], plot.Point{X: second, Y: failed})
		if name == "" {
			continue
		}
		if n := len(r.faults); n == 0 || r.faults[n-1].fault.Name != name {
			f, err := Find(name)
			if err != nil {
				return r, fmt.Errorf("line %d: %w", i+2, err)
			}
			r.faults = append(r.faults, period{f, second - 1, second})
		}
		r.faults[len(r.faults)-1].to = second
	}
	if r.end == 0 {
		return r, errors.New("it contains only one second")
	}
	return r, nil
}

// Draw returns the picture of a recording: the successful and the failed calls per second of both clients, with
// the faults as shaded and numbered spans. Root is the checkout.
func Draw(root string, csv []byte) ([]byte, error) {
	r, err := readRecording(csv)
	if err != nil {
		return nil, fmt.Errorf("reading the recorded calls: %w", err)
	}
	lines := []struct{ client, class, text string }{{Plugin, "plugin", "go-micro's plugin"}, {Pod, "ours", "with pod/"}}
	var p plot.Picture
	for i, l := range lines {
		p.Legend(l.class, float64(30+350*i), 46, l.text)
	}
	const lineHeight, panelHeight = 40, 200
	bottom := 150.0 + panelHeight
	for i, panel := range []struct {
		title string
		calls map[string][]plot.Point
	}{{"Successful calls per second", r.succeeded}, {"Failed calls per second", r.failed}} {
		area := plot.Area{Left: 80, Right: 696, Top: bottom - panelHeight, Bottom: bottom, MaxX: r.end, MaxY: 1}
		for _, points := range panel.calls {
			for _, at := range points {
				area.MaxY = max(area.MaxY, 1.05*at.Y)
			}
		}
		title := area.Top - 18
		if i == 0 {
			title -= lineHeight - 6 // the numbers of the faults are in between
		}
		p.Text("", 30, title, panel.title)
		free := 0.0 // where the next number has room
		for n, f := range r.faults {
			from, to := area.X(f.from), max(area.X(f.to), area.X(f.from)+2)
			p.Path("span", fmt.Sprintf("M%.1f %.0f V%.0f H%.1f V%.0fz", from, area.Top, area.Bottom, to, area.Top))
			if i == 0 {
				const digit = 17 // width
				text := strconv.Itoa(n + 1)
				width := float64(digit * len(text))
				at := min(max(free, (from+to-width)/2), area.Right-width)
				free = at + width + 3
				p.Text("c", at+width/2, area.Top-8, text)
			}
		}
		for step, y := gap(area.MaxY), 0.0; y <= area.MaxY; y += step {
			area.Horizontal(&p, y, strconv.FormatFloat(y, 'f', -1, 64))
		}
		for step, x := minutes(r.end), 0.0; x <= r.end; x += step {
			area.Below(&p, x, strconv.FormatFloat(x/60, 'f', -1, 64)+" min")
		}
		for _, l := range lines {
			area.Curve(&p, l.class, panel.calls[l.client])
		}
		bottom += panelHeight + 110
	}
	top := bottom - panelHeight - 24
	rows := (len(r.faults) + 1) / 2
	for i, f := range r.faults {
		x, y := 20.0, top+float64(lineHeight*(i%rows))
		if i >= rows {
			x = plot.Width/2 + 20
		}
		p.Text("e", x+30, y, strconv.Itoa(i+1))
		p.Text("", x+42, y, f.fault.Label)
	}
	return p.SVG(root, "Calls while parts of the cluster break",
		"Successful and failed calls per second of two clients over time, while faults happen one after the other. The numbers are in the table of docs/guarantees.md.", int(top)+lineHeight*rows)
}

// gap returns the distance of about four labels of an axis with whole numbers.
func gap(highest float64) float64 {
	step := 1.0
	for _, factor := 0, []float64{2, 2.5, 2}; highest/step > 4.5; {
		step *= factor[int(math.Round(math.Log10(step)*3))%3]
	}
	return step
}

// minutes returns the distance in seconds of the labels of an axis of time.
func minutes(end float64) float64 {
	for _, step := range []float64{30, 60, 120, 240} {
		if end/step < 6 {
			return step
		}
	}
	return math.Ceil(end/360) * 60
}
