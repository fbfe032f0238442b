package faults

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// Second counts the calls of about one second. The load generator, test/e2e/probe, prints
// one line for each.
type Second struct {
	Begin, End                 time.Time
	Started, Succeeded, Failed int
	Error                      string            `json:",omitempty"` // of the first failed call
	Failures                   []Failure         `json:",omitempty"` // the first 100 failed calls
	Oldest                     time.Duration     // how long the oldest call in flight has taken
	Answered                   map[string]int    `json:",omitempty"` // successful calls by address
	FailedTries                map[string]int    `json:",omitempty"` // failed tries by address, including those that were retried
	TryErrors                  map[string]string `json:",omitempty"` // the first error of each address
	Latencies                  Histogram         `json:",omitempty"` // of all calls that ended, also of those that failed
	Served                     Histogram         `json:",omitempty"` // how long calls took by the timetable of the workers that served them
}

// Failure is a call that has failed.
type Failure struct {
	Began  time.Time
	Caller int // its number
}

// Failures returns the calls that have failed and that began after a time.
func Failures(log []Second, after time.Time) (all []Failure) {
	for _, s := range log {
		for _, f := range s.Failures {
			if f.Began.After(after) {
				all = append(all, f)
			}
		}
	}
	return all
}

// Histogram counts durations. The key of a duration is 32 times the binary logarithm of its
// microseconds, so that one key covers 2 %.
type Histogram map[int]int

const keysPerOctave = 32

// Add counts a duration.
func (h Histogram) Add(d time.Duration) {
	h[int(math.Floor(keysPerOctave*math.Log2(float64(max(d, time.Microsecond))/float64(time.Microsecond))))]++
}

// Quantile returns the duration that a share q of all durations does not exceed, rounded
// up to the limit of its key. It returns 0 for an empty histogram.
func (h Histogram) Quantile(q float64) time.Duration {
	total := 0
	for _, n := range h {
		total += n
	}
	left := int(math.Ceil(q * float64(total)))
	for _, key := range slices.Sorted(maps.Keys(h)) {
		if left -= h[key]; left <= 0 {
			return time.Duration(math.Exp2(float64(key+1)/keysPerOctave) * float64(time.Microsecond))
		}
	}
	return 0
}

// Longer returns the sum of all durations that exceed d.
func (h Histogram) Longer(d time.Duration) (sum time.Duration) {
	for key, n := range h {
		if mean := math.Exp2((float64(key)+0.5)/keysPerOctave) * float64(time.Microsecond); mean > float64(d) {
			sum += time.Duration(float64(n) * mean)
		}
	}
	return sum
}

// Sum adds up the seconds that begin and end between two times. Sum.Begin is the beginning of the first
// of them, Sum.End the end of the last.
func Sum(log []Second, from, to time.Time) Second {
	sum := Second{FailedTries: map[string]int{}, Answered: map[string]int{}, Latencies: Histogram{}, Served: Histogram{}}
	for _, s := range log {
		if s.Begin.Before(from) || s.End.After(to) {
			continue
		}
		if sum.Begin.IsZero() {
			sum.Begin = s.Begin
		}
		sum.End = s.End
		sum.Started, sum.Succeeded, sum.Failed = sum.Started+s.Started, sum.Succeeded+s.Succeeded, sum.Failed+s.Failed
		add(sum.Answered, s.Answered)
		add(sum.FailedTries, s.FailedTries)
		add(sum.Latencies, s.Latencies)
		add(sum.Served, s.Served)
	}
	return sum
}

func add[K comparable](sum, counts map[K]int) {
	for k, n := range counts {
		sum[k] += n
	}
}

// PerSecond returns the successful calls per second, 0 if the Second is empty.
func (s Second) PerSecond() float64 {
	if length := s.End.Sub(s.Begin).Seconds(); length > 0 {
		return float64(s.Succeeded) / length
	}
	return 0
}

// Load is a pod that calls a service until Stop, or a process of this machine. The output of a pod is read from the node,
// because `kubectl logs` would be silent while the API server or the kubelet is broken.
type Load struct {
	Pod string // or a name of the process

	process   bool
	cluster   Cluster
	namespace string
	cancel    context.CancelFunc
	done      chan struct{}

	mu       sync.Mutex
	partial  []byte
	seconds  []Second
	messages strings.Builder // the lines that are neither seconds nor samples
	samples  bytes.Buffer
	onSecond func(Second)
	err      error // why the output has ended
}

// Restricted is the security context that Pod Security demands in the namespaces of k8s/namespace.yaml.
const Restricted = `securityContext: {runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}`

// scraped are the annotations by which make monitoring finds the pods that serve metrics.
const scraped = `prometheus.io/scrape: "true", prometheus.io/port: "9464", prometheus.io/path: /metrics`

