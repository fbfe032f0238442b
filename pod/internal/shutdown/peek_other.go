//go:build !unix

package shutdown

import "net"

// firstByte returns 0: the services run on Linux.
func firstByte(net.Conn) byte { return 0 }
