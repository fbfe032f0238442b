package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// captureResult counts packets of IPv4.
type captureResult struct {
	Packets int // with data, from or to the port
	Text    int // that contain the text
}

// capture reads every packet of this network namespace for a time. It prints a captureResult.
func capture(duration, port, text string) error {
	limit, err := time.ParseDuration(duration)
	if err != nil {
		return err
	}
	wanted, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in the network's byte order
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return fmt.Errorf("opening a packet socket: %w", err)
	}
	defer unix.Close(s)
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		return err
	}
	var result captureResult
	packet := make([]byte, 1<<16)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		n, _, err := unix.Recvfrom(s, packet, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return fmt.Errorf("reading packets: %w", err)
		}
		data := tcpData(packet[:n], uint16(wanted))
		if len(data) == 0 {
			continue
		}
		result.Packets++
		if bytes.Contains(data, []byte(text)) {
			result.Text++
		}
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// tcpData returns the data of an IPv4 packet from or to a TCP port, or nothing.
func tcpData(ip []byte, port uint16) []byte {
	if len(ip) < 20 || ip[0]>>4 != 4 || ip[9] != unix.IPPROTO_TCP {
		return nil
	}
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if header < 20 || total > len(ip) || header+20 > total {
		return nil
	}
	tcp := ip[header:total]
	if binary.BigEndian.Uint16(tcp) != port && binary.BigEndian.Uint16(tcp[2:]) != port {
		return nil
	}
	if offset := int(tcp[12]>>4) * 4; offset <= len(tcp) {
		return tcp[offset:]
	}
	return nil
}
