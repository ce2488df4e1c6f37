package embedded

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/rs/zerolog"
)

// NATSConfig says where a NATS server lives.
type NATSConfig struct {
	Addr     string // host:port for clients; "" = 127.0.0.1:4222; port 0 = any free
	Username string // asked of clients, with Password; "" = none
	Password string
	TLS      ServerTLS
	Logger   zerolog.Logger
}

// NATS is a running NATS server that keeps nothing on disk.
type NATS struct {
	srv   *server.Server
	url   string
	close sync.Once
}

// StartNATS starts a server and returns when it serves.
func StartNATS(cfg NATSConfig) (*NATS, error) {
	n, err := startNATS(cfg)
	if err != nil {
		return nil, fmt.Errorf("embedded: NATS: %w", err)
	}
	return n, nil
}

func startNATS(cfg NATSConfig) (*NATS, error) {
	if err := cfg.TLS.check(); err != nil {
		return nil, err
	}
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:4222"
	}
	host, service, err := net.SplitHostPort(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("address %q: want host:port", cfg.Addr)
	}
	port, err := strconv.Atoi(service)
	if err != nil {
		return nil, fmt.Errorf("address %q: want a number for a port", cfg.Addr)
	}
	if err := listenable(cfg.Addr); err != nil {
		return nil, err
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	opts := &server.Options{
		ServerName: "limpet", Host: host, Port: port,
		Username: cfg.Username, Password: cfg.Password,
		NoSigs: true, PingInterval: 10 * time.Second, MaxPingsOut: 2,
	}
	if cfg.TLS.on() {
		opts.TLSConfig, err = server.GenTLSConfig(&server.TLSConfigOpts{
			CertFile: cfg.TLS.Cert, KeyFile: cfg.TLS.Key, CaFile: cfg.TLS.ClientCA, Verify: cfg.TLS.ClientCA != "",
		})
		if err != nil {
			return nil, err
		}
		opts.TLS, opts.TLSVerify, opts.TLSTimeout = true, cfg.TLS.ClientCA != "", 5
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, err
	}
	log := &natsLog{log: cfg.Logger.With().Str("server", "nats").Logger(), fatal: make(chan error, 1)}
	srv.SetLoggerV2(log, false, false, false)
	n := &NATS{srv: srv}
	srv.Start()
	if err := n.ready(log.fatal); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	n.url = srv.ClientURL()
	return n, nil
}

// ready waits until the server accepts clients.
func (n *NATS) ready(fatal <-chan error) error {
	for end := time.Now().Add(startTimeout); time.Now().Before(end); {
		select {
		case err := <-fatal:
			return explain(err)
		default:
		}
		if n.srv.ReadyForConnections(100 * time.Millisecond) {
			return nil
		}
	}
	return fmt.Errorf("not ready after %v", startTimeout)
}

// URL is where clients find the server.
func (n *NATS) URL() string { return n.url }

// Close stops the server without waiting for its clients.
func (n *NATS) Close() error {
	n.close.Do(func() {
		n.srv.Shutdown()
		n.srv.WaitForShutdown()
	})
	return nil
}

// natsLog passes warnings and worse on. What NATS calls fatal ends the start, not the process.
type natsLog struct {
	log   zerolog.Logger
	fatal chan error
}

func (l *natsLog) Warnf(format string, v ...any)  { l.log.Warn().Msgf(format, v...) }
func (l *natsLog) Errorf(format string, v ...any) { l.log.Error().Msgf(format, v...) }
func (l *natsLog) Noticef(string, ...any)         {}
func (l *natsLog) Debugf(string, ...any)          {}
func (l *natsLog) Tracef(string, ...any)          {}

func (l *natsLog) Fatalf(format string, v ...any) {
	select {
	case l.fatal <- fmt.Errorf(format, v...):
	default:
	}
}
