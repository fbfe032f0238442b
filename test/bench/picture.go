//go:build linux

package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/bench/load"
)

// curves are the libraries in the picture and their lines in the style of media/.
var curves = []struct{ library, class string }{{goMicro, "gone"}, {goZero, "watch"}, {kratos, "write"}, {podClient, "call"}}

// drawLatency draws the percentiles of the slow-server test to media/latency.svg. `go test
// ./test/docs -update` writes the Chinese copy. A plotting library is not used because all
// pictures share one style sheet, with colours for light and dark mode.
func drawLatency(libraries []string, results []load.Result) error {
	model, err := os.ReadFile("media/overview.svg")
	if err != nil {
		return err
	}
	style := regexp.MustCompile(`(?s)<style>.*</defs>`).Find(model)
	if style == nil {
		return errors.New("drawing media/latency.svg: media/overview.svg has no style")
	}
	const left, right, top, bottom = 90, 690, 150, 560
	const slowest = 2400 * time.Millisecond
	x := func(quantile float64) float64 { // each nine has the same width
		return left + (right-left)*math.Log10(1/(1-quantile))/4
	}
	y := func(d time.Duration) float64 {
		return bottom - (bottom-top)*float64(min(d, slowest))/float64(slowest)
	}
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 680" width="480" height="453" role="img" aria-labelledby="title desc">
<title id="title">Latency with one slow instance</title>
<desc id="desc">Percentiles of the latency of all calls in the slow-server test: one of 11 instances answers after 2 s during half of the time. A choice is good if its line stays low far to the right.</desc>
%s
<rect class="paper" x="1" y="1" width="718" height="678" rx="16"/>
`, style)
	for i, c := range curves { // the legend, two in a row
		lx, ly := 40+300*(i%2), 50+44*(i/2)
		fmt.Fprintf(&s, "<path class=%q d=\"M%d %d h70\"/>\n<text x=\"%d\" y=\"%d\">%s</text>\n", c.class, lx, ly, lx+88, ly+9, c.library)
	}
	for _, seconds := range []int{0, 1, 2} {
		at := y(time.Duration(seconds) * time.Second)
		fmt.Fprintf(&s, "<path class=\"rule\" d=\"M%d %.0f H%d\"/>\n<text class=\"e soft\" x=\"%d\" y=\"%.0f\">%d s</text>\n", left, at, right, left-14, at+9, seconds)
	}
	for _, q := range []struct {
		quantile float64
		text     string
	}{{0, "0"}, {0.9, "90 %"}, {0.99, "99 %"}, {0.999, "99.9 %"}} {
		fmt.Fprintf(&s, "<path class=\"rule\" d=\"M%.0f %d V%d\"/>\n<text class=\"c soft\" x=\"%.0f\" y=\"%d\">%s</text>\n", x(q.quantile), top, bottom, x(q.quantile), bottom+38, q.text)
	}
	fmt.Fprintf(&s, "<text class=\"c soft\" x=\"%d\" y=\"%d\">share of the calls that are faster</text>\n", (left+right)/2, bottom+86)
	for _, c := range curves {
		r := results[slices.Index(libraries, c.library)]
		var points []string
		for i, q := range load.Quantiles {
			points = append(points, fmt.Sprintf("%.1f %.1f", x(q), y(r.Percentiles[i])))
		}
		fmt.Fprintf(&s, "<path class=%q d=\"M%s\"/>\n", c.class, strings.Join(points, " L"))
	}
	s.WriteString("</svg>\n")
	return os.WriteFile("media/latency.svg", []byte(s.String()), 0o644)
}
