// Package load is the generator: thousands of clients in one process, and what they saw.
//
//	l, err := load.New(load.Target{URL: "mqtts://127.0.0.1:8883", CA: "ca.pem"})
//	go l.Run(ctx)
//	connected, err := l.Connect(ctx, load.Connects{Count: 1000, Rate: 2000, Hold: true})
//	l.Traffic(ctx, 1000)       // publishes a second, from a fixed schedule; or l.Saturate(window)
//	l.Mark(); …; seen := l.Mark()
//	total := l.Stop(ctx)       // all that was sent has to come back
//
// Clients are those of package loadtest/client, due times those of loadtest/pace: latency counts from when a message was due, and a generator
// that falls behind its schedule is found out. Each message tells who sent it, its number and when it was due; what comes back has to be the
// next one of its client.
package load

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// Target is what is loaded, and how.
type Target struct {
	URL     string   `json:"url"`
	CA      string   `json:"ca,omitempty"`
	Sources []string `json:"sources,omitempty"` // local addresses
	Payload int      `json:"payload"`           // bytes, at least 16
}

// Connects says how clients connect.
type Connects struct {
	First   int     `json:"first"` // number of the first one: it is its ID
	Count   int     `json:"count"`
	Rate    float64 `json:"rate"`    // a second; 0: all at once
	Hold    bool    `json:"hold"`    // stay; otherwise DISCONNECT behind the CONNACK
	Tickets bool    `json:"tickets"` // TLS: resume; otherwise tickets are asked for, as clients do, and not used
}

// Connected is what became of them.
type Connected struct {
	Accepted   int              `json:"accepted"`
	Present    int              `json:"present"` // of those, with their session
	Failed     int              `json:"failed"`
	Errors     map[string]int   `json:"errors,omitempty"` // of those that failed
	Handshakes uint64           `json:"handshakes"`
	Resumed    uint64           `json:"resumed"`
	Connack    Latency          `json:"connack"` // from when the connect was due
	Lag        string           `json:"lag"`
	Behind     bool             `json:"behind"`
	hist       result.Histogram // of Connack
}

// Latency is a distribution.
type Latency struct {
	Count int64         `json:"count"`
	P50   time.Duration `json:"p50"`
	P99   time.Duration `json:"p99"`
	P999  time.Duration `json:"p99.9"`
	Max   time.Duration `json:"max"`
}

func latencyOf(h *result.Histogram) Latency {
	return Latency{h.Count(), h.Percentile(50), h.Percentile(99), h.Percentile(99.9), h.Max()}
}

// Seen is what was sent and came back since the last Mark, or the beginning of the traffic.
type Seen struct {
	Sent     int64   `json:"sent"`
	Received int64   `json:"received"`
	Wrong    int64   `json:"wrong"`   // came back changed, twice, out of order, or to somebody else
	Refused  int64   `json:"refused"` // could not be sent
	Lost     int64   `json:"lost"`    // connections that ended
	Latency  Latency `json:"latency"` // from when the message was due; not when saturated, where nothing is due
	Lag      string  `json:"lag,omitempty"`
	Behind   bool    `json:"behind,omitempty"`
}

const (
	stamp      = 16 // bytes of payload: due (8), client (4), number (4)
	topic      = "versus/echo"
	keepAlive  = 900 // seconds: no client pings while it is measured
	shards     = 16  // of the histogram
	patience   = 40 * time.Second
	settlement = 10 * time.Second // how long what was sent may take to come back
)

// Load is a generator.
type Load struct {
	target   Target
	endpoint *wire.Endpoint
	dialers  [2]*wire.Dialer
	engines  [2]*client.Engine // without, with tickets
	devices  map[int]*device
	held     []*device

	window    atomic.Int64 // above 0: saturated
	seen      [shards]shard
	base      Seen
	lost      atomic.Int64
	stop      context.CancelFunc
	pacing    sync.WaitGroup
	pacer     *pace.Pacer
	refused   atomic.Int64
	saturated bool
}

type shard struct {
	mu                    sync.Mutex
	sent, received, wrong int64
	hist                  result.Histogram
	_                     [64]byte // the next one's mutex is in another cache line
}

