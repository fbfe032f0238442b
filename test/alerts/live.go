package alerts

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// Fired is an alert that has fired on samples.
type Fired struct {
	Alert       string
	From, Until time.Time // Until is zero if it fires at the end
	Summary     string
}

// Replay evaluates the rules of a component, whose durations are divided by divisor, on samples. Each line of them is
//
//	sample MILLISECONDS VALUE SERIES
//
// as test/e2e/probe prints them: all series of a pod have the same time in one scrape, since the beginning of 1970. A
// series that the next scrape of the pod lacks has ended then.
func Replay(ctx context.Context, component string, divisor int, samples io.Reader) (fired []Fired, err error) {
	groups, err := rulesOf(component)
	if err != nil {
		return nil, err
	}
	if err := faster(groups, divisor); err != nil {
		return nil, err
	}
	r, begin, err := readSamples(samples)
	if err != nil {
		return nil, err
	}
	all, err := r.evaluate(ctx, groups)
	if err != nil {
		return nil, err
	}
	for _, f := range all {
		one := Fired{Alert: f.alert, From: begin.Add(f.from), Summary: f.annotations["summary"]}
		if f.until >= 0 {
			one.Until = begin.Add(f.until)
		}
		fired = append(fired, one)
	}
	slices.SortFunc(fired, func(a, b Fired) int { return a.From.Compare(b.From) })
	return fired, nil
}

// line is one sample.
type line struct {
	at     int64
	value  float64
	labels labels.Labels
}

func readSamples(in io.Reader) (r *recording, begin time.Time, err error) {
	r = &recording{labels: map[uint64]labels.Labels{}, samples: map[uint64][]chunks.Sample{}}
	var all []line
	for lines := bufio.NewScanner(in); lines.Scan(); {
		fields := strings.SplitN(lines.Text(), " ", 4)
		if len(fields) != 4 || fields[0] != "sample" {
			return nil, begin, fmt.Errorf("reading the sample %q: want sample MILLISECONDS VALUE SERIES", lines.Text())
		}
		at, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return nil, begin, fmt.Errorf("reading the sample %q: %w", lines.Text(), err)
		}
		v, err := strconv.ParseFloat(fields[2], 64)
		if err != nil {
			return nil, begin, fmt.Errorf("reading the sample %q: %w", lines.Text(), err)
		}
		l, err := promQL.ParseMetric(fields[3])
		if err != nil {
			return nil, begin, fmt.Errorf("reading the sample %q: %w", lines.Text(), err)
		}
		all = append(all, line{at, v, l})
	}
	if len(all) == 0 {
		return nil, begin, fmt.Errorf("reading the samples: there are none")
	}
	slices.SortStableFunc(all, func(a, b line) int { return int(a.at - b.at) })
	first := all[0].at
	r.fill(all, first)
	return r, time.UnixMilli(first), nil
}

// fill adds samples in the order of their times, and the ends of series.
func (r *recording) fill(all []line, begin int64) {
	type scrape struct {
		at     int64
		series map[uint64]bool
	}
	scrapes := map[string][]scrape{} // by pod
	for _, l := range all {
		pod := l.labels.Get("pod")
		of := scrapes[pod]
		if len(of) == 0 || of[len(of)-1].at != l.at {
			of = append(of, scrape{l.at, map[uint64]bool{}})
		}
		of[len(of)-1].series[l.labels.Hash()] = true
		scrapes[pod] = of
		r.add(l.labels, sample{l.at - begin, l.value})
		r.last = time.Duration(l.at-begin) * time.Millisecond
	}
	for _, of := range scrapes {
		of = append(of, scrape{at: of[len(of)-1].at + int64(endsAfter/time.Millisecond)})
		for i, s := range of[1:] {
			for hash := range of[i].series {
				if !s.series[hash] {
					r.add(r.labels[hash], sample{s.at - begin, math.Float64frombits(value.StaleNaN)})
				}
			}
		}
	}
	for hash, samples := range r.samples {
		slices.SortStableFunc(samples, func(a, b chunks.Sample) int { return int(a.T() - b.T()) })
		r.samples[hash] = samples
	}
}

// endsAfter is how long after its last scrape a pod counts as gone.
const endsAfter = 2 * time.Second
