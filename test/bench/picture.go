//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"

	"github.com/jiangjiancc/go_micro_k8s/test/bench/load"
	"github.com/jiangjiancc/go_micro_k8s/test/plot"
)

// curves are the libraries in the picture and their lines in the style sheet of media/.
var curves = []struct{ library, class string }{{goMicro, "gone"}, {goZero, "watch"}, {kratos, "write"}, {podClient, "call"}}

// drawLatency returns the picture of the percentiles of the slow-server test.
func drawLatency(root string, libraries []string, results []load.Result) ([]byte, error) {
	var p plot.Picture
	for i, c := range curves { // two in a row
		p.Legend(c.class, float64(40+300*(i%2)), float64(50+44*(i/2)), c.library)
	}
	const slowest = 2.4                                                      // seconds
	x := func(quantile float64) float64 { return -math.Log10(1 - quantile) } // each nine has the same width
	area := plot.Area{Left: 90, Right: 690, Top: 150, Bottom: 560, MaxX: 4, MaxY: slowest}
	for seconds := range 3 {
		area.Horizontal(&p, float64(seconds), fmt.Sprint(seconds, " s"))
	}
	for _, q := range []struct {
		quantile float64
		text     string
	}{{0, "0"}, {0.9, "90 %"}, {0.99, "99 %"}, {0.999, "99.9 %"}} {
		area.Vertical(&p, x(q.quantile), q.text)
	}
	p.Text("c soft", (area.Left+area.Right)/2, area.Bottom+86, "share of the calls that are faster")
	for _, c := range curves {
		r := results[slices.Index(libraries, c.library)]
		var points []plot.Point
		for i, q := range load.Quantiles {
			points = append(points, plot.Point{X: x(q), Y: r.Percentiles[i].Seconds()})
		}
		area.Curve(&p, c.class, points)
	}
	return p.SVG(root, "Latency with one slow instance",
		"Percentiles of the latency of all calls in the slow-server test: one of 11 instances answers after 2 s during half of the time. A choice is good if its line stays low far to the right.", 680)
}
