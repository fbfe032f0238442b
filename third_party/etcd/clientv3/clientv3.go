// Package clientv3 declares the names of the old etcd client that go-micro's etcd
// registry uses, without a client behind them: every call to etcd returns an error
// that says so.
//
// go-micro links this registry into every program and lets the variable
// MICRO_REGISTRY and the flag --registry select it. It drops the error of New and
// then calls the nil client, so New returns no error and a client whose methods do.
package clientv3

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
)

// Client stands for a client of etcd. Each of its methods returns the same error.
type Client struct{ err error }

// Config contains the settings of go-micro's etcd registry.
type Config struct {
	Endpoints []string
	TLS       *tls.Config
	Username  string
	Password  string
	LogConfig any // go-micro assigns a *zap.Config, which this module does not require
}

// New returns a Client and never an error. It connects to nothing.
func New(c Config) (*Client, error) {
	return &Client{fmt.Errorf("calling etcd at %q: MICRO_REGISTRY, --registry or the code selects the registry etcd, and the program is built with no etcd client: "+
		"select another registry, or in go.mod replace github.com/coreos/etcd by github.com/jiangjiancc/go_micro_k8s/third_party/etcd-client",
		strings.Join(c.Endpoints, ","))}, nil
}

func (c *Client) Get(context.Context, string, ...OpOption) (*GetResponse, error) {
	return nil, c.err
}

func (c *Client) Put(context.Context, string, string, ...OpOption) (*PutResponse, error) {
	return nil, c.err
}

func (c *Client) Delete(context.Context, string, ...OpOption) (*DeleteResponse, error) {
	return nil, c.err
}

func (c *Client) Grant(context.Context, int64) (*LeaseGrantResponse, error) { return nil, c.err }

func (c *Client) KeepAliveOnce(context.Context, LeaseID) (*LeaseKeepAliveResponse, error) {
	return nil, c.err
}

// Watch returns a closed channel that contains the error.
func (c *Client) Watch(context.Context, string, ...OpOption) WatchChan {
	w := make(chan WatchResponse, 1)
	w <- WatchResponse{Canceled: true, err: c.err}
	close(w)
	return w
}

// What the methods take and would return.
type (
	OpOption               struct{}
	LeaseID                int64
	LeaseGrantResponse     struct{ ID LeaseID }
	LeaseKeepAliveResponse struct{}
	GetResponse            struct{ Kvs []*KeyValue }
	PutResponse            struct{}
	DeleteResponse         struct{}
	KeyValue               struct {
		Value []byte
		Lease int64
	}
	WatchChan     = <-chan WatchResponse
	WatchResponse struct {
		Events   []*Event
		Canceled bool
		err      error
	}
	EventType int32
	Event     struct {
		Type       EventType
		Kv, PrevKv *KeyValue
	}
)

const (
	EventTypePut EventType = iota
	EventTypeDelete
)

func (r *WatchResponse) Err() error { return r.err }
func (*Event) IsCreate() bool       { return false }
func (*Event) IsModify() bool       { return false }

func WithSerializable() OpOption { return OpOption{} }
func WithLease(LeaseID) OpOption { return OpOption{} }
func WithPrefix() OpOption       { return OpOption{} }
func WithPrevKV() OpOption       { return OpOption{} }
