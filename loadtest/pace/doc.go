// Package pace says when things are to happen, makes them happen then, and tells how late they were.
//
//	spec, err := pace.Parse("ramp 100..1000 over 60s, poisson 1000/s for 30s")
//	p := pace.Pacer{}
//	start := pace.Now() + int64(time.Second)
//	err = p.Run(ctx, start, spec.New(seed), func(i int, intended int64) {
//		connect(i, intended) // measure from intended, not from when this was called
//	})
//	if lag := p.Lag.Stats(); lag.Behind() {
//		fmt.Println("the generator fell behind:", lag)
//	}
//
// A schedule is open-loop: its times are fixed before the run and do not wait for answers. Whoever waits for a slow server before
// asking again measures only the questions that the server let it ask (coordinated omission). So the Pacer never skips and never
// stretches: what is overdue is fired at once, with the time at which it ought to have been fired.
//
// All stamps are nanoseconds of one clock, see Now. Retry curves of real client libraries (Profile) say when a client that lost its
// connection comes back.
//
// Nothing here spins, nothing keeps a list of future times, and a schedule costs the same whether it has ten events or a billion.
package pace
