package main

import (
	"flag"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	"github.com/spf13/cobra"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
)

// newCoreDNS returns CoreDNS with the plugins of cluster DNS.
func newCoreDNS() *cobra.Command {
	var conf string
	c := &cobra.Command{Use: "coredns", RunE: func(*cobra.Command, []string) error {
		dnsserver.Directives = []string{"errors", "health", "cache", "kubernetes"}
		caddy.Quiet = true
		// CoreDNS reads the flags of package flag, not those of cobra.
		if err := flag.CommandLine.Parse([]string{"-conf", conf}); err != nil {
			return err
		}
		coremain.Run()
		return nil
	}}
	c.Flags().StringVar(&conf, "conf", "Corefile", "configuration file")
	return c
}
