package kubetest

import (
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// ReadSettings returns the window and the limit of streams in the first HTTP/2 frame that a peer sends.
func ReadSettings(t testing.TB, conn net.Conn) (window, streams uint32) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	frame, err := http2.NewFramer(conn, conn).ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	settings, ok := frame.(*http2.SettingsFrame)
	if !ok {
		t.Fatalf("the first frame is %v", frame)
	}
	window, _ = settings.Value(http2.SettingInitialWindowSize)
	streams, _ = settings.Value(http2.SettingMaxConcurrentStreams)
	return window, streams
}
