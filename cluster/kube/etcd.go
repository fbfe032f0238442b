package main

import (
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
)

// newEtcd returns the program etcd with all of its flags, so that the launcher starts this
// etcd and an official one with the same command line.
func newEtcd() *cobra.Command {
	return &cobra.Command{Use: "etcd", DisableFlagParsing: true, Run: func(_ *cobra.Command, args []string) {
		etcdmain.Main(append([]string{"etcd"}, args...))
	}}
}
