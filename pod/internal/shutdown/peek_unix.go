//go:build unix

package shutdown

import (
	"errors"
	"net"
	"syscall"
)

// firstByte returns the first byte that a client sends, which stays to be read. It returns 0 if there is none, and for connections
// that are not of the operating system, such as those of tls.Listen.
func firstByte(conn net.Conn) byte {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return 0
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0
	}
	var b [1]byte
	_ = raw.Read(func(fd uintptr) (done bool) {
		for {
			_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
			if !errors.Is(err, syscall.EINTR) {
				return !errors.Is(err, syscall.EAGAIN)
			}
		}
	})
	return b[0]
}
