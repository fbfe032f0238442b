package main

import (
	"os/exec"
	"syscall"
)

// childOfThis makes a process end with this one, even after SIGKILL. Ctrl-C reaches only this one, which then stops the process.
func childOfThis(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
