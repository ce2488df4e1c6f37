// Package embedded runs an etcd server and a NATS server inside this process:
// for the demo, for tests, and for sites that want one thing to run.
//
//	etcd, err := embedded.StartEtcd(embedded.EtcdConfig{Dir: "/var/lib/limpet/etcd", ClientAddr: "127.0.0.1:2379"})
//	nats, err := embedded.StartNATS(embedded.NATSConfig{Addr: "127.0.0.1:4222"})
//	...
//	err = errors.Join(nats.Close(), etcd.Close())
//
// A server is ready when its Start returns, and gone, goroutines and ports
// included, soon after its Close has. What they hold is what the real servers
// hold: a data directory can move to a stand-alone etcd and back. NATS keeps
// nothing on disk.
//
// It is one node each. It refuses a port or a data directory that somebody else
// uses, and says which.
package embedded

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// startTimeout bounds the start of a server. A large etcd reads its log again first: four seconds per million keys.
const startTimeout = 60 * time.Second

// ServerTLS names the PEM files that a server shows. The zero value means plain text.
type ServerTLS struct {
	Cert, Key string // the server's certificate
	ClientCA  string // authorities of client certificates, which are then required; "" = none asked for
}

func (t ServerTLS) on() bool { return t.Cert != "" }

func (t ServerTLS) check() error {
	if (t.Cert == "") != (t.Key == "") || t.Cert == "" && t.ClientCA != "" {
		return errors.New("TLS needs a certificate and its key")
	}
	return nil
}

// explain adds to an error of listening what can be done about it.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: another program listens there; stop it or choose another port", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w: this machine has no such address", err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: this user may not; choose a port above 1023, or another directory", err)
	}
	return err
}

// listenable reports whether addr (host:port) can be listened on now.
func listenable(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return explain(err)
	}
	return l.Close()
}
