//go:build !linux

package main

import "errors"

func capture(_, _, _ string) error {
	return errors.New("capturing packets: only Linux has packet sockets")
}
