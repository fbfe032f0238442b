// Package clientv3 declares the names of the old etcd client that go-micro uses,
// as aliases of the maintained client go.etcd.io/etcd/client/v3.
package clientv3

import v3 "go.etcd.io/etcd/client/v3"

type (
	Client             = v3.Client
	Config             = v3.Config
	LeaseID            = v3.LeaseID
	LeaseGrantResponse = v3.LeaseGrantResponse
	WatchChan          = v3.WatchChan
)

const (
	EventTypePut    = v3.EventTypePut
	EventTypeDelete = v3.EventTypeDelete
)

var (
	New              = v3.New
	WithSerializable = v3.WithSerializable
	WithLease        = v3.WithLease
	WithPrefix       = v3.WithPrefix
	WithPrevKV       = v3.WithPrevKV
)
