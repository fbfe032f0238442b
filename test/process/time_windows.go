package process

import (
	"syscall"
	"testing"
	"time"
)

// Time returns the processor time of this process, which other processes do not change.
func Time(t testing.TB) time.Duration {
	t.Helper()
	p, err := syscall.GetCurrentProcess()
	if err != nil {
		t.Fatal(err)
	}
	var created, ended, kernel, user syscall.Filetime
	if err := syscall.GetProcessTimes(p, &created, &ended, &kernel, &user); err != nil {
		t.Fatal(err)
	}
	var total time.Duration
	for _, f := range []syscall.Filetime{kernel, user} { // a span in units of 100 ns
		total += 100 * time.Duration(int64(f.HighDateTime)<<32|int64(f.LowDateTime))
	}
	return total
}
