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

// etcd answers every range with no keys and says of every lease that it has run out.
type etcd struct {
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer
	ranges chan *pb.RangeRequest
}

func (e etcd) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	e.ranges <- r
	return &pb.RangeResponse{Header: &pb.ResponseHeader{}}, nil
}

func (e etcd) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	r, err := stream.Recv()
	if err != nil {
		return err
	}
	return stream.Send(&pb.LeaseKeepAliveResponse{Header: &pb.ResponseHeader{}, ID: r.ID, TTL: 0})
}

// The calls go-micro's registry makes reach a server that speaks today's protocol.
func TestForwardsToTheMaintainedClient(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fake := etcd{ranges: make(chan *pb.RangeRequest, 1)}
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
	if r := <-fake.ranges; string(r.Key) != "/micro/" || string(r.RangeEnd) != "/micro0" || !r.Serializable {
		t.Errorf("the server was asked for %v, want the prefix /micro/, serializable", r)
	}
	// go-micro compares with == and registers anew.
	if _, err := client.KeepAliveOnce(t.Context(), clientv3.LeaseID(1)); err != rpctypes.ErrLeaseNotFound {
		t.Errorf("an expired lease is %v, want the forwarded ErrLeaseNotFound", err)
	}
}