// StartLoad starts the probe with the given arguments in a pod, on a node if it is not "". onSecond, if not nil, is called
// in another goroutine for every second as it is read.
func StartLoad(ctx context.Context, c Cluster, namespace, pod, node, image string, args []string, onSecond func(Second)) (*Load, error) {
	quoted, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	manifest := fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %[1]q, namespace: %[2]q, labels: {app: %[1]q}, annotations: {%[6]s}}, spec: {nodeName: %[7]q, restartPolicy: Never, serviceAccountName: micro-services,
  terminationGracePeriodSeconds: 1, containers: [{name: main, image: %[3]q, imagePullPolicy: Always, args: %[4]s,
  env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: POD_METRICS_ADDRESS, value: ":9464"},
    {name: POD_ZONE, valueFrom: {fieldRef: {fieldPath: "metadata.labels['topology.kubernetes.io/zone']"}}}], ports: [{containerPort: 9464}], %[5]s}]}}`,
		pod, namespace, image, quoted, Restricted, scraped, node)
	return StartLoadPod(ctx, c, namespace, pod, manifest, onSecond)
}

// StartLoadPod is StartLoad with the manifest of the pod, whose container must have the name main.
func StartLoadPod(ctx context.Context, c Cluster, namespace, pod, manifest string, onSecond func(Second)) (*Load, error) {
	if _, err := c.Kubectl(ctx, "delete", "pod", pod, "-n", namespace, "--ignore-not-found"); err != nil {
		return nil, err
	}
	if _, err := c.kubectl(ctx, manifest, "apply", "-f", "-"); err != nil {
		return nil, err
	}
	if _, err := c.Kubectl(ctx, "wait", "-n", namespace, "pod/"+pod, "--for=condition=Ready", "--timeout=1m"); err != nil {
		return nil, err
	}
	about, err := c.Kubectl(ctx, "get", "pod", pod, "-n", namespace, "-o", "jsonpath={.metadata.uid} {.spec.nodeName}")
	if err != nil {
		return nil, err
	}
	uid, node, _ := strings.Cut(about, " ")
	l := &Load{Pod: pod, cluster: c, namespace: namespace, done: make(chan struct{}), onSecond: onSecond}
	ctx, l.cancel = context.WithCancel(ctx)
	go func() {
		defer close(l.done)
		err := c.follow(ctx, node, fmt.Sprintf("/var/log/pods/%s_%s_%s/main/0.log", namespace, pod, uid), l)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.err = err
	}()
	return l, nil
}

// StartProcess starts the probe, the program of cmd, on this machine. The process ends with Stop or ctx.
func StartProcess(ctx context.Context, name string, cmd *exec.Cmd) (*Load, error) {
	l := &Load{Pod: name, process: true, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = l, l
	ctx, l.cancel = context.WithCancel(ctx)
	if err := cmd.Start(); err != nil {
		l.cancel()
		return nil, err
	}
	kill := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	go func() {
		defer close(l.done)
		defer kill()
		err := cmd.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.err = fmt.Errorf("running %s: it has ended: %w", name, cmp.Or(ctx.Err(), err))
	}()
	return l, nil
}

// Stop deletes the pod and does not wait until it is gone. It ends a process.
func (l *Load) Stop(ctx context.Context) error {
	l.cancel()
	<-l.done
	if l.process {
		return nil
	}
	_, err := l.cluster.Kubectl(ctx, "delete", "pod", l.Pod, "-n", l.namespace, "--ignore-not-found", "--wait=false")
	return err
}

// Write takes a part of the log: of a pod as containerd writes it, "TIME STREAM TAGS LINE", of a process only the lines.
func (l *Load) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = append(l.partial, b...)
	for {
		line, rest, ok := bytes.Cut(l.partial, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.partial = rest
		text := line
		if !l.process {
			fields := bytes.SplitN(line, []byte(" "), 4)
			text = fields[len(fields)-1]
		}
		if bytes.HasPrefix(text, []byte("sample ")) {
			l.samples.Write(text)
			l.samples.WriteByte('\n')
			continue
		}
		var s Second
		if json.Unmarshal(text, &s) != nil || s.End.IsZero() {
			l.messages.Write(text)
			l.messages.WriteByte('\n')
			continue
		}
		l.seconds = append(l.seconds, s)
		if l.onSecond != nil {
			l.onSecond(s)
		}
	}
}

// Seconds returns every second since the start, and the other lines of the output.
func (l *Load) Seconds() (all []Second, messages string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.seconds), l.messages.String(), l.err
}

// Samples returns the lines with metrics since the start, as test/alerts reads them.
func (l *Load) Samples() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.samples.Bytes())
}

// SecondsUntil waits until every call that started before the given time has ended, and
// returns every second since the start.
func (l *Load) SecondsUntil(ctx context.Context, end time.Time) (log []Second, err error) {
	err = Eventually(ctx, time.Minute, "the end of the calls in flight of "+l.Pod, func() error {
		if log, _, err = l.Seconds(); err != nil {
			return err
		}
		if len(log) == 0 {
			return fmt.Errorf("no call yet")
		}
		if last := log[len(log)-1]; last.End.Add(-last.Oldest).Before(end) {
			return fmt.Errorf("at %s a call has been in flight for %s", last.End, last.Oldest)
		}
		return nil
	})
	return log, err
}

// AnsweredBy returns an error unless, in a second that began after the given time, the
// callers were answered by exactly these addresses.
func (l *Load) AnsweredBy(addresses []string, after time.Time) error {
	log, messages, err := l.Seconds()
	if err != nil {
		return err
	}
	if len(log) == 0 || log[len(log)-1].Begin.Before(after) {
		return fmt.Errorf("no line of %s yet; its messages: %q", l.Pod, messages)
	}
	slices.Sort(addresses)
	if got := slices.Sorted(maps.Keys(log[len(log)-1].Answered)); !slices.Equal(got, addresses) {
		return fmt.Errorf("the callers of %s are answered by %q, want %q", l.Pod, got, addresses)
	}
	return nil
}
