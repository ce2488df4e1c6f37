// Package failover finds out which brokers are alive, and lets the edges of a
// mesh agree about it.
//
//	agent := failover.New(failover.Config{
//		Edge: registry.Edge{ID: "edge-1"}, Source: cache, Prober: dialer,
//		Store: store, Bus: bus, Log: log,
//	})
//	agent.OnChange(func() { route(agent.Overlay(cache.State())) })
//	go agent.Run(ctx)
//	agent.Doubt(ref, err) // whenever a client's dial failed
//
// Every edge runs one [Agent]. It probes brokers ([Detector] gives the
// judgement hysteresis), and reports its judgements to the store and, which
// is quicker, over the bus. One edge per broker does so by default; the first
// failure anywhere makes all of them look within a second. The edge that leads
// counts the reports ([Judge]) and writes verdicts: down when more than half of
// the edges say so, lost when a pool's rehome_after has passed since, up once
// that majority is gone. Routing reads the verdicts out of the State and
// never asks this package, except for [Agent.Overlay]: while the store is away
// verdicts freeze, and an edge may then decide for itself, under conditions
// that local.go lists.
//
// Decisions (Detector, Judge, Ballot, patrol) are pure: no clock, no lock, no
// goroutine. The rim (monitor, leader, Agent) brings them time and network.
//
// What it refuses to do: believe one edge alone, believe a failure that is
// this process's own, or touch a client. It never moves a key: package
// router does, from verdicts.
package failover
