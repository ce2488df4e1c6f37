package natsbus

import (
	"errors"
	"fmt"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

// The kinds of messages, as their subjects end.
const (
	kindNotice = "notice"
	kindHealth = "health"
	kindDoubt  = "doubt"
)

// encode returns the kind and the payload of a message.
func encode(m registry.Message) (kind string, payload []byte, err error) {
	n := 0
	if m.Notice != nil {
		n++
		if err = registry.CheckName("a pool", m.Notice.Pool); err == nil && m.Notice.Revision <= 0 {
			err = fmt.Errorf("natsbus: a notice of revision %d", m.Notice.Revision)
		}
		kind, payload = kindNotice, wire.AppendNotice(nil, *m.Notice)
	}
	if m.Health != nil {
		n++
		kind, payload = kindHealth, wire.AppendHealth(nil, *m.Health)
	}
	if m.Doubt != nil {
		n++
		err = registry.CheckRef(*m.Doubt)
		kind, payload = kindDoubt, wire.AppendDoubt(nil, *m.Doubt)
	}
	switch {
	case err != nil:
		return "", nil, err
	case n != 1:
		return "", nil, fmt.Errorf("natsbus: a message of %d kinds, want one", n)
	case len(payload) > maxPayload:
		return "", nil, fmt.Errorf("natsbus: a %s of %d bytes, at most %d", kind, len(payload), maxPayload)
	}
	return kind, payload, nil
}

var errStrange = errors.New("natsbus: no message of a limpet")

// decode reads a message that came from an edge, as its subject says.
func decode(d *wire.Decoder, from, kind string, payload []byte) (registry.Message, error) {
	m := registry.Message{From: from}
	if !registry.ValidName(from) || len(payload) > maxPayload {
		return m, errStrange
	}
	switch kind {
	case kindNotice:
		n, err := d.Notice(payload)
		if err == nil {
			err = registry.CheckName("a pool", n.Pool)
		}
		if err != nil {
			return m, err
		}
		m.Notice = &n
	case kindHealth:
		h, err := d.Health(payload)
		if err != nil {
			return m, err
		}
		h.Edge = from
		m.Health = &h
	case kindDoubt:
		ref, err := d.Doubt(payload)
		if err == nil {
			err = registry.CheckRef(ref)
		}
		if err != nil {
			return m, err
		}
		m.Doubt = &ref
	default:
		return m, errStrange
	}
	return m, nil
}
