package config

import (
	"errors"
	"fmt"
	"testing"
)

func TestABrokerMayNotBeTheEdgeItself(t *testing.T) {
	const stored = "mesh: m\nid: e\nstore: {etcd: {endpoints: ['http://h:1']}}\n"
	for _, c := range []struct {
		listener, broker string
		own              bool
	}{
		{`type: tcp, address: "127.0.0.1:1883"`, "127.0.0.1:1883", true},
		{`type: tcp, address: "127.0.0.1:1883"`, "127.0.0.1:1884", false},
		{`type: tcp, address: "127.0.0.1:1883"`, "127.0.0.2:1883", false},
		{`type: ws, address: "localhost:1883"`, "localhost:1883", true},
		{`type: tcp`, "127.0.0.1:1883", true}, // every address of the machine
		{`type: tcp`, "[::1]:1883", true},
		{`type: tcp`, "192.0.2.1:1883", false},
		{`type: tcp`, "mq.example:1883", false},
		{`type: tcp, address: "0.0.0.0:1883"`, "127.0.0.1:1883", true},
		{`type: tcp, address: "0.0.0.0:1883"`, "[::1]:1883", false},
	} {
		e, err := ParseEdge("edge.yaml", []byte(stored+"listeners: [{"+c.listener+"}]\n"))
		if err != nil {
			t.Fatalf("%s: %v", c.listener, err)
		}
		m, err := ParseMesh("mesh.yaml", fmt.Appendf(nil, "mesh: m\npools: [{name: default, brokers: [{id: b, address: %q}]}]\n", c.broker))
		if err != nil {
			t.Fatalf("%s: %v", c.broker, err)
		}
		errs := e.CheckMesh(m)
		if (len(errs) > 0) != c.own {
			t.Errorf("listener {%s}, broker %s: %v", c.listener, c.broker, errs)
			continue
		}
		if c.own {
			if one, ok := errors.AsType[*Error](errs[0]); !ok || one.Field != "listeners[0].address" || one.Pos.Line != 4 {
				t.Errorf("no position: %v", errs[0])
			}
		}
	}
}
