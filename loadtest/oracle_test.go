package loadtest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestOracle(t *testing.T) {
	edge := func(live map[string]string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v1/clients" || r.URL.Query().Get("pool") != "p" {
				http.NotFound(w, r)
				return
			}
			var all []string
			for b := range strings.FieldsSeq(live[r.URL.Query().Get("key")]) {
				all = append(all, fmt.Sprintf(`{"broker":%q,"accepted":true}`, b))
			}
			fmt.Fprintf(w, `{"edge":"e","live":[%s]}`, strings.Join(all, ","))
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	o := newOracle(t.Context(), []string{
		edge(map[string]string{"a": "b1", "two edges": "b1", "two brokers": "b1", "half-open": "b2 b2"}), gone.URL,
		edge(map[string]string{"b/+ #": "b2", "two edges": "b1", "two brokers": "b2"}) + "/",
	}, "p")
	for client, want := range map[string]string{"a": "b1", "b/+ #": "b2", "two edges": "b1", "two brokers": "", "half-open": "b2", "nobody": ""} {
		answer := make(chan string, 1)
		if !o.ask(client, func(broker string) { answer <- broker }) {
			t.Fatal("no room for a question")
		}
		select {
		case got := <-answer:
			if got != want {
				t.Errorf("%s is at %q, want %q", client, got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no answer about %s", client)
		}
	}
	o.close()
}
