package gomicro

import (
	"crypto/tls"
	"testing"

	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
)

func TestTarget(t *testing.T) {
	for _, test := range []struct{ address, target, security, name string }{
		{"10.0.0.1:9100", "passthrough:///10.0.0.1:9100", "insecure", ""},
		{"10.0.0.1:443", "passthrough:///10.0.0.1:443", "tls", ""},
		{"[fd00::1]:9100", "passthrough:///[fd00::1]:9100", "insecure", ""},
		{"greeter", "passthrough:///greeter:443", "tls", ""},
		{"https://greeter", "passthrough:///greeter:443", "tls", ""},
		{"https://greeter:9100", "passthrough:///greeter:9100", "tls", ""},
		{"dns:///greeter:9100", "dns:///greeter:9100", "insecure", ""},
		{"unix:/run/greeter", "unix:/run/greeter", "insecure", ""},
		{"unknown://greeter", "unknown://greeter", "insecure", ""},
	} {
		for _, withTLS := range []bool{false, true} {
			var opts []client.Option
			want := test.security
			if withTLS {
				opts, want = append(opts, grpcc.AuthTLS(&tls.Config{ServerName: "other", MinVersion: tls.VersionTLS12})), "tls"
			}
			target, creds := Target(test.address, TLS(grpcc.NewClient(opts...).Options()))
			info := creds.Info()
			if target != test.target || info.SecurityProtocol != want || withTLS != (info.ServerName == "other") { //nolint:staticcheck // as grpc-go reads it
				t.Errorf("%q with grpcc.AuthTLS %v: %q, %q, name %q, want %q, %q", test.address, withTLS, target, info.SecurityProtocol, info.ServerName, test.target, want) //nolint:staticcheck // as grpc-go reads it
			}
		}
	}
}

func TestIsIP(t *testing.T) {
	for address, want := range map[string]bool{"10.0.0.1:9100": true, "[fd00::1]:9100": true, "greeter:9100": false, "dns:///10.0.0.1:9100": false} {
		target, _ := Target(address, nil)
		if IsIP(target) != want {
			t.Errorf("%q: %t", address, !want)
		}
	}
}
