package pod

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"google.golang.org/grpc/codes"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
)

func TestReflectionListsRegisteredServices(t *testing.T) {
	n := kubetest.NewNamespace(t)
	n.CreateReadyPod("a")
	svc := startGreeter(t, n.Environment("a"), 0)
	c := svc.dial()
	v1, err := reflectionv1.NewServerReflectionClient(c).ServerReflectionInfo(contextWithTimeout(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(q *reflectionv1.ServerReflectionRequest) *reflectionv1.ServerReflectionResponse {
		t.Helper()
		if err := v1.Send(q); err != nil {
			t.Fatal(err)
		}
		a, err := v1.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	var names []string
	for _, s := range ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}).GetListServicesResponse().GetService() {
		names = append(names, s.Name)
	}
	if want := []string{"Greeter", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}; !slices.Equal(names, want) {
		t.Errorf("reflection lists %q, want %q", names, want)
	}
	files := ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "Greeter"}}).GetFileDescriptorResponse().GetFileDescriptorProto()
	if len(files) != 1 || !strings.Contains(string(files[0]), "HelloRequest") {
		t.Errorf("the file of Greeter is %q", files)
	}
	if err := v1.CloseSend(); err != nil {
		t.Error(err)
	}
	alpha, err := reflectionv1alpha.NewServerReflectionClient(c).ServerReflectionInfo(contextWithTimeout(t, 10*time.Second))
	if err == nil {
		//nolint:staticcheck // deprecated, and older versions of grpcurl use it
		err = alpha.Send(&reflectionv1alpha.ServerReflectionRequest{MessageRequest: &reflectionv1alpha.ServerReflectionRequest_ListServices{}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if a, err := alpha.Recv(); err != nil || len(a.GetListServicesResponse().GetService()) != 3 { //nolint:staticcheck // as above
		t.Errorf("v1alpha: %v, %v", a, err)
	}
	if err := alpha.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := sayHello(contextWithTimeout(t, time.Second), c, "after"); status.Code(err) != codes.OK {
		t.Error(err)
	}
}
