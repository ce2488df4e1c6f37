package edge

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/registry"
)

// Why nobody could be reached is said in the line of the client's session: where no probe looks, nothing else says it.
func TestWhyABrokerCouldNotBeReached(t *testing.T) {
	listen := func() (net.Listener, string) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln, ln.Addr().String()
	}
	closed, refusing := listen()
	closed.Close()
	_, silent := listen() // the kernel accepts, nobody answers
	serve := func(word string) string {
		ln, at := listen()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, word)
				c.(*net.TCPConn).CloseWrite()
				go func() {
					defer c.Close()
					io.Copy(io.Discard, c)
				}()
			}
		}()
		return at
	}
	hangsUp, greets := serve(""), serve("220 welcome\r\n")
	for name, c := range map[string]struct {
		timeout time.Duration // of the whole connect
		broker  registry.Broker
		reason  string
		counts  string // of limpet_edge_dial_failures_total
		says    []string
	}{
		"refused":    {0, registry.Broker{Address: refusing}, "dial_failed", "refused", []string{"broker b at " + refusing, "connection refused"}},
		"no TLS":     {0, registry.Broker{Address: greets, Transport: registry.TransportTLS}, "dial_failed", "tls", []string{"broker b", greets, "first record"}},
		"silent TLS": {0, registry.Broker{Address: silent, Transport: registry.TransportTLS}, "dial_failed", "timeout", []string{"broker b", silent}},
		"no name":    {0, registry.Broker{Address: "nobody.invalid:1883"}, "dial_failed", "dns", []string{"broker b at nobody.invalid:1883"}},
		"bad CA": {
			0,
			registry.Broker{Address: hangsUp, Transport: registry.TransportTLS, TLS: registry.BrokerTLS{CA: "/nowhere/ca.pem"}},
			"dial_failed", "config",
			[]string{"broker b", "/nowhere/ca.pem"},
		},
		"no time":  {500 * time.Millisecond, registry.Broker{Address: silent, Transport: registry.TransportTLS}, "dial_failed", "timeout", []string{"broker b", silent}},
		"hangs up": {0, registry.Broker{Address: hangsUp}, "broker_closed", "", []string{"broker b: it hung up on the CONNECT"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, "b1")
			e := m.edge("e1")
			c.broker.ID = "b"
			m.pool.Brokers = []registry.Broker{c.broker}
			m.pool.DialTimeout, m.pool.ConnectTimeout = time.Second, c.timeout
			m.putPool(e.State().Pools["default"].Revision)
			eventually(t, "the broker is known", func() (bool, any) {
				p := e.State().Pools["default"]
				return p.Brokers[0].ID == "b", p
			})
			s, ack := e.connect(&mqtt.Connect{Version: mqtt.V5, ClientID: []byte("x"), CleanStart: true, KeepAlive: 60})
			if ack.Code != mqtt.ServerUnavailable {
				t.Errorf("CONNACK %#x", ack.Code)
			}
			s.ends()
			e.logged(append(c.says, `"reason":"`+c.reason+`"`)...)
			if c.counts != "" {
				if n := e.count("limpet_edge_dial_failures_total", "b", "default", c.counts); n != 1 {
					t.Errorf("%v dials counted as %s", n, c.counts)
				}
			}
			if strings.Count(e.log.String(), "broker broker") > 0 {
				t.Error(e.log.String())
			}
		})
	}
}