// New prepares a generator; nothing is opened yet but descriptors of its own.
func New(t Target) (*Load, error) {
	target, err := wire.Parse(t.URL, wire.TCP)
	if err != nil {
		return nil, err
	}
	endpoints, err := wire.Resolve(context.Background(), "ip4", target)
	if err != nil {
		return nil, err
	}
	l := &Load{target: t, endpoint: endpoints[0], devices: map[int]*device{}}
	l.target.Payload = max(t.Payload, stamp)
	for i := range l.engines {
		cfg := wire.Config{Timeout: patience}
		if cfg.TLS, err = tlsConfig(t.CA); err != nil {
			return nil, err
		}
		if i == 0 {
			cfg.TLS.ClientSessionCache = forgetful{}
		}
		for _, s := range t.Sources {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("load: %w", err)
			}
			cfg.Sources = append(cfg.Sources, a)
		}
		if l.dialers[i], err = wire.New(cfg); err != nil {
			return nil, err
		}
		if l.engines[i], err = client.New(client.Config{Dialer: l.dialers[i], DialTimeout: patience, ConnackTimeout: patience}); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// tlsConfig is that of every client: what all the peers can do, so that no one is charged for more. Go would offer X25519MLKEM768 first.
func tlsConfig(ca string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}}
	if ca == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("load: %s holds no certificate", ca)
	}
	return cfg, nil
}

// forgetful makes a client offer to resume, so that the server issues tickets as it does to every client, and never do it.
type forgetful struct{}

func (forgetful) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (forgetful) Put(string, *tls.ClientSessionState)        {}

// Run carries the clients until ctx ends.
func (l *Load) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, len(l.engines))
	for _, e := range l.engines {
		go func() {
			defer cancel()
			errs <- e.Run(ctx)
		}()
	}
	var all []error
	for range l.engines {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// Connect connects clients, and returns when each is connected, or gone again.
func (l *Load) Connect(ctx context.Context, c Connects) (Connected, error) {
	engine, dialer := l.engines[0], l.dialers[0]
	if c.Tickets {
		engine, dialer = l.engines[1], l.dialers[1]
	}
	before := dialer.Stats()
	party := &party{hold: c.Hold, left: c.Count, done: make(chan struct{})}
	var schedule pace.Schedule = pace.Burst(c.Count)
	if c.Rate > 0 {
		schedule = pace.Limit(pace.Constant(c.Rate, 0), c.Count)
	}
	var pacer pace.Pacer
	var failed error
	err := pacer.Run(ctx, pace.Now(), schedule, func(i int, due int64) {
		d := l.device(c.First + i)
		d.party, d.due, d.accepted = party, due, false
		con := mqtt.Connect{Version: mqtt.V311, ID: d.id, KeepAlive: keepAlive}
		if err := engine.Open(&d.client, l.endpoint, &con); err != nil {
			failed = errors.Join(failed, err)
			party.leave(1, err.Error())
		}
	})
	if err != nil {
		return Connected{}, err
	}
	select {
	case <-party.done:
	case <-ctx.Done():
		return Connected{}, context.Cause(ctx)
	}
	party.mu.Lock()
	defer party.mu.Unlock()
	after, lag := dialer.Stats(), pacer.Lag.Stats()
	r := party.result
	r.Connack = latencyOf(&r.hist)
	r.Handshakes, r.Resumed = after.Handshakes-before.Handshakes, after.Resumed-before.Resumed
	r.Lag, r.Behind = lag.String(), c.Rate > 0 && lag.Behind()
	return r, failed
}

func (l *Load) device(i int) *device {
	d := l.devices[i]
	if d == nil {
		d = &device{load: l, index: uint32(i), id: fmt.Sprintf("versus-%07d", i)}
		d.client.Handler = d
		d.payload = make([]byte, l.target.Payload)
		for k := range d.payload[stamp:] {
			d.payload[stamp+k] = byte('a' + k%26)
		}
		binary.LittleEndian.PutUint32(d.payload[8:], d.index)
		l.devices[i] = d
	}
	return d
}
