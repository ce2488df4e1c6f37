// Package router answers one question: who serves this key?
//
// It is pure functions over an immutable [View], which is a function of one
// registry.State and so of one etcd revision: no sockets, no clocks, no locks.
//
//	view := router.NewView(cache.State())
//	record, _ := cache.Lookup("default", "thermostat-17")
//	d := view.Route(router.Query{Pool: "default", Key: "thermostat-17", Record: record})
//	if d.Broker == nil {
//		refuse(d.Refusal) // no_pool, no_broker or await_home
//	}
//	err := dial(d.Broker) // failed? Route again with its ID in Query.Avoid
//
// A pin goes first, then the recorded affinity, then placement: weighted
// rendezvous hashing, in which every broker draws a number from each key and
// the best draw wins. Edges with equal Views therefore agree without a word,
// a broker that comes takes only the keys that it wins, and one that goes
// gives up only its own. The arithmetic is integer throughout, so that the
// agreement holds between CPU architectures.
//
// What it refuses to do: move a recorded key because its broker fails. Such a
// key waits until the broker is lost, out or no longer configured; when that
// is so is decided in package failover and by operators, never here.
package router
