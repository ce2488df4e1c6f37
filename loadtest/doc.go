// Package loadtest proves what a mesh promises, and what any MQTT endpoint does, from outside: very many clients, an open-loop clock, books
// of every message and of every home, and faults on the way.
//
//	plan := &loadtest.Plan{
//		Endpoints: []string{"mqtt://edge.example", "wss://edge.example/mqtt"},
//		Verify:    &loadtest.Verify{Clients: 3000, Identity: []string{"session-present", "topic"}},
//	}
//	if err := plan.Check(); err != nil { … }
//	res, err := loadtest.Run(ctx, plan, loadtest.Options{})
//	fmt.Println(res.Verify.Stickiness())
//
// Every verb of `limpet loadtest` writes a Plan, and Run interprets it: fleets of clients that connect, subscribe and publish by schedules;
// citizens (Verify) that live many lives and get numbered streams; pairs that race for one client ID (Race).
//
//	pace ──intended times──▶ fleets, citizens, feeders, racers ──▶ client (engine) ──▶ wire ──▶ endpoints
//	                                │                                  mqtt
//	fault ──▶ what is done to them  └──▶ result.Recorder (rates, latencies), ledger (messages, homes) ──▶ report
//
// Latency counts from the time for which an event was intended, not from when it could be done (no coordinated omission); the time from the
// real send is kept beside it. When the generator itself falls behind, the result says so.
//
// It shares no code with the edge: a shared parser would hide shared bugs. It refuses to guess: a message without its header is only counted,
// a broker that no source names is not judged.
package loadtest
