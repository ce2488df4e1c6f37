package loadtest

import (
	"testing"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/ledger"
)

// TestWhoSentAClientAway: a move that the mesh asked for is not the client's home broken, and no fault of the run either.
func TestWhoSentAClientAway(t *testing.T) {
	for _, code := range []byte{0, 0x8B, 0x9C, 0x9D} {
		cause := client.Cause{Stage: client.StageSession, Reason: client.ReasonDisconnected, Code: code}
		homes := ledger.NewHomes(ledger.HomesConfig{})
		home := homes.Client("c")
		home.Met(ledger.Meeting{At: 1, Topic: "b1"})
		home.Met(ledger.Meeting{At: 2, Topic: "b2", Presence: ledger.Gone, Reason: sentAway(&cause)})
		r := homes.Report()
		if by := code >= 0x9C; (r.SentAway == 1) != by || (r.Judged == 1) == by || (r.MovesUnexplained == 0) != by {
			t.Errorf("%#x: %d sent away, %d judged, %d moves unexplained", code, r.SentAway, r.Judged, r.MovesUnexplained)
			continue
		}
		if words, fault := explain(r.Moves[0].Reason); fault != "" || code == 0x9C && words != "the mesh said: use another server (code 0x9c)" {
			t.Errorf("%#x: %q, fault %q", code, words, fault)
		}
	}
}
