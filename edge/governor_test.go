package edge

import (
	"context"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// phase is shares that last for some seconds.
type phase struct {
	seconds int
	shares  []float64
}

func TestGovernor(t *testing.T) {
	one, four := governor{least: 1, most: 4}, governor{least: 4, most: 4}
	for _, c := range []struct {
		name string
		g    governor
		load []phase
		want string // a letter a second: ., + grow, - shrink, = level
	}{
		{"nothing to do", one, []phase{{5, []float64{0}}}, "....."},
		{"no more than one can do", one, []phase{{5, []float64{.6}}}, "....."},
		{"too much for one", one, []phase{{5, []float64{.61}}}, ".+.+."},
		{"for a second", one, []phase{{1, []float64{.9}}, {1, []float64{.5}}, {1, []float64{.9}}, {1, []float64{.5}}}, "...."},
		{"too much for three", one, []phase{{3, []float64{.6, .7, .6}}}, ".+."},
		{"on average no more than they can do", one, []phase{{3, []float64{.5, .7, .55}}}, "..."},
		{"too much for all", one, []phase{{9, []float64{1, 1, 1, 1}}}, "........."},
		{"a fixed number", four, []phase{{3, []float64{1, 1, 1, 1}}, {62, []float64{0, 0, 0, 0}}}, strings.Repeat(".", 65)},
		{"a fixed number of one", governor{least: 1, most: 1}, []phase{{9, []float64{1}}}, "........."},
		{"one would do", one, []phase{{61, []float64{.17, .17}}}, strings.Repeat(".", 59) + "-."},
		{"one would hardly do", one, []phase{{70, []float64{.18, .18}}}, strings.Repeat(".", 70)},
		{"three would do", one, []phase{{60, []float64{.2, .3, .3, .2}}}, strings.Repeat(".", 59) + "-"},
		{"one would have done nearly all the time", one, []phase{{59, []float64{.1, .1}}, {1, []float64{.3, .3}}, {59, []float64{.1, .1}}}, strings.Repeat(".", 119)},
		{"the last one stays", one, []phase{{70, []float64{0}}}, strings.Repeat(".", 70)},
		{"unlike", four, []phase{{4, []float64{.5, .3, .3, .24}}}, "..=."},
		{"not very unlike", four, []phase{{9, []float64{.5, .3, .3, .26}}}, "........."},
		{"unlike for two seconds", four, []phase{{2, []float64{.9, .1, .1, .1}}, {1, []float64{.3, .3, .3, .3}}, {2, []float64{.9, .1, .1, .1}}}, "....."},
		{"unlike whatever is done", four, []phase{{93, []float64{.9, .1, .1, .1}}}, "..=" + strings.Repeat(".", 5) + "=" + strings.Repeat(".", 11) + "=" + strings.Repeat(".", 23) + "=" + strings.Repeat(".", 47) + "="},
		{"unlike again", four, []phase{{3, []float64{.9, .1, .1, .1}}, {1, []float64{.3, .3, .3, .3}}, {3, []float64{.9, .1, .1, .1}}}, "..=...="},
		{"unlike, and too few", one, []phase{{3, []float64{.9, .4}}}, ".+."},
		{"none at all", one, []phase{{3, nil}}, "..."},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := c.g
			var got strings.Builder
			for _, p := range c.load {
				loads := make([]load, len(p.shares))
				for i, s := range p.shares {
					loads[i] = load{s, 100}
				}
				for range p.seconds {
					got.WriteByte(".+-="[g.judge(time.Second, loads)])
				}
			}
			if got.String() != c.want {
				t.Errorf("\n%s, want\n%s", got.String(), c.want)
			}
		})
	}
}

