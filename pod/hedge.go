package pod

import (
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/hedge"
	"github.com/micro/go-micro/v2/client"
)

// Hedge is an option of a call of a Client, for methods that may be executed twice. If the call takes longer than 98 % of the calls of its
// method, a second attempt goes to another instance. The first answer counts; the other attempt is cancelled, and its instance is not
// blamed.
//
//	response, err := greeter.Hello(ctx, request, pod.Hedge())
//
// At most 3 % of the calls of a method have a second attempt; up to 20 unused ones are saved. There is none while more than a tenth of the
// calls fail, when the retry budget of the service is used up, and for a request that is a retry. The client learns the latency of each
// method from the calls with the option; the first 100 have no second attempt. If the first attempt fails, the call waits for the second
// one if it has begun. If both fail, client.Retry decides as without the option.
//
// The option has no effect on streams, with client.WithAddress, with a selector of another package, if no other instance is available, and
// beside the options grpc.Header, grpc.Trailer, grpc.Peer and grpc.OnFinish of grpcc.CallOptions. Call wrappers run for both attempts at
// the same time, and must return when their context ends. The response of a second attempt is copied into the caller's value. The sources
// of the numbers are in internal/hedge/method.go.
func Hedge() client.CallOption { return hedge.Option() }
