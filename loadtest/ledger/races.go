package ledger

import (
	"slices"
	"sync"
)

// Races records connects of one new client ID at the same instant through different edges: all must meet one broker. Methods may be
// called from any number of goroutines.
type Races struct {
	connects int
	examples int

	mu     sync.Mutex
	open   map[string]*race
	report RacesReport
}

type race struct {
	answers int
	brokers []string // each once
	silent  bool     // an answer named no broker
}

// A Split is an ID that met several brokers.
type Split struct {
	Client  string   `json:"client"`
	Brokers []string `json:"brokers"`
}

// A RacesReport sums up. Splits is bounded, the counts are not.
type RacesReport struct {
	Pairs      int64   `json:"pairs"`      // IDs of which every connect was accepted and named its broker
	Split      int64   `json:"split"`      // IDs that met several brokers, also if another connect failed
	Incomplete int64   `json:"incomplete"` // IDs of which a connect failed, or named no broker, or is still under way
	Splits     []Split `json:"splits"`
}

// NewRaces returns an empty record of races in which each ID connects so many times (2, or more).
func NewRaces(connects, examples int) *Races {
	return &Races{connects: max(connects, 1), examples: examples, open: map[string]*race{}}
}

// Met notes the outcome of one connect: the broker's name, or "" if it was refused or named none. An ID that has all its outcomes is
// forgotten, so it may run again.
func (r *Races) Met(id, broker string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.open[id]
	if x == nil {
		x = &race{}
		r.open[id] = x
	}
	x.answers++
	switch {
	case broker == "":
		x.silent = true
	case !slices.Contains(x.brokers, broker):
		x.brokers = append(x.brokers, broker)
	}
	if x.answers >= r.connects {
		delete(r.open, id)
		r.report.close(id, x, r.examples)
	}
}

func (t *RacesReport) close(id string, x *race, bound int) {
	if x.silent {
		t.Incomplete++
	} else {
		t.Pairs++
	}
	if len(x.brokers) < 2 {
		return
	}
	t.Split++
	if len(t.Splits) < bound {
		slices.Sort(x.brokers)
		t.Splits = append(t.Splits, Split{Client: id, Brokers: x.brokers})
	}
}

// Report returns what is known so far. IDs that still wait for an outcome are incomplete.
func (r *Races) Report() RacesReport {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.report
	t.Splits = slices.Clone(t.Splits)
	t.Incomplete += int64(len(r.open))
	return t
}
