package report

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

// The numbers of the exporter's server.
const (
	readTimeout  = 5 * time.Second
	writeTimeout = 30 * time.Second
	maxHeader    = 8 << 10
	closeTimeout = time.Second // what requests under way get when the run ends
)

// buckets are the bounds of the latencies' histograms.
var buckets = []time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 10 * time.Minute,
}

// A Source returns what a run has found so far; nil if there is nothing yet. It is called from several goroutines.
type Source func() *result.Result

const prefix = "limpet_loadtest_"

// collector makes metrics of a source. Totals are those after the warm-up, and no label is a client's ID.
type collector struct {
	source    Source
	counters  map[result.Counter]*prometheus.Desc
	errors    *prometheus.Desc
	latency   *prometheus.Desc
	connected *prometheus.Desc
	sticky    *prometheus.Desc
	behind    *prometheus.Desc
}

func newCollector(source Source) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, labels, nil)
	}
	c := &collector{
		source: source, counters: map[result.Counter]*prometheus.Desc{},
		errors:    desc("errors_total", "Errors after the warm-up, by reason.", "reason"),
		latency:   desc("latency_seconds", "Latencies after the warm-up; those named .service count from the real sending, the others from the intended one.", "kind"),
		connected: desc("connected", "Clients connected in the last whole second."),
		sticky:    desc("stickiness_ratio", "Judged reconnects that met the client's home broker."),
		behind:    desc("generator_behind", "1 if the load generator does not keep its schedule."),
	}
	for i := result.Counter(0); i < result.Errors; i++ {
		c.counters[i] = desc(i.String()+"_total", "Counter "+i.String()+" of the result, after the warm-up.")
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	r := c.source()
	if r == nil {
		r = result.New()
	}
	for i := result.Counter(0); i < result.Errors; i++ {
		out <- prometheus.MustNewConstMetric(c.counters[i], prometheus.CounterValue, float64(r.Counters[i]))
	}
	for reason, n := range r.Errors {
		// A reason that is no UTF-8 would spoil all metrics.
		if m, err := prometheus.NewConstMetric(c.errors, prometheus.CounterValue, float64(n), reason); err == nil {
			out <- m
		}
	}
	for _, l := range result.Latencies() {
		h := &r.Latency[l]
		below := map[float64]uint64{}
		for i, n := range h.Cumulative(buckets...) {
			below[buckets[i].Seconds()] = uint64(n)
		}
		sum := h.Mean().Seconds() * float64(h.Count())
		out <- prometheus.MustNewConstHistogram(c.latency, uint64(h.Count()), sum, below, l.String())
	}
	gauge := func(d *prometheus.Desc, v float64) { out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	connected := 0.0
	if n := len(r.Series.Rows); n > 0 {
		connected = r.Series.Connected(&r.Series.Rows[n-1])
	}
	gauge(c.connected, connected)
	if p, ok := r.Verify.Stickiness(); ok {
		gauge(c.sticky, p/100)
	}
	behind := 0.0
	if r.Generator.Behind {
		behind = 1
	}
	gauge(c.behind, behind)
}

// An Exporter serves a run's metrics to Prometheus under /metrics.
type Exporter struct {
	ln     net.Listener
	source Source
}

// Listen opens the exporter's address. It starts nothing; Run serves.
func Listen(address string, source Source) (*Exporter, error) {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("report: metrics: %w", err)
	}
	return &Exporter{ln, source}, nil
}

// Addr returns the address that the exporter listens on.
func (e *Exporter) Addr() net.Addr { return e.ln.Addr() }

// Run serves until ctx ends.
func (e *Exporter) Run(ctx context.Context) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(e.source))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	srv := &http.Server{Handler: mux, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, MaxHeaderBytes: maxHeader}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(e.ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("report: metrics: %w", err)
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := srv.Shutdown(closing); err != nil {
		_ = srv.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("report: metrics: %w", err)
	}
	return nil
}
