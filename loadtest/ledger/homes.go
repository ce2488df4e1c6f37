package ledger

import (
	"maps"
	"slices"
	"sync"
)

// Presence is what a CONNACK said of the session.
type Presence byte

// The zero Presence says nothing.
const (
	Unasked Presence = iota // a clean start, or a first connect: no session was due
	Kept                    // Session Present
	Gone                    // no Session Present where one was due
)

// A Meeting is what was learned from one accepted connect. Its sources of identity are the session itself, a retained message that
// differs by broker, and the mesh's own word; each may be missing, and those that are there must agree.
type Meeting struct {
	At       int64
	Presence Presence
	Topic    string // the broker's name by a topic; empty: not known
	Admin    string // the broker's name by an edge; empty: not known

	// Clean: the session ends with the connection, so nobody records a home.
	Clean bool

	// Doubt: an earlier connect since the last meeting got no answer. What Presence says is no evidence of the broker's memory then.
	Doubt bool

	// Reason is why the mesh itself sent the client elsewhere, such as the MQTT 5 reason "use another server". Empty: it did not.
	Reason string
}

func (m *Meeting) broker() string {
	if m.Topic != "" {
		return m.Topic
	}
	return m.Admin
}

// Unexplained is the reason of a move, or of a lost session, that no fault and no word of the mesh accounts for.
const Unexplained = "unexplained"

// HomesConfig of a Homes. Zero fields are defaults.
type HomesConfig struct {
	Examples int   // listed of moves, lost sessions and disagreements, each; negative: none
	Grace    int64 // nanoseconds that a broker must have been back for its clients to be judged again
}

// DefaultHomesExamples is how many moves, lost sessions and disagreements are listed, each.
const DefaultHomesExamples = 1000

// Homes records which broker each client met at each connect. A client's home is the broker that it met last. Methods may be called
// from any number of goroutines.
type Homes struct {
	examples int
	grace    int64

	mu      sync.Mutex
	brokers map[string]*station
	left    int64  // when any broker was away last; ongoing if one is
	why     string // of that
	report  HomesReport
	spread  []int64 // clients by the number of brokers that they met
}

// A station is a broker as the faults of the run left it.
type station struct {
	name string
	away bool
	back int64 // when it came back; before all times if it was never away
	why  string
	home int64 // clients that met it last

	died   bool   // its process ended, and it is not back yet
	reborn int64  // when it came back from that
	memory memory // of sessions, since it died last
}

// memory is whether a broker that died has kept its sessions, as clients found.
type memory byte

const (
	unknown memory = iota
	forgot
	kept
)

// A Home is one client's record.
type Home struct {
	Client string
	homes  *Homes

	// Guarded by the lock of homes.
	connects int64
	last     int64      // when it connected last
	recorded bool       // it left a session to come home to
	broker   *station   // met last; nil if no source named it
	met      []*station // each once
}

// A Move is a client that met another broker than its home.
type Move struct {
	Client string `json:"client"`
	From   string `json:"from"`
	To     string `json:"to"`
	At     int64  `json:"at"`
	Reason string `json:"reason"`
}

// A LostSession is a session that was due and not there. Broker is the home that should have had it, Met the one that answered; each is
// empty if no source named it.
type LostSession struct {
	Client string `json:"client"`
	Broker string `json:"broker"`
	Met    string `json:"met"`
	At     int64  `json:"at"`
	Reason string `json:"reason"`
}

// A Disagreement is a connect whose sources of identity contradict each other.
type Disagreement struct {
	Client  string `json:"client"`
	At      int64  `json:"at"`
	Home    string `json:"home"`
	Topic   string `json:"topic"`
	Admin   string `json:"admin"`
	Present bool   `json:"present"`
}

