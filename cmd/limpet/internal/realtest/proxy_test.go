package realtest

import (
	"encoding/json"
	"fmt"
	"net"
	"testing"
)

// brokersSeeAddresses compares the client's own address with the one that the broker shows, by every transport.
func brokersSeeAddresses(t *testing.T, m *mesh) {
	for _, transport := range transports {
		id := "seen-" + transport
		c, _, err := connectV5(m.edges[1], transport, options{id: id})
		if err != nil {
			t.Fatal(err)
		}
		// $SYS is each broker's own: the session asks its own broker.
		if err := c.subscribe("$SYS/broker/sessions/"+id, 0); err != nil {
			t.Fatal(err)
		}
		// A UDP socket that has dialed does not say more than its port.
		_, port, _ := net.SplitHostPort(c.(*pahoV5).conn.LocalAddr().String())
		want := "127.0.0.1:" + port
		until(t, patience, fmt.Sprintf("%s is seen as %s", id, want), func() (bool, any) {
			got := c.inbox().messages()
			var status struct{ Remote string }
			return len(got) > 0 && json.Unmarshal([]byte(got[len(got)-1].payload), &status) == nil && status.Remote == want, got
		})
		c.leave()
	}
}
