package kubetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	dlog "github.com/micro/go-micro/v2/debug/log"
)

// LogLines returns those of the last 100 log lines that were written since a time and contain
// all texts.
func LogLines(t testing.TB, since time.Time, texts ...string) (lines []string) {
	t.Helper()
	records, err := dlog.DefaultLog.Read() // which ignores dlog.Since
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		line := fmt.Sprint(r.Message)
		if !r.Timestamp.Before(since) && !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			lines = append(lines, line)
		}
	}
	return lines
}
