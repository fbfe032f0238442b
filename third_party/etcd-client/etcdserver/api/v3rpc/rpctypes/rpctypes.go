// Package rpctypes declares the error that go-micro's etcd registry compares
// with, as the maintained client's error.
package rpctypes

import "go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

var ErrLeaseNotFound = rpctypes.ErrLeaseNotFound