// A HomesReport sums up. Lists are bounded, counts are not.
type HomesReport struct {
	Clients    int64 `json:"clients"`
	Connects   int64 `json:"connects"`
	Reconnects int64 `json:"reconnects"`

	// Of all reconnects, those to judge are the ones of a client with a recorded home that was up, whose broker a source names. The
	// others are counted by why they are not judged.
	Judged     int64 `json:"judged"`
	Sticky     int64 `json:"sticky"`      // of these: met the same broker
	NoHome     int64 `json:"no_home"`     // the last session was clean, or nothing was learned of its broker
	HomeAway   int64 `json:"home_away"`   // the home was away, or back for less than the grace
	SentAway   int64 `json:"sent_away"`   // the mesh itself sent the client to another broker
	NotLearned int64 `json:"not_learned"` // no source told which broker this is

	MovesTotal       int64  `json:"moves_total"`
	MovesUnexplained int64  `json:"moves_unexplained"`
	Moves            []Move `json:"moves"`

	SessionsLostTotal       int64         `json:"sessions_lost_total"`
	SessionsLostUnexplained int64         `json:"sessions_lost_unexplained"`
	SessionsLost            []LostSession `json:"sessions_lost"`

	DisagreementsTotal int64          `json:"disagreements_total"`
	Disagreements      []Disagreement `json:"disagreements"`

	Brokers map[string]int64 `json:"brokers"` // clients by the broker that they met last
	Spread  map[int]int64    `json:"spread"`  // clients by the number of brokers that they ever met
}

// Stickiness is the share, in percent, of the reconnects that were judged and met the same broker. There is none if none was judged.
func (r HomesReport) Stickiness() (percent float64, ok bool) {
	if r.Judged == 0 {
		return 0, false
	}
	return 100 * float64(r.Sticky) / float64(r.Judged), true
}

// NewHomes returns an empty record.
func NewHomes(cfg HomesConfig) *Homes {
	if cfg.Examples == 0 {
		cfg.Examples = DefaultHomesExamples
	}
	return &Homes{examples: max(cfg.Examples, 0), grace: cfg.Grace, brokers: map[string]*station{}, left: never}
}

// never is before all times.
const never = -1 << 63

// Client opens a client's record. Each call makes a new one.
func (h *Homes) Client(id string) *Home {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.report.Clients++
	return &Home{Client: id, homes: h}
}

// Away notes that a broker cannot, or shall not, be met from now on: call it before it is killed, stopped or drained. why is the reason
// that its moves and lost sessions get.
func (h *Homes) Away(broker, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.station(broker)
	s.away, s.why = true, why
	h.left, h.why = ongoing, why
}

// Died notes that a broker that is Away ended, with whatever it held in memory.
func (h *Homes) Died(broker string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.station(broker)
	s.died, s.memory = true, unknown
}

// Back notes that it can be met again: call it after it has answered.
func (h *Homes) Back(broker string, at int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.station(broker)
	s.away, s.back = false, at
	if s.died {
		s.died, s.reborn = false, at
	}
	h.left = at
	for _, other := range h.brokers {
		if other.away {
			h.left = ongoing
		}
	}
}

func (h *Homes) station(name string) *station {
	s := h.brokers[name]
	if s == nil {
		s = &station{name: name, back: never, reborn: never}
		h.brokers[name] = s
	}
	return s
}

// Met notes an accepted connect.
func (c *Home) Met(m Meeting) {
	h := c.homes
	h.mu.Lock()
	defer h.mu.Unlock()
	var now *station
	if name := m.broker(); name != "" {
		now = h.station(name)
	} else if m.Presence == Kept {
		now = c.broker // whoever has the session
	}
	if s := c.broker; s != nil && !m.Doubt && s.reborn >= c.last {
		switch m.Presence {
		case Gone:
			s.memory = forgot
		case Kept:
			s.memory = kept
		}
	}
	h.report.Connects++
	if c.connects > 0 {
		h.report.Reconnects++
		c.judge(&m, now)
	}
	c.compare(&m, now)
	if m.Presence == Gone {
		c.lost(&m, now)
	}
	if now != nil && c.broker != nil && now != c.broker {
		c.moved(&m, now)
	}
	c.arrive(&m, now)
}

// MayBeNew reports whether a session that is present may not be the one that the client left: its home has ended since they met, and
// nobody has found a session kept there. A connect without an answer may have made a new session, without any subscription, which the next
// one finds: no CONNACK tells the two apart.
func (c *Home) MayBeNew() bool {
	c.homes.mu.Lock()
	defer c.homes.mu.Unlock()
	s := c.broker
	return s != nil && (s.died || s.reborn >= c.last) && s.memory != kept
}

