package node

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/admin"
)

// Where a client is an edge tells, and what is recorded of it.
func TestWhereAClientIs(t *testing.T) {
	mesh := write(t, "mesh.yaml", "mesh: test\npools: [{name: default, brokers: [{id: b1, address: \""+serveMQTT(t)+"\"}]}]\n")
	at, _ := start(t, load(t, "store: none\nmesh_file: "+mesh, ""))
	ask := func(query string) (got admin.Clients) {
		t.Helper()
		code, body := get(t, "http://"+at.Admin+"/v1/clients?"+query)
		if err := json.Unmarshal([]byte(body), &got); err != nil || code != 200 {
			t.Fatalf("%d %s: %v", code, body, err)
		}
		return got
	}
	const id = "a/b %00&ü"
	conn := connect(t, at, id)
	query := "key=" + url.QueryEscape(id)
	var got admin.Clients
	for end := time.Now().Add(patience); got.Record == nil || got.Record.Revision == 0; time.Sleep(5 * time.Millisecond) {
		if got = ask(query); time.Now().After(end) {
			t.Fatalf("no record: %+v", got)
		}
	}
	if got.Edge != "e1" || got.Pool != "default" || got.Key != id || len(got.Live) != 1 {
		t.Fatalf("%+v", got)
	}
	if l := got.Live[0]; l.Broker != "b1" || !l.Accepted || l.Why != "placement" || l.Listener != "tcp" || l.Transport != "tcp" || l.Address.String() != conn.LocalAddr().String() {
		t.Errorf("%+v", l)
	}
	if r := got.Record; r.Broker != "b1" || r.Home != "b1" || r.Writer != "e1" || !r.Expires.After(time.Now().Add(time.Hour)) {
		t.Errorf("%+v", r)
	}
	if got := ask(query + "&pool=other"); len(got.Live) != 0 || got.Live == nil || got.Record != nil || got.Pool != "other" {
		t.Errorf("of another pool: %+v", got)
	}
	conn.Close()
	for end := time.Now().Add(patience); len(got.Live) > 0; time.Sleep(5 * time.Millisecond) {
		if got = ask(query); time.Now().After(end) {
			t.Fatalf("still there: %+v", got)
		}
	}
	if got.Record == nil {
		t.Error("the record has gone with the client")
	}
	if code, body := get(t, "http://"+at.Admin+"/v1/clients"); code != 400 || !strings.Contains(body, "key=ID") {
		t.Errorf("without a key: %d %s", code, body)
	}
}
