// The code generators have a module of their own, so that the services do not depend on them.
module github.com/jiangjiancc/go_micro_k8s/proto/gen

go 1.26.0

require (
	github.com/bufbuild/protocompile v0.14.1
	github.com/micro/micro/v2 v2.9.3
	google.golang.org/protobuf v1.36.12
)

require (
	github.com/golang/protobuf v1.5.4 // indirect
	golang.org/x/sync v0.24.0 // indirect
	google.golang.org/genproto v0.0.0-20191216164720-4f79533eabd1 // indirect
)
