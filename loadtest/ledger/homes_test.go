package ledger

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestHomes(t *testing.T) {
	const a, b = "a", "b"
	at := func(at int64, p Presence, broker string) Meeting { return Meeting{At: at, Presence: p, Topic: broker} }
	for name, c := range map[string]struct {
		grace int64
		steps func(h *Homes, c *Home)
		want  HomesReport // Clients, Brokers and Spread are not compared
	}{
		"comes home": {
			0, func(_ *Homes, c *Home) {
				c.Met(at(1, Unasked, a))
				c.Met(at(2, Kept, a))
				c.Met(at(3, Kept, a))
			},
			HomesReport{Connects: 3, Reconnects: 2, Judged: 2, Sticky: 2},
		},
		"goes astray": {
			0, func(_ *Homes, c *Home) {
				c.Met(at(1, Unasked, a))
				c.Met(at(2, Gone, b))
				c.Met(at(3, Kept, b))
			},
			HomesReport{
				Connects: 3, Reconnects: 2, Judged: 2, Sticky: 1, MovesTotal: 1, MovesUnexplained: 1,
				Moves:             []Move{{"c", a, b, 2, Unexplained}},
				SessionsLostTotal: 1, SessionsLostUnexplained: 1, SessionsLost: []LostSession{{"c", a, b, 2, Unexplained}},
			},
		},
		"home dies and another takes over": {
			0, func(h *Homes, c *Home) {
				c.Met(at(1, Unasked, a))
				h.Away(a, "killed")
				c.Met(at(2, Gone, b))
				h.Back(a, 3)
				c.Met(at(4, Kept, b))
			},
			HomesReport{
				Connects: 3, Reconnects: 2, Judged: 1, Sticky: 1, HomeAway: 1, MovesTotal: 1,
				Moves:             []Move{{"c", a, b, 2, "killed"}},
				SessionsLostTotal: 1, SessionsLost: []LostSession{{"c", a, b, 2, "killed"}},
			},
		},
		"home restarts with nothing in its memory": {
			0, func(h *Homes, c *Home) {
				c.Met(at(1, Unasked, a))
				h.Away(a, "killed")
				h.Back(a, 3)
				c.Met(at(4, Gone, a))
				c.Met(at(5, Gone, a)) // but this one nobody killed
			},
			HomesReport{
				Connects: 3, Reconnects: 2, Judged: 2, Sticky: 2, SessionsLostTotal: 2, SessionsLostUnexplained: 1,
				SessionsLost: []LostSession{{"c", a, a, 4, "killed"}, {"c", a, a, 5, Unexplained}},
			},
		},
		"home is hardly back": {
			10, func(h *Homes, c *Home) {
				c.Met(at(1, Unasked, a))
				h.Away(a, "stopped")
				h.Back(a, 3)
				c.Met(at(12, Gone, b))
				c.Met(at(13, Gone, a)) // b was never away
			},
			HomesReport{
				Connects: 3, Reconnects: 2, Judged: 1, HomeAway: 1, MovesTotal: 2, MovesUnexplained: 1,
				Moves:             []Move{{"c", a, b, 12, "stopped"}, {"c", b, a, 13, Unexplained}},
				SessionsLostTotal: 2, SessionsLostUnexplained: 1,
				SessionsLost: []LostSession{{"c", a, b, 12, "stopped"}, {"c", b, a, 13, Unexplained}},
			},
		},
		"sent away by the mesh": {
			0, func(_ *Homes, c *Home) {
				c.Met(at(1, Unasked, a))
				c.Met(Meeting{At: 2, Presence: Gone, Topic: b, Reason: "use another server"})
				c.Met(Meeting{At: 3, Presence: Kept, Topic: b, Reason: "use another server"}) // and yet it came home
			},
			HomesReport{
				Connects: 3, Reconnects: 2, Judged: 1, Sticky: 1, SentAway: 1, MovesTotal: 1,
				Moves:             []Move{{"c", a, b, 2, "use another server"}},
				SessionsLostTotal: 1, SessionsLost: []LostSession{{"c", a, b, 2, "use another server"}},
			},
		},
		"clean sessions have no home": {
			0, func(_ *Homes, c *Home) {
				c.Met(Meeting{At: 1, Topic: a, Clean: true})
				c.Met(Meeting{At: 2, Topic: b, Clean: true})
				c.Met(Meeting{At: 3, Topic: b})
				c.Met(Meeting{At: 4, Topic: b, Presence: Kept})
			},
			HomesReport{
				Connects: 4, Reconnects: 3, Judged: 1, Sticky: 1, NoHome: 2, MovesTotal: 1, MovesUnexplained: 1,
				Moves: []Move{{"c", a, b, 2, Unexplained}},
			},
		},
		"only the session tells": {
			0, func(h *Homes, c *Home) {
				c.Met(at(1, Unasked, ""))
				c.Met(at(2, Kept, ""))
				c.Met(at(3, Gone, ""))
				c.Met(at(4, Unasked, "")) // a clean start: nothing to be learned
				h.Away(a, "killed")
				c.Met(at(5, Kept, "")) // some broker is away, whose home may that be
				h.Back(a, 6)
				c.Met(at(7, Gone, ""))
				c.Met(at(8, Kept, ""))
			},
			HomesReport{
				Connects: 7, Reconnects: 6, Judged: 3, Sticky: 2, NotLearned: 1, HomeAway: 2,
				SessionsLostTotal: 2, SessionsLostUnexplained: 1,
				SessionsLost: []LostSession{{"c", "", "", 3, Unexplained}, {"c", "", "", 7, "killed"}},
			},
		},
		"the session tells when names are missing": {
			0, func(_ *Homes, c *Home) {
				c.Met(at(1, Unasked, a))
				c.Met(at(2, Kept, "")) // still a
				c.Met(at(3, Kept, a))
				c.Met(at(4, Kept, ""))
				c.Met(at(5, Unasked, b)) // not a
			},
			HomesReport{
				Connects: 5, Reconnects: 4, Judged: 4, Sticky: 3, MovesTotal: 1, MovesUnexplained: 1,
				Moves: []Move{{"c", a, b, 5, Unexplained}},
			},
		},
		"sources disagree": {
			0, func(_ *Homes, c *Home) {
				c.Met(Meeting{At: 1, Topic: a, Admin: a})
				c.Met(Meeting{At: 2, Topic: a, Admin: b, Presence: Kept})
				c.Met(Meeting{At: 3, Topic: b, Admin: b, Presence: Kept}) // with a session that was elsewhere
				c.Met(Meeting{At: 4, Admin: b, Presence: Kept})
			},
			HomesReport{
				Connects: 4, Reconnects: 3, Judged: 3, Sticky: 2, MovesTotal: 1, MovesUnexplained: 1,
				Moves: []Move{{"c", a, b, 3, Unexplained}}, DisagreementsTotal: 2,
				Disagreements: []Disagreement{{"c", 2, a, a, b, true}, {"c", 3, a, b, b, true}},
			},
		},
		"two brokers are away": {
			0, func(h *Homes, c *Home) {
				c.Met(at(1, Unasked, ""))
				h.Away(a, "killed")
				h.Away(b, "stopped")
				h.Back(a, 2)
				c.Met(at(3, Gone, ""))
			},
			HomesReport{
				Connects: 2, Reconnects: 1, HomeAway: 1, SessionsLostTotal: 1,
				SessionsLost: []LostSession{{"c", "", "", 3, "stopped"}},
			},
		},
	} {
		h := NewHomes(HomesConfig{Grace: c.grace})
		c.steps(h, h.Client("c"))
		got := h.Report()
		got.Clients, got.Brokers, got.Spread = 0, nil, nil
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, c.want)
		}
	}
}

