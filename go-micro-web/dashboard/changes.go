package dashboard

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	microerrors "github.com/micro/go-micro/v2/errors"
)

const (
	maxChanges    = 50
	maxPodChanges = 10 // of one pod, so that a pod that changes all the time does not hide the others
)

// change is a change of one instance, as this pod has seen it.
type change struct {
	Time    time.Time `json:"time"` // when this pod saw the change
	Change  string    `json:"change"`
	Service string    `json:"service"`
	Pod     string    `json:"pod"`
	Address string    `json:"address"`
	Why     string    `json:"why,omitempty"` // absent if it is not known

	number int // counts from 1
}

// The changes of an instance. The others have the names of the state that the instance changed to.
const (
	joined  = "joined"
	left    = "left"
	ejected = "ejected"
	back    = "back" // ready again, or the end of an ejection
)

// changeLog is the list of recent changes. Its zero value is ready to use. It is safe
// for concurrent use.
type changeLog struct {
	pulse chan struct{} // receives a value after an ejection or its end; may be nil

	mu      sync.Mutex
	changes []change // oldest first
	count   int      // of all changes, including forgotten ones
	since   time.Time
	known   map[instanceKey]knownState // nil before the first observation
}

type instanceKey struct{ service, pod, address string }

func (k instanceKey) compare(other instanceKey) int {
	return cmp.Or(cmp.Compare(k.service, other.service), cmp.Compare(k.pod, other.pod), cmp.Compare(k.address, other.address))
}

// knownState is the last observation of an instance.
type knownState struct {
	state    pod.State
	reason   string
	since    time.Time // when the instance changed to the state
	wasReady bool
}

// restart forgets the instances, because the changes up to the next observation are not seen.
func (l *changeLog) restart() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known, l.since = nil, now()
}

// observe adds the differences between the last observation and this one.
func (l *changeLog) observe(instances []pod.Instance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, first := now(), l.known == nil
	before := l.known
	l.known = make(map[instanceKey]knownState, len(instances))
	for _, i := range instances {
		key := instanceKey{i.Service, i.Pod, i.Address}
		old, exists := before[key]
		current := knownState{i.State, i.Reason, at, i.State == pod.Ready || old.wasReady}
		if exists && old.state == i.State {
			current.since = old.since
		}
		l.known[key] = current
		switch {
		case first || exists && old.state == i.State:
		case !exists && i.State == pod.Ready:
			l.add(at, joined, key, "")
		case !exists:
			l.add(at, joined, key, described(i.State, i.Reason))
		case i.State == pod.Ready && old.wasReady:
			l.add(at, back, key, fmt.Sprintf("ready again, %s after it was %s", age(at.Sub(old.since)), described(old.state, old.reason)))
		default:
			l.add(at, string(i.State), key, i.Reason)
		}
	}
	maps.DeleteFunc(before, func(key instanceKey, _ knownState) bool { _, exists := l.known[key]; return exists })
	for _, key := range slices.SortedFunc(maps.Keys(before), instanceKey.compare) {
		l.add(at, left, key, "last state: "+described(before[key].state, before[key].reason))
	}
}

func described(s pod.State, reason string) string {
	if reason == "" || s == pod.Terminating { // "terminating" says enough of an instance that has left
		return string(s)
	}
	return string(s) + ", because " + reason
}

// add appends a change. The caller holds l.mu.
func (l *changeLog) add(at time.Time, name string, k instanceKey, why string) {
	l.count++
	c := change{at, name, clip(k.service), clip(k.pod), clip(k.address), clip(why), l.count}
	drop, ofPod := -1, 0
	for i := len(l.changes) - 1; i >= 0; i-- {
		if l.changes[i].Pod == c.Pod {
			if ofPod++; ofPod == maxPodChanges {
				drop = i
				break
			}
		}
	}
	if drop < 0 && len(l.changes) == maxChanges {
		drop = 0
	}
	kept := make([]change, 0, maxChanges) // a new slice, because views refer to the old one
	for i, old := range l.changes {
		if i != drop {
			kept = append(kept, old)
		}
	}
	l.changes = append(kept, c)
}

// events are the callbacks that add the ejections by all selectors of the registry.
func (l *changeLog) events() pod.Events {
	add := func(name, service, podName, address, why string) {
		l.mu.Lock()
		l.add(now(), name, instanceKey{service, podName, address}, why)
		l.mu.Unlock()
		select {
		case l.pulse <- struct{}{}:
		default: // the hub has not yet handled the last one
		}
	}
	return pod.Events{
		Ejected: func(service, podName, address string, duration time.Duration, cause error) {
			add(ejected, service, podName, address, fmt.Sprintf("for %s: %s", duration.Round(time.Second), causeText(cause)))
		},
		Readmitted: func(service, podName, address string, after time.Duration) {
			add(back, service, podName, address, fmt.Sprintf("%s after its ejection", age(after)))
		},
	}
}

// causeText classifies the cause of an ejection. The page does not show the errors of
// calls, because they can contain anything; the log does.
func causeText(err error) string {
	var e *microerrors.Error
	switch text := fmt.Sprint(err); {
	case errors.As(err, &e) && e.Id != "go.micro.client": // the instance answered
		return "its calls failed"
	case e != nil && e.Code == http.StatusRequestTimeout || strings.Contains(text, "deadline exceeded"):
		return "a call got no answer in time"
	case strings.Contains(text, "connection refused"):
		return "the connection was refused"
	case strings.Contains(text, "connection") || strings.Contains(text, "transport"):
		return "the connection failed"
	}
	return "its calls failed"
}

// recent returns the changes, oldest first, and since when changes in the registry were seen.
func (l *changeLog) recent() recentChanges {
	l.mu.Lock()
	defer l.mu.Unlock()
	return recentChanges{l.since, l.changes}
}

// recentChanges are immutable.
type recentChanges struct {
	Since   time.Time // of the current observation
	Changes []change  // oldest first
}

// encode returns the changes after a number as JSON, latest first.
func (r recentChanges) encode(after int) []byte {
	b, _ := json.Marshal(struct { // cannot fail
		Since   time.Time `json:"since"`
		Changes []change  `json:"changes"`
	}{r.Since, r.after(after)})
	return b
}

// last returns the number of the last change, 0 if there is none.
func (r recentChanges) last() int {
	if len(r.Changes) == 0 {
		return 0
	}
	return r.Changes[len(r.Changes)-1].number
}

// after returns the changes after a number, latest first.
func (r recentChanges) after(number int) []change {
	latest := []change{}
	for i := len(r.Changes) - 1; i >= 0 && r.Changes[i].number > number; i-- {
		latest = append(latest, r.Changes[i])
	}
	return latest
}
