package realtest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/rs/zerolog"

	demobroker "github.com/limpet-mesh/limpet/cmd/limpet/internal/demo/broker"
	"github.com/limpet-mesh/limpet/loadtest"
	"github.com/limpet-mesh/limpet/loadtest/liar"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// The load tester behind a proxy that lies: each lie is found, with the right word and the right number, and where nobody lies it finds
// nothing.
func TestLoadtestCatchesLies(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		lies liar.Lies
		want func(liar.Told) findings
	}{
		"the truth": {liar.Lies{}, func(liar.Told) findings { return findings{} }},
		"astray": {liar.Lies{Astray: 5}, func(told liar.Told) findings {
			return findings{moves: told.Astray}
		}},
		"dropped":    {liar.Lies{Drop: 29}, func(told liar.Told) findings { return findings{lost: told.Dropped} }},
		"duplicated": {liar.Lies{Duplicate: 29}, func(told liar.Told) findings { return findings{duplicated: told.Duplicated} }},
		"swapped":    {liar.Lies{Swap: 29}, func(told liar.Told) findings { return findings{reordered: told.Swapped} }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := lyingMesh(t, liar.Config{Clients: "limpet-citizen-", Topics: "limpet/verify/"})
			l.Set(c.lies)
			p := citizens(l.Addr())
			if c.lies.Drop+c.lies.Duplicate+c.lies.Swap > 0 {
				p.Verify.Lives, p.Verify.Up = 1, 2*time.Second // a connection that ends between a lie and its effect hides it
			}
			v := runPlan(t, p).Verify
			told := l.Told()
			want := c.want(told)
			if (c.lies != liar.Lies{}) && want == (findings{}) {
				t.Fatalf("no lie was told: %+v", told)
			}
			got := found(v)
			if c.lies.Astray != 0 {
				got.lost, got.duplicated, got.reordered = 0, 0, 0 // sessions at two brokers, each with a queue of its own
				if got.moves < want.moves && got.moves+v.NotLearned >= want.moves {
					got.moves = want.moves // a life ended before its broker had said its name
				}
			}
			if got != want {
				t.Errorf("found %+v, want %+v; told %+v\n%+v\n%+v", got, want, told, v, *v.Messages["mesh"])
			}
			if c.lies.Astray == 0 && p.Verify.Lives > 1 {
				if percent, ok := v.Stickiness(); !ok || percent != 100 {
					t.Errorf("stickiness %v %%, of %d", percent, v.Judged)
				}
			} else if v.Judged-v.Sticky != v.MovesUnexplained {
				t.Errorf("%d of %d were sticky, %d were led astray", v.Sticky, v.Judged, told.Astray)
			}
		})
	}
}

// findings are what must be nothing.
type findings struct{ lost, duplicated, reordered, moves int64 }

func found(v *result.Verify) findings {
	m := v.Messages["mesh"]
	return findings{m.Lost, m.Duplicated, m.Reordered, v.MovesUnexplained}
}

// A stall now and then is seen, as lateness and in the latencies.
func TestLoadtestCatchesStalls(t *testing.T) {
	t.Parallel()
	l := lyingMesh(t, liar.Config{Clients: "limpet-citizen-", Topics: "limpet/verify/"})
	l.Set(liar.Lies{Stall: 20, StallFor: 300 * time.Millisecond})
	p := citizens(l.Addr())
	p.Verify.Lives, p.Verify.Up, p.Verify.Late = 1, 2*time.Second, 250*time.Millisecond
	res := runPlan(t, p)
	told, late := l.Told().Stalled, res.Verify.Messages["mesh"].Late
	if told == 0 || late < told {
		t.Errorf("%d late, %d stalls", late, told)
	}
	if worst := res.Latency[result.E2E].Max(); worst < 300*time.Millisecond {
		t.Errorf("end to end %v at most, though %d messages were held up for 300ms", worst, told)
	}
}

// A server that stands still holds up all that was to be sent meanwhile. Who waits for an answer before it sends on sees one slow request;
// who counts from the intended times sees them all.
func TestLoadtestCountsWhatAPauseHoldsUp(t *testing.T) {
	t.Parallel()
	l := lyingMesh(t, liar.Config{})
	p := &loadtest.Plan{
		Verb: "pub", Endpoints: []string{"tcp://" + l.Addr()}, Settle: time.Minute,
		Fleets: []loadtest.Fleet{{
			Clients: 2, Session: loadtest.Session{Clean: true},
			Publish: &loadtest.Publishing{Topic: "pause/%i", QoS: 1, Rate: schedule(t, "200/s for 2s")},
		}},
	}
	pause := time.AfterFunc(time.Second, func() {
		resume := l.Pause()
		time.AfterFunc(time.Second, resume)
	})
	defer pause.Stop()
	res := runPlan(t, p)
	h := &res.Latency[result.Puback]
	if h.Count() != 400 {
		t.Fatalf("%d acknowledged, want 400: errors %v, %q", h.Count(), res.Errors, res.Notes)
	}
	// Up to 200 were to be sent in the pause of a second; all but the last tenth of them waited for longer than 100 ms.
	at := h.Cumulative(100 * time.Millisecond)
	if slow := h.Count() - at[0]; slow < 150 {
		t.Errorf("%d messages took longer than 100ms, want about 180: %v at most", slow, h.Max())
	}
	if h.Max() < 900*time.Millisecond {
		t.Errorf("%v at most, though the pause took a second", h.Max())
	}
}

// lyingMesh is two brokers that share what is published, behind a liar.
func lyingMesh(t *testing.T, conf liar.Config) *liar.Liar {
	t.Helper()
	links := []string{fmt.Sprint("127.0.0.1:", freePort(t)), fmt.Sprint("127.0.0.1:", freePort(t))}
	for i, name := range []string{"b1", "b2"} {
		b, err := demobroker.Start(demobroker.Config{
			Name: name, Listen: "127.0.0.1:0", LinkListen: links[i], Peers: map[string]string{fmt.Sprintf("b%d", 2-i): links[1-i]},
			Logger: zerolog.Nop(),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		conf.Brokers = append(conf.Brokers, fmt.Sprint(b.Addr()))
	}
	l, err := liar.Listen(conf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return l
}

// citizens is a small verification.
func citizens(at string) *loadtest.Plan {
	return &loadtest.Plan{
		Verb: "verify", Endpoints: []string{"tcp://" + at}, Settle: time.Minute, // a run ends as soon as all is there
		Verify: &loadtest.Verify{
			Clients: 40, Lives: 4, Feeders: 4, Up: 600 * time.Millisecond, Down: 100 * time.Millisecond,
			Rate: pace.Spec{}, Identity: []string{"session-present", "topic"},
		},
	}
}

func schedule(t *testing.T, text string) pace.Spec {
	t.Helper()
	s, err := pace.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func runPlan(t *testing.T, p *loadtest.Plan) *result.Result {
	t.Helper()
	if p.Verify != nil && p.Verify.Rate.String() == "" {
		p.Verify.Rate = schedule(t, "150/s")
	}
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	res, err := loadtest.Run(ctx, p, loadtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Interrupted {
		t.Error("it took longer than two minutes")
	}
	return res
}
