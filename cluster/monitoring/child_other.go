//go:build !linux

package main

import "os/exec"

// childOfThis has nothing to do: the demo needs Linux.
func childOfThis(*exec.Cmd) {}
