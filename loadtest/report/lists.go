package report

import (
	"fmt"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

// A list is a bounded list of a result as rows of text.
type list struct {
	Title string
	Head  []string
	Rows  [][]string
	Count int64
}

// lists returns all lists of what was proven.
func lists(r *result.Result) []list {
	at := func(ns int64) string { return clock(time.Duration(ns)) }
	because := func(reason, fault string) string {
		if fault == "" {
			return reason
		}
		if reason == "" {
			return fault
		}
		return reason + " (" + fault + ")"
	}
	var all []list
	if v := r.Verify; v != nil {
		lost := list{Title: "Sessions lost", Head: []string{"at", "client", "broker", "met", "why"}, Count: v.SessionsLost.Count}
		for _, e := range v.SessionsLost.Entries {
			lost.Rows = append(lost.Rows, []string{at(e.At), e.Client, e.Broker, e.Met, because(e.Reason, e.Fault)})
		}
		moves := list{Title: "Moves", Head: []string{"at", "client", "from", "to", "why"}, Count: v.Moves.Count}
		for _, e := range v.Moves.Entries {
			moves.Rows = append(moves.Rows, []string{at(e.At), e.Client, e.From, e.To, because(e.Reason, e.Fault)})
		}
		odd := list{
			Title: "Messages that did not arrive as they should", Count: v.Anomalies.Count,
			Head: []string{"at", "what", "group", "publisher", "topic", "subscriber", "QoS", "number"},
		}
		for _, e := range v.Anomalies.Entries {
			number := fmt.Sprint(e.Sequence)
			if e.To > e.Sequence {
				number += fmt.Sprintf("–%d", e.To)
			}
			odd.Rows = append(odd.Rows, []string{at(e.At), e.Kind, e.Group, e.Publisher, e.Topic, e.Subscriber, fmt.Sprint(e.QoS), number})
		}
		doubt := list{Title: "Contradictions about the broker", Head: []string{"at", "client", "what"}, Count: v.Disagreements.Count}
		for _, e := range v.Disagreements.Entries {
			doubt.Rows = append(doubt.Rows, []string{at(e.At), e.Client, e.Detail})
		}
		all = append(all, lost, moves, odd, doubt)
	}
	if x := r.Race; x != nil {
		split := list{Title: "IDs that ended on two brokers", Head: []string{"at", "client", "brokers"}, Count: x.Splits.Count}
		for _, e := range x.Splits.Entries {
			split.Rows = append(split.Rows, []string{at(e.At), e.Client, e.Brokers})
		}
		all = append(all, split)
	}
	return all
}

// sweepRows are the lines of the table of a sweep, its head first.
func sweepRows(s *result.Sweep) [][]string {
	rows := [][]string{{"rate a second", "achieved", "p50", "p99", "max", s.Objective}}
	for _, x := range s.Steps {
		kept := "kept"
		if !x.Kept {
			kept = "broken"
		}
		if x.Behind {
			kept = "generator behind"
		}
		rows = append(rows, []string{
			rate(x.Rate), rate(x.Achieved), brief(x.P50.Duration()), brief(x.P99.Duration()), brief(x.Max.Duration()), kept,
		})
	}
	return rows
}