func TestHomesSumUp(t *testing.T) {
	h := NewHomes(HomesConfig{Examples: 2})
	if _, ok := h.Report().Stickiness(); ok {
		t.Error("nobody came, and yet there is stickiness")
	}
	var wg sync.WaitGroup
	for i := range 10 {
		c := h.Client(fmt.Sprint(i))
		wg.Go(func() {
			c.Met(Meeting{At: 1, Topic: "a"})
			if i < 4 {
				c.Met(Meeting{At: 2, Topic: "b", Admin: "x", Presence: Gone})
				c.Met(Meeting{At: 3, Topic: "a", Presence: Kept})
			}
			if i == 0 {
				c.Met(Meeting{At: 4, Topic: "d", Presence: Gone})
			}
		})
	}
	wg.Wait()
	r := h.Report()
	if !maps.Equal(r.Brokers, map[string]int64{"a": 9, "d": 1}) || !maps.Equal(r.Spread, map[int]int64{1: 6, 2: 3, 3: 1}) || r.Clients != 10 {
		t.Errorf("%+v", r)
	}
	if r.MovesTotal != 9 || r.SessionsLostTotal != 5 || r.DisagreementsTotal != 8 || len(r.Moves) != 2 || len(r.SessionsLost) != 2 || len(r.Disagreements) != 2 {
		t.Errorf("%+v", r)
	}
	if p, ok := r.Stickiness(); p != 0 || !ok {
		t.Errorf("%v %%", p)
	}
}

