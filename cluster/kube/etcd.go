package main

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
)

// newEtcd is a one-member etcd for a cluster that is thrown away: it does not
// wait for the disk, and it serves only clients that show a certificate.
func newEtcd() *cobra.Command {
	var dir, listen string
	var tls transport.TLSInfo
	c := &cobra.Command{Use: "etcd", SilenceUsage: true, RunE: func(*cobra.Command, []string) error {
		client, err := url.Parse(listen)
		if err != nil {
			return fmt.Errorf("parsing --listen-client-url %q: %w", listen, err)
		}
		cfg := embed.NewConfig()
		cfg.Dir = dir
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
		cfg.ListenPeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}} // it has no peers; 0 cannot clash
		cfg.ClientTLSInfo = tls
		cfg.UnsafeNoFsync = true
		cfg.LogLevel = "warn"
		cfg.WarningUnaryRequestDuration = time.Second // a busy laptop is slower than the default 300 ms
		e, err := embed.StartEtcd(cfg)
		if err != nil {
			return fmt.Errorf("starting etcd in %q: %w", dir, err)
		}
		defer e.Close()
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
		select {
		case <-stop:
			return nil
		case err := <-e.Err():
			return fmt.Errorf("serving etcd on %q: %w", listen, err)
		}
	}}
	f := c.Flags()
	f.StringVar(&dir, "data-dir", "etcd", "where the data lives")
	f.StringVar(&listen, "listen-client-url", "https://127.0.0.1:2379", "where clients connect")
	f.StringVar(&tls.CertFile, "cert-file", "", "server certificate")
	f.StringVar(&tls.KeyFile, "key-file", "", "its key")
	f.StringVar(&tls.TrustedCAFile, "trusted-ca-file", "", "authority of the clients' certificates")
	tls.ClientCertAuth = true
	return c
}
