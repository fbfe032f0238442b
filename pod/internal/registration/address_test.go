package registration

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestAdvertisedAddress(t *testing.T) {
	local := func(a netip.Addr) bool { // the addresses of this pod's interfaces
		switch a.WithZone("").String() {
		case "203.0.113.7", "2001:db8::7", "127.0.0.1", "::1", "fe80::7", "10.244.0.7":
			return true
		}
		return false
	}
	const refused = "refused"
	for _, c := range []struct{ what, address, podIP, want string }{
		{"IPv4", "10.244.0.7:9100", "10.244.0.7", "10.244.0.7:9100"},
		{"IPv4, public pod range: go-micro took the loopback", "127.0.0.1:9100", "203.0.113.7", "203.0.113.7:9100"},
		{"IPv6: go-micro took the loopback", "[::1]:9100", "2001:db8::7", "[2001:db8::7]:9100"},
		{"IPv6: go-micro took a link-local address", "[fe80::7%eth0]:9100", "2001:db8::7", "[2001:db8::7]:9100"},
		{"dual stack: go-micro took the IPv6 address, the primary is IPv4", "[2001:db8::7]:9100", "10.244.0.7", "10.244.0.7:9100"},
		{"dual stack: go-micro took the IPv4 address, the primary is IPv6", "10.244.0.7:9100", "2001:db8::7", "[2001:db8::7]:9100"},
		{"an address that the user advertises", "198.51.100.1:9100", "10.244.0.7", "198.51.100.1:9100"},
		{"a name that the user advertises", "greeter.example.com:9100", "10.244.0.7", "greeter.example.com:9100"},
		{"no port", "127.0.0.1", "10.244.0.7", "10.244.0.7"},
		{"no host", ":9100", "10.244.0.7", "10.244.0.7:9100"},
		{"loopback by name", "localhost:9100", "10.244.0.7", "10.244.0.7:9100"},
		{"unspecified", "0.0.0.0:9100", "10.244.0.7", "10.244.0.7:9100"},
		{"without POD_IP", "10.244.0.7:9100", "", "10.244.0.7:9100"},
		{"without POD_IP, IPv4 loopback", "127.0.0.1:9100", "", refused},
		{"without POD_IP, IPv6 loopback", "[::1]:9100", "", refused},
		{"without POD_IP, loopback by name", "localhost:9100", "", refused},
		{"without POD_IP, no host", ":9100", "", refused},
		{"without POD_IP, an address that the user advertises", "198.51.100.1:9100", "", "198.51.100.1:9100"},
		{"without POD_IP, unspecified", "[::]:9100", "", refused},
		{"without POD_IP, link-local", "[fe80::7%eth0]:9100", "", refused},
		{"POD_IP is no address", "10.244.0.7:9100", "pod-1", refused},
		{"POD_IP is unspecified", "10.244.0.7:9100", "0.0.0.0", refused},
		{"POD_IP is link-local", "10.244.0.7:9100", "fe80::1", refused},
		{"POD_IP is a loopback", "10.244.0.7:9100", "127.0.0.1", refused},
	} {
		original := service("greeter", "a", c.address)
		got, err := advertised(original, c.podIP, local, nil)
		switch {
		case c.want == refused:
			if err == nil || !strings.Contains(err.Error(), "POD_IP") || !strings.Contains(err.Error(), "status.podIP") {
				t.Errorf("%s: %v, %v, want it refused with the remedy", c.what, got, err)
			}
		case err != nil || got.Nodes[0].Address != c.want:
			t.Errorf("%s: %v, %v, want %s", c.what, got.Nodes[0].Address, err, c.want)
		case got.Nodes[0].Id != "a" || got.Name != "greeter" || got.Nodes[0].Metadata["protocol"] != "grpc":
			t.Errorf("%s: another field was changed: %+v", c.what, got)
		}
		if original.Nodes[0].Address != c.address {
			t.Errorf("%s: the caller's own service was changed", c.what)
		}
	}
}

// A topic of go-micro's HTTP broker is refused if the broker listens on the loopback interface only.
func TestAdvertisedTopic(t *testing.T) {
	local := func(a netip.Addr) bool { return a.IsLoopback() || a == netip.MustParseAddr("10.244.0.7") }
	for _, c := range []struct {
		address, podIP string
		listening      bool
		want           string
	}{
		{"127.0.0.1:40000", "10.244.0.7", false, "refused"},
		{"[::1]:40000", "2001:db8::7", false, "refused"},
		{"127.0.0.1:40000", "203.0.113.7", true, "203.0.113.7:40000"}, // it listens on all interfaces, and go-micro took the loopback
		{"10.244.0.7:40000", "10.244.0.7", false, "10.244.0.7:40000"},
	} {
		s := service("micro.http.broker", "orders-1", c.address)
		s.Nodes[0].Metadata["topic"] = "orders"
		asked := ""
		got, err := advertised(s, c.podIP, local, func(address string) bool { asked = address; return c.listening })
		if c.want == "refused" {
			if want := net.JoinHostPort(c.podIP, "40000"); err == nil || !strings.Contains(err.Error(), "not on "+want) || !strings.Contains(err.Error(), "MICRO_BROKER_ADDRESS=:9300") || asked != want {
				t.Errorf("%s: %v, %v, want it refused with the remedy", c.address, got, err)
			}
		} else if err != nil || got.Nodes[0].Address != c.want {
			t.Errorf("%s: %v, %v, want %s", c.address, got, err, c.want)
		}
	}
}

func TestIsListening(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if !isListening(address) {
		t.Errorf("nobody listens on %s", address)
	}
	l.Close()
	if isListening(address) {
		t.Errorf("somebody listens on %s", address)
	}
}

func TestIsInterfaceAddress(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1": true, "::ffff:127.0.0.1": true, "198.51.100.1": false, "2001:db8::7": false} {
		if got := isInterfaceAddress(netip.MustParseAddr(address)); got != want {
			t.Errorf("isInterfaceAddress(%s) is %v", address, got)
		}
	}
}
