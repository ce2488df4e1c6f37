package node

import (
	"fmt"

	"github.com/limpet-mesh/limpet/edge/admin"
)

// reservedDescriptors are an edge's own: listeners, stores, probes, scrapes.
const reservedDescriptors = 256

// fewClients is what nobody wants an edge for: a limit that allows no more is a forgotten one.
const fewClients = 1024

// capacity is how many clients an edge takes, and what says so.
type capacity struct {
	most   int // 0 = no bound that is known
	origin string
	advice string // where there is something to be set right; else ""
}

// capacityOf is the configured bound, or what the descriptor limit allows if that is less or none is configured: two descriptors a session,
// and some for ourselves, so that the admin address answers on an edge that is full.
func capacityOf(configured, descriptors int) (capacity, error) {
	room := (descriptors - reservedDescriptors) / 2
	switch {
	case descriptors > 0 && room < 1:
		return capacity{}, fmt.Errorf("the descriptor limit is %d, of which an edge needs %d for itself and two per client: raise it (ulimit -n, LimitNOFILE= of systemd)",
			descriptors, reservedDescriptors)
	case configured > 0:
		if descriptors > 0 && room < configured {
			return capacity{
				most: room, origin: fmt.Sprintf("descriptor limit %d", descriptors),
				advice: fmt.Sprintf("limits.connections is %d, but the descriptor limit of %d allows %d clients only: raise it (ulimit -n, LimitNOFILE= of systemd)",
					configured, descriptors, room),
			}, nil
		}
		return capacity{most: configured, origin: "limits.connections"}, nil
	case descriptors > 0:
		c := capacity{most: room, origin: fmt.Sprintf("descriptor limit %d", descriptors)}
		if room < fewClients {
			c.advice = fmt.Sprintf("the descriptor limit of %d allows %d clients only: raise it (ulimit -n, LimitNOFILE= of systemd)", descriptors, room)
		}
		return c, nil
	}
	return capacity{origin: "no limit"}, nil
}

// readyClients tells how near the bound is. Who comes above it is turned away at accept.
func (n *Node) readyClients() admin.Check {
	c := admin.Check{Name: "clients", Detail: fmt.Sprintf("now=%d most=%d (%s)", n.server.Live(), n.capacity.most, n.capacity.origin)}
	if n.capacity.most == 0 {
		c.Detail = fmt.Sprintf("now=%d", n.server.Live())
	}
	if n.server.Full() {
		c.State, c.Detail = admin.Degraded, c.Detail+": who comes is turned away"
	}
	return c
}
