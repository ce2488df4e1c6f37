package node

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/limpet-mesh/limpet/edge/admin"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/etcdstore"
	"github.com/limpet-mesh/limpet/registry/natsbus"
)

// readiness is what /readyz tells. A store or a bus that is away only degrades an edge: it goes on with what it knows.
func (n *Node) readiness() []admin.Check {
	cs := n.cache.Status()
	st := n.server.State()
	checks := []admin.Check{n.readyPools(st), n.readyClients(), n.readyStore(cs), n.readyBus()}

	as := n.agent.Status()
	mesh := admin.Check{Name: "mesh", Detail: fmt.Sprintf("edges=%d leader=%s registered=%v", len(st.Edges), st.Leader, as.Registered)}
	if !as.Registered {
		mesh.State = admin.Degraded
		if as.Apart != nil {
			mesh.Detail += " error=" + as.Apart.Error()
		}
	}
	checks = append(checks, mesh)

	ws := n.committer.Stats()
	commits := admin.Check{Name: "commits", Detail: fmt.Sprintf("pending=%d", ws.Queued+ws.InFlight)}
	checks = append(checks, commits)
	for _, b := range as.Brokers {
		c := admin.Check{Name: "broker", Detail: fmt.Sprintf("%s/%s verdict=%s since=%s", b.Ref.Pool, b.Ref.Broker, stateOf(b.Verdict), b.Verdict.Since.Format(time.RFC3339))}
		if b.Verdict.Since.IsZero() {
			c.Detail = fmt.Sprintf("%s/%s verdict=%s", b.Ref.Pool, b.Ref.Broker, stateOf(b.Verdict))
		}
		if b.Verdict.Reason != "" {
			c.Detail += " reason=" + b.Verdict.Reason
		}
		if b.Judged && !b.Report.Up {
			c.Detail += " here=down: " + b.Report.Reason
		}
		if s := stateOf(b.Verdict); s != registry.BrokerUp {
			c.State = admin.Degraded
		}
		checks = append(checks, c)
	}
	return checks
}

func stateOf(v registry.Verdict) registry.BrokerState {
	if v.State == "" {
		return registry.BrokerUp
	}
	return v.State
}

func (n *Node) readyPools(st *registry.State) admin.Check {
	c := admin.Check{Name: "pools", Detail: fmt.Sprintf("pools=%d", len(st.Pools))}
	if n.server.Draining() {
		c.State, c.Detail = admin.Failed, "this edge leaves"
		return c
	}
	spoilt := slices.SortedFunc(maps.Keys(st.Unreadable), func(a, b registry.Subject) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Name, b.Name))
	})
	var wrong []string
	for _, l := range n.conf.Listeners {
		if st.Pools[l.Pool] == nil {
			wrong = append(wrong, fmt.Sprintf("listener %s: pool %s is not configured", l.Name, l.Pool))
		}
	}
	if len(st.Pools) == 0 {
		wrong = []string{"no pool is known: the store was never reached, or `limpet apply` has not been called"}
		if slices.ContainsFunc(spoilt, func(about registry.Subject) bool { return about.Kind == registry.KindPool }) {
			wrong = []string{"no pool is known"}
		}
	}
	for i, about := range spoilt {
		if i == maxSpoilt {
			wrong = append(wrong, fmt.Sprintf("%d other values do not read", len(spoilt)-i))
			break
		}
		wrong = append(wrong, spoiltText(st, about))
	}
	if len(st.Former) > 0 {
		wrong = append(wrong, fmt.Sprintf("the store was reset and does not have %s, kept as known: run `limpet apply` with the pools that are wanted, and with --prune to end the others",
			strings.Join(slices.Sorted(maps.Keys(st.Former)), ", ")))
	}
	if len(wrong) > 0 {
		c.State, c.Detail = admin.Degraded, c.Detail+" "+strings.Join(wrong, "; ")
	}
	if len(st.Pools) == 0 {
		c.State, c.Detail = admin.Failed, strings.Join(wrong, "; ")
	}
	return c
}

// maxSpoilt is how many values that do not read are told of one by one: an operator may have pinned thousands of keys.
const maxSpoilt = 10

// spoiltText says what does not read, what stands meanwhile, and what ends that.
func spoiltText(st *registry.State, about registry.Subject) string {
	var what, meanwhile string
	switch ref := (registry.BrokerRef{Pool: about.Pool, Broker: about.Name}); about.Kind {
	case registry.KindPool:
		what, meanwhile = "pool "+about.Name, "what was known of it stands: upgrade this limpet, or run `limpet apply`"
	case registry.KindAdmin:
		what = fmt.Sprintf("the admin state of broker %s/%s", about.Pool, about.Name)
		meanwhile = fmt.Sprintf("it stands as %s: upgrade this limpet, or write or delete that key", st.Admin[ref].State)
		if st.Admin[ref].State == registry.AdminUnknown {
			meanwhile = "no other was seen, and the broker gets no new keys: upgrade this limpet, or write or delete that key"
		}
	case registry.KindVerdict:
		what = fmt.Sprintf("the verdict on broker %s/%s", about.Pool, about.Name)
		meanwhile = fmt.Sprintf("it stands as %s: the leader will write it anew", stateOf(st.Verdicts[ref]))
	default:
		what, meanwhile = fmt.Sprintf("a pin of pool %s", about.Pool), "there is none: upgrade this limpet, or write or delete that key"
		if broker, pinned := st.Pins[registry.PinRef{Pool: about.Pool, Key: about.Name}]; pinned {
			meanwhile = fmt.Sprintf("it stands as one to %s: upgrade this limpet, or write or delete that key", broker)
		}
	}
	u := st.Unreadable[about]
	return fmt.Sprintf("%s does not read (revision %d, %s), %s", what, u.Revision, u.Reason, meanwhile)
}

