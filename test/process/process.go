// Package process measures and checks the process that runs a test.
package process

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

// CheckNoLeak fails the test if it leaves a goroutine behind, except those that exist already, such as
// those of initialized packages, and those that the options name. It says nothing about a test
// that has failed.
func CheckNoLeak(t testing.TB, options ...goleak.Option) {
	t.Helper()
	options = append(options, goleak.IgnoreCurrent())
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		for end := time.Now().Add(10 * time.Second); ; { // goleak.Find waits for 0.4 s, which is short on a busy machine
			err := goleak.Find(options...)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Error(err)
				return
			}
		}
	})
}