// TestHomesAgainstTheModel: every reconnect is counted in exactly one way, and judged as one that remembers everything would.
func TestHomesAgainstTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := NewHomes(HomesConfig{Grace: rapid.Int64Range(0, 3).Draw(t, "grace")})
		names := []string{"a", "b", "c"}
		type client struct {
			record *Home
			met    []Meeting
		}
		var clients []*client
		for i := range 3 {
			clients = append(clients, &client{record: h.Client(fmt.Sprint(i))})
		}
		up := map[string]int64{"a": -100, "b": -100, "c": -100} // since when; missing: away
		now := int64(0)
		var want HomesReport
		t.Repeat(map[string]func(*rapid.T){
			"connect": func(t *rapid.T) {
				now++
				c := rapid.SampledFrom(clients).Draw(t, "client")
				m := Meeting{At: now, Topic: rapid.SampledFrom(names).Draw(t, "broker"), Clean: rapid.Bool().Draw(t, "clean")}
				want.Connects++
				if len(c.met) > 0 {
					want.Reconnects++
					last := c.met[len(c.met)-1]
					since, isUp := up[last.Topic]
					switch {
					case last.Clean:
						want.NoHome++
					case !isUp || now < since+h.grace:
						want.HomeAway++
					default:
						want.Judged++
						if last.Topic == m.Topic {
							want.Sticky++
						}
					}
					if last.Topic != m.Topic {
						want.MovesTotal++
					}
				}
				c.met = append(c.met, m)
				c.record.Met(m)
			},
			"away": func(t *rapid.T) {
				now++
				name := rapid.SampledFrom(names).Draw(t, "broker")
				delete(up, name)
				h.Away(name, "killed")
			},
			"back": func(t *rapid.T) {
				now++
				name := rapid.SampledFrom(names).Draw(t, "broker")
				up[name] = now
				h.Back(name, now)
			},
			"": func(t *rapid.T) {
				got := h.Report()
				if got.Judged+got.NoHome+got.HomeAway+got.SentAway+got.NotLearned != got.Reconnects {
					t.Fatalf("reconnects that count nowhere, or twice: %+v", got)
				}
				if got.Connects != want.Connects || got.Reconnects != want.Reconnects || got.NoHome != want.NoHome || got.HomeAway != want.HomeAway ||
					got.Judged != want.Judged || got.Sticky != want.Sticky || got.MovesTotal != want.MovesTotal {
					t.Fatalf("\ngot  %+v\nwant %+v", got, want)
				}
				homes, spread := map[string]int64{}, map[int]int64{}
				for _, c := range clients {
					if n := len(c.met); n > 0 {
						homes[c.met[n-1].Topic]++
						distinct := map[string]bool{}
						for _, m := range c.met {
							distinct[m.Topic] = true
						}
						spread[len(distinct)]++
					}
				}
				if !maps.Equal(homes, got.Brokers) || !maps.Equal(spread, got.Spread) {
					t.Fatalf("got %v and %v, want %v and %v", got.Brokers, got.Spread, homes, spread)
				}
			},
		})
	})
}

func TestRaces(t *testing.T) {
	r := NewRaces(2, 2)
	for _, x := range []struct{ id, broker string }{
		{"1", "a"}, {"2", "a"}, {"1", "a"}, {"2", "b"}, // one agrees, one is split
		{"3", ""}, {"3", "a"}, // one is refused
		{"4", "b"}, {"4", "a"}, {"5", "a"}, {"5", "b"}, // split, and one more than is listed
		{"1", "b"}, {"1", "b"}, // again
		{"6", "a"}, // never comes back
	} {
		r.Met(x.id, x.broker)
	}
	got := r.Report()
	want := []Split{{"2", []string{"a", "b"}}, {"4", []string{"a", "b"}}}
	if got.Pairs != 5 || got.Split != 3 || got.Incomplete != 2 || len(r.open) != 1 ||
		!slices.EqualFunc(got.Splits, want, func(x, y Split) bool { return x.Client == y.Client && slices.Equal(x.Brokers, y.Brokers) }) {
		t.Errorf("%+v", got)
	}
	three := NewRaces(3, 1)
	for _, broker := range []string{"a", "", "b"} {
		three.Met("x", broker)
	}
	if got := three.Report(); got.Split != 1 || got.Incomplete != 1 || got.Pairs != 0 {
		t.Errorf("split is split, also if one was refused: %+v", got)
	}
}