func TestEven(t *testing.T) {
	for _, c := range []struct {
		name  string
		loads []load
		want  []transfer
	}{
		{"none", nil, nil},
		{"one", []load{{.9, 10}}, nil},
		{"alike", []load{{.5, 10}, {.5, 10}}, nil},
		{"idle", []load{{0, 10}, {0, 10}}, nil},
		{"a new one", []load{{.8, 1000}, {0, 0}}, []transfer{{0, 1, 500}}},
		{"a new one beside two", []load{{.6, 300}, {.6, 600}, {0, 0}}, []transfer{{0, 2, 100}, {1, 2, 200}}},
		{"in proportion to the share, not to the number", []load{{.9, 100}, {.3, 900}}, []transfer{{0, 1, 33}}},
		{"one for two", []load{{.3, 10}, {.9, 90}, {.3, 10}}, []transfer{{1, 2, 20}, {1, 0, 20}}},
		{"a session that cannot be parted", []load{{.9, 1}, {0, 0}}, nil},
		{"two that can", []load{{.9, 2}, {0, 0}}, []transfer{{0, 1, 1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := even(c.loads)
			if len(got) != len(c.want) {
				t.Fatalf("%v, want %v", got, c.want)
			}
			for i, w := range c.want {
				if got[i] != w {
					t.Errorf("%v, want %v", got, c.want)
				}
			}
		})
	}
	// Whatever the loads: afterwards they are alike but for what is rounded down in each transfer, and nobody both gives and takes.
	for seed := range uint64(500) {
		rnd := rand.New(rand.NewPCG(seed, 6))
		loads := make([]load, 2+rnd.IntN(7))
		for i := range loads {
			loads[i] = load{rnd.Float64(), 1 + rnd.IntN(1000)}
		}
		after, off := make([]float64, len(loads)), 0.0
		gives, takes := map[int]int{}, map[int]bool{}
		for i, l := range loads {
			after[i] = l.share
			off = max(off, l.share/float64(l.sessions)*float64(len(loads)))
		}
		for _, x := range even(loads) {
			each := loads[x.from].share / float64(loads[x.from].sessions)
			after[x.from] -= each * float64(x.sessions)
			after[x.to] += each * float64(x.sessions)
			gives[x.from] += x.sessions
			takes[x.to] = true
		}
		for i, l := range loads {
			if gives[i] > l.sessions || gives[i] > 0 && takes[i] || math.Abs(after[i]-mean(loads)) > off {
				t.Errorf("seed %d: %v by %v are %v", seed, loads, even(loads), after)
				break
			}
		}
	}
}

// model is loops whose sessions are all alike.
type model struct {
	t     *testing.T
	began time.Time
	total func(since time.Duration) float64 // what a single loop would have to do, were it quick enough
	noise *rand.Rand

	mu       sync.Mutex
	sessions []int
	changes  []time.Duration // of the number
	refuse   bool            // another loop cannot be had
}

func (m *model) loads(time.Duration) (all []load) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := 0
	for _, n := range m.sessions {
		sum += n
	}
	total := m.total(time.Since(m.began)) * (.95 + m.noise.Float64()/10)
	for _, n := range m.sessions {
		all = append(all, load{min(1, total*float64(n)/float64(sum)), n})
	}
	return all
}

func (m *model) grow(float64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse {
		return false
	}
	m.sessions = append(m.sessions, 0)
	m.changes = append(m.changes, time.Since(m.began))
	return true
}

func (m *model) shrink(retires, heir int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions[heir] += m.sessions[retires]
	m.sessions = append(m.sessions[:retires], m.sessions[retires+1:]...)
	m.changes = append(m.changes, -time.Since(m.began))
}

func (m *model) give(all []transfer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range all {
		m.sessions[x.from] -= x.sessions
		m.sessions[x.to] += x.sessions
	}
	for _, n := range m.sessions {
		if n < 0 {
			m.t.Errorf("sessions: %v", m.sessions)
		}
	}
}

// A day of an edge: the number follows the load, once in each direction, and all loops have as much to do.
func TestTheNumberFollowsTheLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &model{t: t, began: time.Now(), sessions: []int{10_000}, noise: rand.New(rand.NewPCG(1, 1))}
		m.total = func(since time.Duration) float64 {
			switch {
			case since < time.Minute:
				return .3
			case since < 10*time.Minute:
				return 1.7
			case since < 20*time.Minute:
				return .5
			}
			return .01
		}
		g := governor{least: 1, most: 8}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { g.govern(ctx, m); close(ended) }()
		at := func(since time.Duration, loops int) {
			t.Helper()
			time.Sleep(since - time.Since(m.began))
			synctest.Wait()
			m.mu.Lock()
			defer m.mu.Unlock()
			if len(m.sessions) != loops {
				t.Errorf("after %v: %d loops, want %d; it changed at %v", since, len(m.sessions), loops, m.changes)
			}
			lowest, highest, sum := 1<<30, 0, 0
			for _, n := range m.sessions {
				lowest, highest, sum = min(lowest, n), max(highest, n), sum+n
			}
			if sum != 10_000 {
				t.Errorf("after %v: %v", since, m.sessions)
			}
			if share := m.total(since) * float64(highest-lowest) / 10_000; share > apartAbove {
				t.Errorf("after %v: loops are %.2f apart: %v", since, share, m.sessions)
			}
		}
		at(59*time.Second, 1)
		at(70*time.Second, 3) // at 1.7 two have .85 each, three .57
		at(9*time.Minute, 3)
		at(10*time.Minute+50*time.Second, 3)
		at(11*time.Minute+10*time.Second, 2) // at .5, two would have .25 each; one alone would have .5
		at(19*time.Minute, 2)
		at(22*time.Minute, 1)
		at(24*time.Hour, 1)
		cancel()
		<-ended
		if len(m.changes) != 4 {
			t.Errorf("changes: %v", m.changes)
		}
	})
}

// Where another loop cannot be had, it is asked for again, and the others go on.
func TestAGovernorThatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &model{t: t, began: time.Now(), sessions: []int{10}, refuse: true, noise: rand.New(rand.NewPCG(1, 1)), total: func(time.Duration) float64 { return .9 }}
		g := governor{least: 1, most: 2}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { g.govern(ctx, m); close(ended) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		m.mu.Lock()
		m.refuse = false
		m.mu.Unlock()
		time.Sleep(5 * time.Second)
		cancel()
		<-ended
		if len(m.sessions) != 2 || m.sessions[1] != 5 {
			t.Errorf("sessions: %v", m.sessions)
		}
	})
}
