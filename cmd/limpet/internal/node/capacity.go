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

// capacityOf is the configured bound or, for 0, what the descriptor limit allows: two descriptors a session, and some for ourselves.
func capacityOf(configured, descriptors int) (capacity, error) {
	room := (descriptors - reservedDescriptors) / 2
	switch {
	case descriptors > 0 && room < 1:
		return capacity{}, fmt.Errorf("the descriptor limit is %d, of which an edge needs %d for itself and two per client: raise it (ulimit -n, LimitNOFILE= of systemd)",
			descriptors, reservedDescriptors)
	case configured > 0:
		c := capacity{most: configured, origin: "limits.connections"}
		if descriptors > 0 && room < configured {
			c.advice = fmt.Sprintf("limits.connections is %d, but the descriptor limit of %d ends at %d clients: raise it (ulimit -n, LimitNOFILE= of systemd)",
				configured, descriptors, room)
		}
		return c, nil
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
