package node

import "github.com/limpet-mesh/limpet/edge/admin"

// clients is what /v1/clients tells of a key.
func (n *Node) clients(pool, key string) admin.Clients {
	all := admin.Clients{Edge: n.conf.ID, Pool: pool, Key: key, Live: []admin.Client{}}
	for _, s := range n.server.Sessions(pool, key) {
		all.Live = append(all.Live, admin.Client{
			Broker: s.Broker.Broker, Accepted: s.Accepted, Why: s.Why.String(), Listener: s.Listener, Transport: s.Transport, Address: s.Client,
		})
	}
	if a, _, ok := n.cache.TryResolve(pool, key); ok && a.Present() {
		all.Record = &admin.Record{
			Broker: a.Broker, Home: a.Home, Writer: a.Writer, Written: a.Written, Expires: a.Expires, Reason: a.Reason, Revision: a.Revision,
		}
	}
	return all
}
