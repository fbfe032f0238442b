// Package rpctypes forwards the error that go-micro's etcd registry compares with.
package rpctypes

import "go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

var ErrLeaseNotFound = rpctypes.ErrLeaseNotFound
