package edge

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/limpet-mesh/limpet/edge/listen"
	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/router"
)

// Metrics are an edge's counters, in Prometheus' terms: prefix limpet_, base units, no client in any label.
type Metrics struct {
	reg       prometheus.Registerer
	accepts   *prometheus.CounterVec
	rejects   *prometheus.CounterVec
	sessions  *prometheus.CounterVec
	closes    counters[relay.Reason]
	routes    counters[router.Why]
	refusals  counters[router.Refusal]
	resolves  counters[registry.Source]
	commits   *prometheus.CounterVec
	dialFails *prometheus.CounterVec
	moves     prometheus.Counter
	connack   prometheus.Histogram
}

// counters are a CounterVec's of a closed set: looking a label's value up takes longer than counting.
type counters[K label] struct {
	vec   *prometheus.CounterVec
	known map[K]prometheus.Counter
}

type label interface {
	comparable
	String() string
}

// newCounters starts all at zero.
func newCounters[K label](vec *prometheus.CounterVec, all []K) counters[K] {
	c := counters[K]{vec, make(map[K]prometheus.Counter, len(all))}
	for _, k := range all {
		c.known[k] = vec.WithLabelValues(k.String())
	}
	return c
}

func (c counters[K]) inc(k K) {
	n := c.known[k]
	if n == nil {
		n = c.vec.WithLabelValues(k.String())
	}
	n.Inc()
}

// NewMetrics registers an edge's counters with reg. Those of closed sets start at zero, so that a rate can be taken from the first event.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "limpet_edge_" + name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	m := &Metrics{
		reg:      reg,
		accepts:  vec("accepted_total", "Connections accepted (TLS, WebSocket and QUIC: whose handshakes are done).", "listener"),
		rejects:  vec("rejected_total", "Connections that ended before MQTT.", "listener", "reason"),
		sessions: vec("sessions_total", "Sessions that a broker has accepted.", "listener"),
		closes:   newCounters(vec("closed_total", "Sessions closed, by reason.", "reason"), relay.Reasons()),
		routes: newCounters(vec("routes_total", "Brokers chosen, by what chose them.", "why"),
			[]router.Why{router.WhyPin, router.WhyAffinity, router.WhyPlacement, router.WhyRehomed, router.WhyNext}),
		refusals: newCounters(vec("refusals_total", "Clients for whom there was no broker.", "refusal"),
			[]router.Refusal{router.RefusalNoPool, router.RefusalNoBroker, router.RefusalAwaitHome}),
		resolves:  newCounters(vec("resolves_total", "Keys looked up, by what answered.", "source"), registry.Sources[:]),
		commits:   vec("commits_total", "Affinity writes, by outcome.", "outcome"),
		dialFails: vec("dial_failures_total", "Failed dials to brokers.", "pool", "broker", "reason"),
		moves:     prometheus.NewCounter(prometheus.CounterOpts{Name: "limpet_edge_moves_total", Help: "Clients sent away because their key belongs to another broker."}),
		connack: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "limpet_edge_connack_seconds", Help: "From accept to the broker's CONNACK.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
	}
	reg.MustRegister(m.moves, m.connack)
	for _, o := range []string{"committed", "conflict", "stale", "failed"} {
		m.commits.WithLabelValues(o)
	}
	return m
}

// observe registers what is read when it is asked for.
func (m *Metrics) observe(s *Server) {
	gauge := func(name, help string, fn func() float64) {
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "limpet_edge_" + name, Help: help}, fn))
	}
	gauge("connections", "Sessions now, from accept to close.", func() float64 { return float64(s.live.Load()) })
	gauge("connections_max", "Sessions that this edge takes at most; 0 = no bound.", func() float64 { return float64(s.conf.MaxConnections) })
	gauge("routed_connections", "Sessions now that have, or are getting, a broker.", func() float64 { return float64(s.table.count()) })
	gauge("held_bytes", "Memory that clients without a CONNACK take beyond 2 KiB each.", func() float64 { return float64(s.held.Used()) })
	if f := s.loops; f != nil {
		gauge("loops", "Epoll loops now.", func() float64 { return float64(f.number()) })
		m.reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "limpet_edge_loop_busy_seconds_total", Help: "Time in which epoll loops did not wait, of all of them together.",
		}, func() float64 { return f.busy().Seconds() }))
	}
	if lost := s.conf.LogLost; lost != nil {
		m.reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "limpet_edge_log_lines_lost_total", Help: "Lines of the log that were dropped because its reader did not take them in time.",
		}, func() float64 { return float64(lost()) }))
	}
	for _, side := range []relay.Side{relay.Client, relay.Broker} {
		labels := prometheus.Labels{"from": side.String()}
		m.reg.MustRegister(
			prometheus.NewCounterFunc(prometheus.CounterOpts{
				Name: "limpet_edge_received_bytes_total", Help: "Bytes received, by side.", ConstLabels: labels,
			}, func() float64 { return float64(s.counters.Bytes[side].Load()) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts{
				Name: "limpet_edge_received_packets_total", Help: "Whole MQTT packets received, by side.", ConstLabels: labels,
			}, func() float64 { return float64(s.counters.Packets[side].Load()) }),
		)
	}
}

// open creates a listener's counters at zero.
func (m *Metrics) open(listener string) (accepts, sessions prometheus.Counter) {
	for _, r := range listen.Reasons() {
		m.rejects.WithLabelValues(listener, string(r))
	}
	return m.accepts.WithLabelValues(listener), m.sessions.WithLabelValues(listener)
}

func (m *Metrics) rejected(listener, reason string) {
	m.rejects.WithLabelValues(listener, reason).Inc()
}

func (m *Metrics) established(after time.Duration) { m.connack.Observe(after.Seconds()) }
func (m *Metrics) routed(w router.Why)             { m.routes.inc(w) }
func (m *Metrics) refused(r router.Refusal)        { m.refusals.inc(r) }
func (m *Metrics) resolved(s registry.Source)      { m.resolves.inc(s) }
func (m *Metrics) committed(outcome string)        { m.commits.WithLabelValues(outcome).Inc() }
func (m *Metrics) moved()                          { m.moves.Inc() }

func (m *Metrics) dialFailed(ref registry.BrokerRef, reason string) {
	m.dialFails.WithLabelValues(ref.Pool, ref.Broker, reason).Inc()
}

func (m *Metrics) closed(sum relay.Summary) { m.closes.inc(sum.Reason) }
