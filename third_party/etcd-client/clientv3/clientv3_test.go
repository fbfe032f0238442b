package clientv3_test

import (
	"context"
	"net"
	"testing"

	"github.com/coreos/etcd/clientv3"
	"github.com/coreos/etcd/etcdserver/api/v3rpc/rpctypes"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// fakeEtcd answers every range request with no keys and every keep-alive with an expired lease.
type fakeEtcd struct {
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer
	rangeRequests chan *pb.RangeRequest
}

func (e fakeEtcd) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	e.rangeRequests <- r
	return &pb.RangeResponse{Header: &pb.ResponseHeader{}}, nil
}

func (e fakeEtcd) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	r, err := stream.Recv()
	if err != nil {
		return err
	}
	return stream.Send(&pb.LeaseKeepAliveResponse{Header: &pb.ResponseHeader{}, ID: r.ID, TTL: 0})
}

// TestCallsReachServer makes the calls of go-micro's etcd registry to a server
// that speaks the current protocol.
func TestCallsReachServer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fake := fakeEtcd{rangeRequests: make(chan *pb.RangeRequest, 1)}
	server := grpc.NewServer()
	pb.RegisterKVServer(server, fake)
	pb.RegisterLeaseServer(server, fake)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	client, err := clientv3.New(clientv3.Config{Endpoints: []string{listener.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	if _, err := client.Get(t.Context(), "/micro/", clientv3.WithPrefix(), clientv3.WithSerializable()); err != nil {
		t.Fatal(err)
	}
	if r := <-fake.rangeRequests; string(r.Key) != "/micro/" || string(r.RangeEnd) != "/micro0" || !r.Serializable {
		t.Errorf("the server received %v, want a serializable read of the prefix /micro/", r)
	}
	// go-micro compares this error with == and then registers again.
	if _, err := client.KeepAliveOnce(t.Context(), clientv3.LeaseID(1)); err != rpctypes.ErrLeaseNotFound {
		t.Errorf("keeping an expired lease alive returns %v, want ErrLeaseNotFound", err)
	}
}
