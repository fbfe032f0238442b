package gomicro

import (
	"crypto/tls"
	"net"
	"net/url"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
)

// Passthrough begins the target of an address that is not resolved.
const Passthrough = "passthrough:///"

// Target returns the gRPC target and the credentials for an address. As with go-micro's client
// an address without a port, with port 443, or with the prefix https:// is reached over TLS; only
// here has the prefix an effect. config is that of grpcc.AuthTLS, nil if it is not set.
func Target(address string, config *tls.Config) (target string, creds credentials.TransportCredentials) {
	host, secure := strings.CutPrefix(address, "https://")
	_, port, err := net.SplitHostPort(host)
	withoutPort := err != nil && strings.Contains(err.Error(), "missing port in address")
	u, err := url.Parse(host)
	switch {
	case err == nil && resolver.Get(u.Scheme) != nil || strings.Contains(host, "://"): // such as dns:///greeter:9100
		target = host
	case withoutPort:
		target = Passthrough + host + ":443"
	default:
		target = Passthrough + host
	}
	switch {
	case config != nil:
		return target, credentials.NewTLS(config)
	case secure || port == "443" || withoutPort:
		return target, credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	return target, insecure.NewCredentials()
}

// IsIP reports whether a target is an IP address, as those of all instances are.
func IsIP(target string) bool {
	address, ok := strings.CutPrefix(target, Passthrough)
	host, _, err := net.SplitHostPort(address)
	return ok && err == nil && net.ParseIP(host) != nil
}