func (n *Node) readyStore(cs registry.CacheStatus) admin.Check {
	c := admin.Check{Name: "store", Detail: fmt.Sprintf("revision=%d source=%s age=%s affinities=%d provisional=%d",
		cs.Revision, cs.Source, cs.Age.Round(time.Millisecond), cs.Entries, cs.Provisional)}
	if n.conf.Store.None {
		c.Detail = "none"
		return c
	}
	if !cs.Current {
		c.State = admin.Degraded
	}
	if s, ok := n.store.(*etcdstore.Store); ok && s.Ignored() > 0 {
		c.Detail += fmt.Sprintf(" ignored=%d", s.Ignored())
	}
	if cs.Error != "" {
		c.Detail += " error=" + cs.Error
	}
	return c
}

func (n *Node) readyBus() admin.Check {
	c := admin.Check{Name: "bus", Detail: "connected"}
	switch {
	case n.bus == nil:
		c.Detail = "none"
	case !n.bus.Connected():
		c.State, c.Detail = admin.Degraded, "not connected"
		if b, ok := n.bus.(*natsbus.Bus); ok {
			c.Detail += ": " + b.Trouble()
		}
	}
	return c
}

// registerMetrics registers what is read from the parts when it is asked for.
func registerMetrics(n *Node) {
	gauge := func(name, help string, labels prometheus.Labels, fn func() float64) {
		n.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "limpet_" + name, Help: help, ConstLabels: labels}, fn))
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge("cache_revision", "The store's revision that the watch has reached.", nil, func() float64 { return float64(n.cache.Status().Revision) })
	gauge("cache_current", "1 while a key that is missing from the cache is new for sure.", nil, func() float64 { return truth(n.cache.Current()) })
	gauge("cache_age_seconds", "Time since the watch's last word; -1 before the first.", nil, func() float64 {
		if age := n.cache.Status().Age; age >= 0 {
			return age.Seconds()
		}
		return -1
	})
	gauge("cache_affinities", "Affinities kept.", nil, func() float64 { return float64(n.cache.Status().Entries) })
	gauge("cache_provisional", "Affinities known by notice only.", nil, func() float64 { return float64(n.cache.Status().Provisional) })
	gauge("commits_pending", "Affinity writes that wait or are under way.", nil, func() float64 {
		s := n.committer.Stats()
		return float64(s.Queued + s.InFlight)
	})
	gauge("bus_connected", "1 while NATS is in reach.", nil, func() float64 { return truth(n.bus != nil && n.bus.Connected()) })
	gauge("leader", "1 while this edge leads the mesh.", nil, func() float64 { return truth(n.agent.Status().Leader) })
	counter := func(name, help string, labels prometheus.Labels, fn func() uint64) {
		n.metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "limpet_" + name, Help: help, ConstLabels: labels},
			func() float64 { return float64(fn()) }))
	}
	if s, ok := n.store.(*etcdstore.Store); ok {
		counter("store_ignored_total", "Keys and values read from the store that this version could not make sense of.", nil, s.Ignored)
	}
	if b, ok := n.bus.(*natsbus.Bus); ok {
		for outcome, fn := range map[string]func(natsbus.Stats) uint64{
			"sent":     func(s natsbus.Stats) uint64 { return s.Sent },
			"received": func(s natsbus.Stats) uint64 { return s.Received },
			"ignored":  func(s natsbus.Stats) uint64 { return s.Ignored },
			"unsent":   func(s natsbus.Stats) uint64 { return s.Unsent },
			"dropped":  func(s natsbus.Stats) uint64 { return s.Dropped },
		} {
			counter("bus_messages_total", "Messages between edges, by what became of them here.", prometheus.Labels{"outcome": outcome},
				func() uint64 { return fn(b.Stats()) })
		}
	}
	n.metrics.MustRegister(brokerCollector{n})
}

// brokerCollector shows the brokers that are configured now.
type brokerCollector struct{ n *Node }

var brokerUp = prometheus.NewDesc("limpet_broker_up", "1 while the verdict on a broker is up.", []string{"pool", "broker"}, nil)

// Describe implements prometheus.Collector.
func (brokerCollector) Describe(ch chan<- *prometheus.Desc) { ch <- brokerUp }

// Collect implements prometheus.Collector.
func (b brokerCollector) Collect(ch chan<- prometheus.Metric) {
	st := b.n.server.State()
	for _, p := range st.Pools {
		for i := range p.Brokers {
			up := 0.0
			if stateOf(st.Verdicts[registry.BrokerRef{Pool: p.Name, Broker: p.Brokers[i].ID}]) == registry.BrokerUp {
				up = 1
			}
			ch <- prometheus.MustNewConstMetric(brokerUp, prometheus.GaugeValue, up, p.Name, p.Brokers[i].ID)
		}
	}
}
