package subchannel

import (
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/resolver"
)

// Only a balancer can make subchannels, and grpc-go finds the balancer by a name that is registered for the whole process.
// The balancer of this package decides nothing: it hands its balancer.ClientConn, which makes subchannels, to the Channel.
// It gets the Channel from a resolver that has no addresses.

const (
	scheme        = "k8s-micro-subchannels"
	policy        = "k8s_micro_subchannels"
	serviceConfig = `{"loadBalancingConfig":[{"` + policy + `":{}}]}`
)

func init() { balancer.Register(builder{}) }

// channelKey is the key of a Channel in the attributes of the resolver's state.
type channelKey struct{}

// resolverOf is the resolver of a channel, and its builder.
type resolverOf struct{ channel *Channel }

func (r resolverOf) Scheme() string { return scheme }

func (r resolverOf) Build(_ resolver.Target, conn resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	return r, conn.UpdateState(resolver.State{Attributes: attributes.New(channelKey{}, r.channel)})
}

func (resolverOf) ResolveNow(resolver.ResolveNowOptions) {}
func (resolverOf) Close()                                {}

type builder struct{}

func (builder) Name() string { return policy }

func (builder) Build(conn balancer.ClientConn, _ balancer.BuildOptions) balancer.Balancer {
	return &passive{conn}
}

// passive is the balancer of a Channel. It decides nothing.
type passive struct{ conn balancer.ClientConn }

func (p *passive) UpdateClientConnState(s balancer.ClientConnState) error {
	c := s.ResolverState.Attributes.Value(channelKey{}).(*Channel)
	c.makeConns = p.conn
	c.wake()
	return nil
}

func (*passive) ResolverError(error)                                        {}
func (*passive) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}
func (*passive) Close()                                                     {}
func (*passive) ExitIdle()                                                  {}
