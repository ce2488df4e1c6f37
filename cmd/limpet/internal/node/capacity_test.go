package node

import (
	"net"
	"strings"
	"testing"
)

func TestCapacity(t *testing.T) {
	for _, c := range []struct {
		configured, descriptors int
		most                    int
		origin, advice          string // parts
	}{
		{0, 0, 0, "no limit", ""},
		{0, 1 << 20, (1<<20 - 256) / 2, "descriptor limit 1048576", ""},
		{0, 1024, 384, "descriptor limit 1024", "allows 384 clients only"},
		{0, 258, 1, "descriptor limit 258", "allows 1 clients only"},
		{500, 0, 500, "limits.connections", ""},
		{500, 1 << 20, 500, "limits.connections", ""},
		{500, 1024, 384, "descriptor limit 1024", "is 500, but the descriptor limit of 1024 allows 384 clients only"},
	} {
		got, err := capacityOf(c.configured, c.descriptors)
		if err != nil || got.most != c.most || got.origin != c.origin || !strings.Contains(got.advice, c.advice) || (c.advice == "") != (got.advice == "") {
			t.Errorf("%d configured, %d descriptors: %+v, %v", c.configured, c.descriptors, got, err)
		}
	}
	for _, configured := range []int{0, 10} {
		if c, err := capacityOf(configured, 257); err == nil || !strings.Contains(err.Error(), "ulimit -n") {
			t.Errorf("257 descriptors: %+v, %v", c, err)
		}
	}
}

// An edge that is full says so where operators look, and is well again when somebody leaves.
func TestAFullEdgeSaysSo(t *testing.T) {
	mesh := write(t, "mesh.yaml", "mesh: test\npools: [{name: default, brokers: [{id: b1, address: \""+serveMQTT(t)+"\"}]}]\n")
	at, _ := start(t, load(t, "store: none\nmesh_file: "+mesh, "limits: {connections: 2}"))
	until(t, at, 200, "clients    ok", "now=0 most=2 (limits.connections)")
	connect(t, at, "a")
	last := connect(t, at, "b")
	until(t, at, 200, "clients    degraded", "now=2 most=2", "turned away")
	third, err := net.Dial("tcp", at.Listeners["tcp"])
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if n, err := third.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes for one too many", n)
	}
	if _, body := get(t, "http://"+at.Admin+"/metrics"); !strings.Contains(body, "limpet_edge_connections_max 2\n") {
		t.Error("the metric of the bound is missing")
	}
	last.Close()
	until(t, at, 200, "clients    ok", "now=1 most=2")
}
