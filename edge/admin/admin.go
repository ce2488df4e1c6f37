// Package admin is an edge's side for operators: health endpoints, metrics and who is where, on an address of its own.
//
//	srv, err := admin.Listen("127.0.0.1:9883")
//	err = srv.Run(ctx, admin.Handler(admin.Config{Ready: ready, Metrics: gatherer}))
//
// /livez says that the process turns. It depends on nothing: a store that is away is no reason to kill an edge. /readyz says whether
// clients should be sent here: 200 also while the edge serves from what it knows without a store ("degraded"), 503 while it has no
// brokers to send anybody to, or leaves. With ?verbose each check has its line. /metrics is Prometheus'.
// /v1/clients?key=ID tells, as JSON, where the clients of a key are connected through this edge, and what this edge knows of its record.
//
// What it refuses to do: change anything. Its address is a loopback one unless the configuration says otherwise.
package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The numbers of the admin server.
const (
	readTimeout  = 5 * time.Second
	writeTimeout = 30 * time.Second
	maxHeader    = 8 << 10
	// closeTimeout is what requests under way get when the edge ends.
	closeTimeout = time.Second
)

// State is a check's outcome.
type State int

const (
	OK       State = iota
	Degraded       // serves, with something missing
	Failed         // does not serve
)

func (s State) String() string {
	switch s {
	case OK:
		return "ok"
	case Degraded:
		return "degraded"
	}
	return "failed"
}

// Check is one line of /readyz?verbose.
type Check struct {
	Name   string
	State  State
	Detail string
}

// Config says what the handler shows.
type Config struct {
	// Ready returns the checks of readiness, in the order in which they are shown.
	Ready func() []Check
	// Metrics are what /metrics shows.
	Metrics prometheus.Gatherer
	// Clients answers /v1/clients.
	Clients func(pool, key string) Clients
}

// Clients is what an edge knows of one key. It does not ask the other edges, nor the store.
type Clients struct {
	Edge   string   `json:"edge"`
	Pool   string   `json:"pool"`
	Key    string   `json:"key"`
	Live   []Client `json:"live"`             // through this edge, the newest first
	Record *Record  `json:"record,omitempty"` // of the key's affinity; absent: none is known here
}

// Client is one live client.
type Client struct {
	Broker    string         `json:"broker"`
	Accepted  bool           `json:"accepted"` // the broker has accepted its CONNECT
	Why       string         `json:"why"`      // it was sent there: pin, affinity, placement, rehomed, next
	Listener  string         `json:"listener"`
	Transport string         `json:"transport"`
	Address   netip.AddrPort `json:"client_address"`
}

// Record is an affinity.
type Record struct {
	Broker   string    `json:"broker"`
	Home     string    `json:"home"`
	Writer   string    `json:"writer"` // the edge that wrote it
	Written  time.Time `json:"written"`
	Expires  time.Time `json:"expires"`
	Reason   string    `json:"reason"`
	Revision int64     `json:"revision"` // of the store; 0 = told by another edge, and not seen there yet
}

// defaultPool is asked about where the request names none: a mesh of one pool calls it that.
const defaultPool = "default"

// Handler serves the endpoints.
func Handler(c Config) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		text(w, http.StatusOK, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		worst := OK
		var lines strings.Builder
		for _, check := range c.Ready() {
			worst = max(worst, check.State)
			fmt.Fprintf(&lines, "%-10s %-9s %s\n", check.Name, check.State, check.Detail)
		}
		code := http.StatusOK
		if worst == Failed {
			code = http.StatusServiceUnavailable
		}
		body := worst.String() + "\n"
		if r.URL.Query().Has("verbose") {
			body = lines.String() + body
		}
		text(w, code, body)
	})
	mux.HandleFunc("GET /v1/clients", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if !q.Has("key") {
			text(w, http.StatusBadRequest, "expected /v1/clients?key=ID, or ?pool=POOL&key=ID\n")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = json.NewEncoder(w).Encode(c.Clients(cmp.Or(q.Get("pool"), defaultPool), q.Get("key")))
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.Metrics, promhttp.HandlerOpts{}))
	return mux
}

func text(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	fmt.Fprint(w, body)
}

// Server is an open admin address.
type Server struct{ ln net.Listener }

// Listen opens the address. The error is one line that says what to do.
func Listen(address string) (*Server, error) {
	ln, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("admin: %s is in use: stop what listens there or give admin.address another port", address)
	case err != nil:
		return nil, fmt.Errorf("admin: cannot listen on %s: %w", address, err)
	}
	return &Server{ln}, nil
}

// Addr is the address that was opened.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Run serves h until ctx ends, and returns when every request has.
func (s *Server) Run(ctx context.Context, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: writeTimeout, MaxHeaderBytes: maxHeader,
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(s.ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("admin: %w", err)
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := srv.Shutdown(closing); err != nil {
		srv.Close()
	}
	<-done
	return nil
}
