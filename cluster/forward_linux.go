package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/forwarder"
)

var serviceArgument = regexp.MustCompile(`^[a-z0-9-]+/[a-z0-9-]+:([0-9]+)$`)

// forward makes a Service reachable on the host's loopback until the cluster
// stops, and prints the address. The port is the Service's port if it is free on the
// host. A second call for the same Service prints the same address.
//
// forward opens the listener in the host's network namespace and sends it to the node
// manager. For each connection, the node manager dials the Service from inside the node.
func (c *cluster) forward(args []string) error {
	s, err := c.running()
	if err != nil {
		return err
	}
	if s.Node == 0 {
		return fmt.Errorf("forwarding to cluster %q: it has no node", c.name)
	}
	if len(args) != 1 || !serviceArgument.MatchString(args[0]) {
		return fmt.Errorf("forwarding %q: want NAMESPACE/SERVICE:PORT, such as go-micro/go-micro-web:9200", args)
	}
	l, f, err := listen(serviceArgument.FindStringSubmatch(args[0])[1])
	if err != nil {
		l, f, err = listen("0")
	}
	if err != nil {
		return err
	}
	defer l.Close()
	defer f.Close()
	socket, done, err := c.socket("forward.sock")
	if err != nil {
		return err
	}
	defer done()
	conn, err := net.DialUnix("unix", nil, socket)
	if err != nil {
		return fmt.Errorf("forwarding %q: %w; was cluster %q started by an older checkout? stop it with `make cluster-down` and start it again", args[0], err, c.name)
	}
	address, err := sendListener(conn, args[0], f)
	if err != nil {
		return fmt.Errorf("forwarding %q: %w; see %s", args[0], err, c.path("log", "supervisor.log"))
	}
	fmt.Println(address)
	return nil
}

// sendListener sends a listener for a Service to receiveForwards, and returns the address that
// leads to the Service.
func sendListener(conn *net.UnixConn, service string, listener *os.File) (address string, err error) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := conn.WriteMsgUnix([]byte(service), syscall.UnixRights(int(listener.Fd())), nil); err != nil {
		return "", err
	}
	b, err := io.ReadAll(conn)
	if err == nil && len(b) == 0 {
		err = errors.New("the node manager refused the listener")
	}
	return string(b), err
}

// receiveForwards receives a listener and the name of its Service from each call of
// forward, and answers with the address on the host that leads to the Service.
func receiveForwards(socket net.Listener) {
	var mu sync.Mutex
	open := map[string]string{} // maps a Service to its address on the host while its forwarder runs
	receive := func(conn *net.UnixConn) error {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		text, rights := make([]byte, 512), make([]byte, syscall.CmsgSpace(4))
		n, m, _, _, err := conn.ReadMsgUnix(text, rights)
		if err != nil {
			return err
		}
		messages, err := syscall.ParseSocketControlMessage(rights[:m])
		if err != nil || len(messages) != 1 {
			return fmt.Errorf("want 1 control message, got %d: %w", len(messages), err)
		}
		fds, err := syscall.ParseUnixRights(&messages[0])
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fds[0]), "listener")
		defer f.Close()
		service := string(text[:n])
		mu.Lock()
		defer mu.Unlock()
		if open[service] == "" {
			l, err := net.FileListener(f)
			if err != nil {
				return err
			}
			open[service] = l.Addr().String()
			namespace, rest, _ := strings.Cut(service, "/")
			name, port, _ := strings.Cut(rest, ":")
			go func() {
				forwarder.Run(l, fmt.Sprintf("%s.%s.svc.cluster.local.:%s", name, namespace, port), nodeDialer.Dial, logLine)
				mu.Lock()
				defer mu.Unlock()
				delete(open, service)
			}()
		}
		_, err = io.WriteString(conn, open[service])
		return err
	}
	forwarder.Accept(socket, "forward.sock", logLine, func(conn net.Conn) {
		if err := receive(conn.(*net.UnixConn)); err != nil {
			logLine("receiving a listener: %v", err)
		}
	})
}

// nodeDialer dials from inside the node and resolves the names of Services with CoreDNS.
var nodeDialer = net.Dialer{Timeout: 5 * time.Second, Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:53")
}}}
