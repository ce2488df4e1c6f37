package loadtest

import (
	"fmt"
	"strings"

	"github.com/limpet-mesh/limpet/loadtest/ledger"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// report says what the books say.
func (v *verification) report() *result.Verify {
	out := &result.Verify{Homes: result.Tally{}, Messages: map[string]*result.Messages{}}
	since := func(stamp int64) int64 { return max(stamp-v.run.start, 0) }
	for _, g := range v.groups {
		r := g.books.Settle(pace.Now(), nil)
		out.Messages[g.name] = messages(r.Messages())
		if r.QoS[0] != (ledger.Counts{}) {
			out.Messages[g.name+"_qos0"] = messages(r.QoS[0])
		}
		for _, a := range r.Anomalies {
			out.Anomalies.Add(result.Anomaly{
				At: since(a.At), Kind: string(a.Kind), Group: g.name, Publisher: a.Publisher, Topic: a.Topic, Subscriber: a.Subscriber,
				QoS: int(a.QoS), Sequence: int64(a.Sequence), To: int64(a.To),
			})
		}
		if g.name == "mesh" {
			addHomes(out, g.homes.Report(), since)
		}
	}
	return out
}

// soFar is what can be told while the run goes on: without lists, and without what only the end shows to be lost.
func (v *verification) soFar() *result.Verify {
	out := &result.Verify{Homes: result.Tally{}, Messages: map[string]*result.Messages{}}
	for _, g := range v.groups {
		out.Messages[g.name] = messages(g.books.Live())
		if g.name == "mesh" {
			h := g.homes.Report()
			h.SessionsLost, h.Moves, h.Disagreements = nil, nil, nil
			addHomes(out, h, nil)
		}
	}
	return out
}

// addHomes tells where the clients of the mesh were.
func addHomes(v *result.Verify, h ledger.HomesReport, since func(int64) int64) {
	v.Clients, v.Connects, v.Reconnects = h.Clients, h.Connects, h.Reconnects
	v.Judged, v.Sticky = h.Judged, h.Sticky
	v.NoHome, v.HomeAway, v.SentAway, v.NotLearned = h.NoHome, h.HomeAway, h.SentAway, h.NotLearned
	v.Homes = result.Tally(h.Brokers)
	v.SessionsLostUnexplained, v.MovesUnexplained = h.SessionsLostUnexplained, h.MovesUnexplained
	for _, s := range h.SessionsLost {
		reason, cause := explain(s.Reason)
		v.SessionsLost.Add(result.Loss{At: since(s.At), Client: s.Client, Broker: s.Broker, Met: s.Met, Reason: reason, Fault: cause})
	}
	for _, m := range h.Moves {
		reason, cause := explain(m.Reason)
		v.Moves.Add(result.Move{At: since(m.At), Client: m.Client, From: m.From, To: m.To, Reason: reason, Fault: cause})
	}
	for _, d := range h.Disagreements {
		detail := fmt.Sprintf("home %q, ", d.Home)
		if d.Topic != "" {
			detail += fmt.Sprintf("by topic %q, ", d.Topic)
		}
		if d.Admin != "" {
			detail += fmt.Sprintf("by the edge %q, ", d.Admin)
		}
		detail += fmt.Sprintf("Session Present %v", d.Present)
		v.Disagreements.Add(result.Disagreement{At: since(d.At), Client: d.Client, Detail: detail})
	}
	// Lists are bounded, counts are not.
	v.SessionsLost.Count, v.Moves.Count, v.Disagreements.Count = h.SessionsLostTotal, h.MovesTotal, h.DisagreementsTotal
}

// explain parts a reason of the ledger's into words and the fault that it names.
func explain(reason string) (words, fault string) {
	if reason == ledger.Unexplained || strings.HasPrefix(reason, meshSaid) {
		return reason, ""
	}
	return "its home was down", reason
}

func messages(c ledger.Counts) *result.Messages {
	return &result.Messages{
		Sent: int64(c.Sent), Acked: int64(c.Acked), Expected: int64(c.Expected), Received: int64(c.Received),
		Lost: int64(c.Lost), LostWithSession: int64(c.LostWithSession),
		Duplicated: int64(c.Duplicated), DuplicatedWithDup: int64(c.DuplicatedWithDup), DuplicatedAfterResend: int64(c.DuplicatedAfterResend),
		Reordered: int64(c.Reordered), Late: int64(c.Late), ReceivedUnacked: int64(c.ReceivedUnacked),
		Unknown: int64(c.Unknown), Forgotten: int64(c.Forgotten),
	}
}
