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

// newEtcd returns an etcd with one member for a cluster that is deleted after use: it
// does not wait for the disk. Clients and peers need a certificate of the authority.
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
		cfg.ListenPeerUrls = []url.URL{{Scheme: "https", Host: "127.0.0.1:0"}} // there are no peers, but etcd always listens
		cfg.ClientTLSInfo, cfg.PeerTLSInfo = tls, tls
		cfg.UnsafeNoFsync = true
		cfg.LogLevel = "warn"
		cfg.WarningUnaryRequestDuration = time.Second // the default of 300 ms is exceeded on a busy laptop
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
	f.StringVar(&dir, "data-dir", "etcd", "directory of the data")
	f.StringVar(&listen, "listen-client-url", "https://127.0.0.1:2379", "URL for clients")
	f.StringVar(&tls.CertFile, "cert-file", "", "server certificate")
	f.StringVar(&tls.KeyFile, "key-file", "", "key of the server certificate")
	f.StringVar(&tls.TrustedCAFile, "trusted-ca-file", "", "certificate authority of clients and peers")
	tls.ClientCertAuth = true
	return c
}