// judge decides whether a reconnect counts, and if so, whether it came home. Without names, the session is the only witness: it is
// believed as long as no broker was away meanwhile, which takes sessions with it.
func (c *Home) judge(m *Meeting, now *station) {
	h := c.homes
	r := &h.report
	named := now != nil && c.broker != nil && m.broker() != ""
	came := named && now == c.broker || !named && m.Presence == Kept
	switch {
	case !c.recorded:
		r.NoHome++
	case named && (c.broker.away || m.At-h.grace < c.broker.back), !named && h.left >= c.last:
		r.HomeAway++
	case !named && m.Presence == Unasked:
		r.NotLearned++
	case !came && m.Reason != "":
		r.SentAway++
	default:
		r.Judged++
		if came {
			r.Sticky++
		}
	}
}

func (c *Home) compare(m *Meeting, now *station) {
	elsewhere := m.Presence == Kept && now != nil && c.broker != nil && now != c.broker
	if !elsewhere && (m.Topic == "" || m.Admin == "" || m.Topic == m.Admin) {
		return
	}
	r := &c.homes.report
	r.DisagreementsTotal++
	if len(r.Disagreements) < c.homes.examples {
		r.Disagreements = append(r.Disagreements, Disagreement{
			Client: c.Client, At: m.At, Home: nameOf(c.broker), Topic: m.Topic, Admin: m.Admin, Present: m.Presence == Kept,
		})
	}
}

func (c *Home) lost(m *Meeting, now *station) {
	r := &c.homes.report
	reason := c.reason(m)
	r.SessionsLostTotal++
	if reason == Unexplained {
		r.SessionsLostUnexplained++
	}
	if len(r.SessionsLost) < c.homes.examples {
		r.SessionsLost = append(r.SessionsLost, LostSession{
			Client: c.Client, Broker: nameOf(c.broker), Met: nameOf(now), At: m.At, Reason: reason,
		})
	}
}

func (c *Home) moved(m *Meeting, now *station) {
	r := &c.homes.report
	reason := c.reason(m)
	r.MovesTotal++
	if reason == Unexplained {
		r.MovesUnexplained++
	}
	if len(r.Moves) < c.homes.examples {
		r.Moves = append(r.Moves, Move{Client: c.Client, From: c.broker.name, To: now.name, At: m.At, Reason: reason})
	}
}

// reason is what kept the client from its home since it connected last.
func (c *Home) reason(m *Meeting) string {
	h := c.homes
	switch {
	case m.Reason != "":
		return m.Reason
	case c.broker != nil && (c.broker.away || c.broker.back >= c.last):
		return c.broker.why
	case c.broker == nil && h.left >= c.last:
		return h.why
	}
	return Unexplained
}

// arrive makes the broker met the client's home.
func (c *Home) arrive(m *Meeting, now *station) {
	h := c.homes
	c.connects++
	c.last = m.At
	c.recorded = !m.Clean
	if c.broker != nil {
		c.broker.home--
	}
	c.broker = now
	if now == nil {
		return
	}
	now.home++
	if slices.Contains(c.met, now) {
		return
	}
	c.met = append(c.met, now)
	n := len(c.met)
	for len(h.spread) <= n {
		h.spread = append(h.spread, 0)
	}
	h.spread[n]++
	h.spread[n-1]--
}

func nameOf(s *station) string {
	if s == nil {
		return ""
	}
	return s.name
}

// Report returns what is known so far, as a copy.
func (h *Homes) Report() HomesReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.report
	r.Moves = slices.Clone(r.Moves)
	r.SessionsLost = slices.Clone(r.SessionsLost)
	r.Disagreements = slices.Clone(r.Disagreements)
	r.Brokers, r.Spread = map[string]int64{}, map[int]int64{}
	for s := range maps.Values(h.brokers) {
		if s.home > 0 {
			r.Brokers[s.name] = s.home
		}
	}
	for n, clients := range h.spread {
		if n > 0 && clients > 0 {
			r.Spread[n] = clients
		}
	}
	return r
}
