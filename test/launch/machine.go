package launch

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// Machine describes this machine in a file of results: the cores and the model of the processor.
func Machine() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	_, after, _ := strings.Cut(string(b), "model name")
	model, _, _ := strings.Cut(after, "\n")
	return fmt.Sprintf("%d cores of %s", runtime.NumCPU(), cmp.Or(strings.Trim(model, "\t: "), runtime.GOARCH))
}

// LoadAverage returns the load average of the last minute.
func LoadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	minute, _, _ := strings.Cut(string(b), " ")
	return minute
}
