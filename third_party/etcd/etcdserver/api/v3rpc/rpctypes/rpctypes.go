// Package rpctypes declares the error that go-micro's etcd registry compares with.
package rpctypes

import "errors"

// ErrLeaseNotFound has the text of etcd's error. The client of this module never returns it.
var ErrLeaseNotFound = errors.New("etcdserver: requested lease not found")
