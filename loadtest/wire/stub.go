package wire

import (
	"context"
	"errors"
	"net/netip"
)

var errStub = errors.New("wire: not yet")

type (
	tcpConn    struct{ Conn }
	tlsConfigs struct{}
	quicSocket struct{}
)

func (*tlsConfigs) set(Config) {}

func (d *Dialer) dialTCP(context.Context, *Endpoint, netip.Addr) (*tcpConn, error) {
	return nil, errStub
}

func (d *Dialer) dialQUIC(context.Context, *Endpoint, netip.Addr) (Conn, error) {
	return nil, errStub
}

func (d *Dialer) startTLS(context.Context, *tcpConn, *Endpoint) (Conn, error) { return nil, errStub }

func (d *Dialer) upgrade(context.Context, *tcpConn, Conn, *Endpoint) (Conn, error) {
	return nil, errStub
}
func (d *Dialer) closeQUIC() error                       { return nil }
func appendProxyV2(b []byte, _, _ netip.AddrPort) []byte { return b }
