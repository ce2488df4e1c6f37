package wire

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/limpet-mesh/limpet/registry"
)

// fieldKey is the number of the raw key in values whose store key is only its hash.
const fieldKey = 15

// AppendAffinity appends the value of a record; key is the raw key where the store's key does not show it, else "".
func AppendAffinity(b []byte, a registry.Affinity, key string) []byte {
	return appendString(appendAffinity(append(b, Version), a), fieldKey, key)
}

func appendAffinity(b []byte, a registry.Affinity) []byte {
	b = appendString(b, 1, a.Broker)
	if a.Home != a.Broker { // a key that is still at home says so by leaving field 2 out
		b = appendBytes(b, 2, []byte(a.Home))
	}
	b = appendString(b, 3, a.Writer)
	b = appendSeconds(b, 4, a.Written)
	b = appendSeconds(b, 5, a.Expires)
	b = appendString(b, 6, a.Reason)
	return append(b, a.Extra...)
}

// Affinity reads a record, and the raw key if the value holds it. A record names a broker.
func (d *Decoder) Affinity(b []byte) (a registry.Affinity, key string, err error) {
	f, err := d.open(b)
	if err != nil {
		return registry.Affinity{}, "", err
	}
	a, key, err = affinity(f)
	if err == nil && !a.Present() {
		err = ErrCorrupt
	}
	if err != nil {
		return registry.Affinity{}, "", err
	}
	return a, key, nil
}

func affinity(f fields) (a registry.Affinity, key string, err error) {
	home := false
	for f.next() {
		switch f.num {
		case 1:
			a.Broker = f.name()
		case 2:
			a.Home, home = f.name(), true
		case 3:
			a.Writer = f.name()
		case 4:
			a.Written = f.seconds()
		case 5:
			a.Expires = f.seconds()
		case 6:
			a.Reason = f.name()
		case fieldKey:
			key = f.str()
		default:
			a.Extra = append(a.Extra, f.raw...)
		}
	}
	if !home {
		a.Home = a.Broker
	}
	return a, key, f.err
}

// AppendPool appends a pool's configuration; its name is the store's key.
func AppendPool(b []byte, p *registry.Pool) []byte {
	b = append(b, Version)
	for i := range p.Brokers {
		b = appendBytes(b, 1, appendBroker(nil, &p.Brokers[i]))
	}
	b = appendString(b, 2, string(p.Policy))
	b = appendString(b, 3, string(p.Sessions))
	b = appendInt(b, 4, int64(p.RehomeAfter))
	b = appendInt(b, 5, int64(p.TTL))
	b = appendInt(b, 6, int64(p.MaxTTL))
	b = appendString(b, 7, string(p.Failback))
	b = appendInt(b, 8, int64(p.ConnectTimeout))
	b = appendInt(b, 9, int64(p.DialTimeout))
	if p.Probe != (registry.Probe{}) {
		b = appendBytes(b, 10, appendProbe(nil, p.Probe))
	}
	return b
}

func appendBroker(b []byte, br *registry.Broker) []byte {
	b = appendString(b, 1, br.ID)
	b = appendString(b, 2, br.Address)
	b = appendInt(b, 3, int64(br.Weight))
	b = appendString(b, 4, string(br.Transport))
	b = appendString(b, 5, string(br.Proxy))
	b = appendString(b, 6, br.Path)
	b = appendString(b, 7, br.TLS.CA)
	b = appendString(b, 8, br.TLS.Cert)
	b = appendString(b, 9, br.TLS.Key)
	return appendString(b, 10, br.TLS.ServerName)
}

func appendProbe(b []byte, p registry.Probe) []byte {
	b = appendString(b, 1, string(p.Kind))
	b = appendInt(b, 2, int64(p.Interval))
	b = appendInt(b, 3, int64(p.Timeout))
	b = appendInt(b, 4, int64(p.Rise))
	return appendInt(b, 5, int64(p.Fall))
}

// Pool reads a pool's configuration. Its brokers are in order of ID, and no ID is there twice.
func (d *Decoder) Pool(b []byte) (*registry.Pool, error) {
	f, err := d.open(b)
	if err != nil {
		return nil, err
	}
	p := new(registry.Pool)
	for f.next() {
		switch f.num {
		case 1:
			br, err := broker(d.nested(f.bytes()))
			if err != nil {
				return nil, err
			}
			p.Brokers = append(p.Brokers, br)
		case 2:
			p.Policy = registry.Policy(f.name())
		case 3:
			p.Sessions = registry.Sessions(f.name())
		case 4:
			p.RehomeAfter = f.duration()
		case 5:
			p.TTL = f.duration()
		case 6:
			p.MaxTTL = f.duration()
		case 7:
			p.Failback = registry.Failback(f.name())
		case 8:
			p.ConnectTimeout = f.duration()
		case 9:
			p.DialTimeout = f.duration()
		case 10:
			if p.Probe, err = probe(d.nested(f.bytes())); err != nil {
				return nil, err
			}
		}
	}
	if f.err != nil {
		return nil, f.err
	}
	slices.SortFunc(p.Brokers, func(x, y registry.Broker) int { return cmp.Compare(x.ID, y.ID) })
	for i, br := range p.Brokers {
		if br.ID == "" || br.Weight < 0 || i > 0 && br.ID == p.Brokers[i-1].ID {
			return nil, ErrCorrupt
		}
	}
	return p, nil
}

func broker(f fields) (br registry.Broker, err error) {
	for f.next() {
		switch f.num {
		case 1:
			br.ID = f.name()
		case 2:
			br.Address = f.str()
		case 3:
			br.Weight = int(f.int())
		case 4:
			br.Transport = registry.Transport(f.name())
		case 5:
			br.Proxy = registry.ProxyProtocol(f.name())
		case 6:
			br.Path = f.str()
		case 7:
			br.TLS.CA = f.str()
		case 8:
			br.TLS.Cert = f.str()
		case 9:
			br.TLS.Key = f.str()
		case 10:
			br.TLS.ServerName = f.str()
		}
	}
	return br, f.err
}

func probe(f fields) (p registry.Probe, err error) {
	for f.next() {
		switch f.num {
		case 1:
			p.Kind = registry.ProbeKind(f.name())
		case 2:
			p.Interval = f.duration()
		case 3:
			p.Timeout = f.duration()
		case 4:
			p.Rise = int(f.int())
		case 5:
			p.Fall = int(f.int())
		}
	}
	return p, f.err
}

// AppendAdmin appends what the operator wants of a broker.
func AppendAdmin(b []byte, s registry.AdminState) []byte {
	return appendString(append(b, Version), 1, string(s))
}

// Admin reads what AppendAdmin wrote. A state that this program does not know is none.
func (d *Decoder) Admin(b []byte) (registry.AdminState, error) {
	s, _, err := d.single(b)
	if err != nil {
		return "", err
	}
	if err := registry.CheckAdmin(registry.AdminState(s)); err != nil {
		return "", fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return registry.AdminState(s), nil
}

// AppendPrune appends the value that says that there are no other pools: its version alone.
func AppendPrune(b []byte) []byte { return append(b, Version) }

// Prune reads what AppendPrune wrote.
func (d *Decoder) Prune(b []byte) error {
	_, err := d.open(b)
	return err
}

// AppendPin appends a pin's broker; key as for AppendAffinity.
func AppendPin(b []byte, broker, key string) []byte {
	return appendString(appendString(append(b, Version), 1, broker), fieldKey, key)
}

// Pin reads what AppendPin wrote.
func (d *Decoder) Pin(b []byte) (broker, key string, err error) { return d.single(b) }

// AppendLeader appends the election key's value.
func AppendLeader(b []byte, edge string) []byte { return appendString(append(b, Version), 1, edge) }

// Leader reads what AppendLeader wrote.
func (d *Decoder) Leader(b []byte) (string, error) {
	s, _, err := d.single(b)
	return s, err
}

// single reads a value whose field 1 is one name, which must be there.
func (d *Decoder) single(b []byte) (name, key string, err error) {
	f, err := d.open(b)
	if err != nil {
		return "", "", err
	}
	for f.next() {
		switch f.num {
		case 1:
			name = f.name()
		case fieldKey:
			key = f.str()
		}
	}
	if f.err == nil && name == "" {
		f.err = ErrCorrupt
	}
	if f.err != nil {
		return "", "", f.err
	}
	return name, key, nil
}

// AppendVerdict appends a verdict.
func AppendVerdict(b []byte, v registry.Verdict) []byte {
	b = appendString(append(b, Version), 1, string(v.State))
	b = appendNanos(b, 2, v.Since)
	return appendString(b, 3, v.Reason)
}

// Verdict reads what AppendVerdict wrote.
func (d *Decoder) Verdict(b []byte) (v registry.Verdict, err error) {
	f, err := d.open(b)
	if err != nil {
		return v, err
	}
	for f.next() {
		switch f.num {
		case 1:
			v.State = registry.BrokerState(f.name())
		case 2:
			v.Since = f.nanos()
		case 3:
			v.Reason = f.str()
		}
	}
	if f.err != nil {
		return registry.Verdict{}, f.err
	}
	switch v.State {
	case registry.BrokerUp, registry.BrokerDown, registry.BrokerLost:
		return v, nil
	}
	return registry.Verdict{}, fmt.Errorf("%w: %.80q is no verdict", ErrCorrupt, v.State)
}

// AppendEdge appends an edge's registration; its id is the store's key.
func AppendEdge(b []byte, e registry.Edge) []byte {
	b = appendString(append(b, Version), 1, e.Admin)
	b = appendString(b, 2, e.Version)
	b = appendNanos(b, 3, e.Started)
	return appendBool(b, 4, e.Leaving)
}

// Edge reads what AppendEdge wrote.
func (d *Decoder) Edge(b []byte) (e registry.Edge, err error) {
	f, err := d.open(b)
	if err != nil {
		return e, err
	}
	for f.next() {
		switch f.num {
		case 1:
			e.Admin = f.str()
		case 2:
			e.Version = f.name()
		case 3:
			e.Started = f.nanos()
		case 4:
			e.Leaving = f.bool()
		}
	}
	return e, f.err
}

// AppendHealth appends an edge's view of the brokers; its id is the store's key, or the bus's subject.
func AppendHealth(b []byte, h registry.Health) []byte {
	// A report without brokers is one too, so its number is there even if it is 0.
	b = protowire.AppendVarint(protowire.AppendTag(append(b, Version), 1, protowire.VarintType), h.Seq)
	var m []byte
	for _, ref := range sortedRefs(h.Brokers) {
		r := h.Brokers[ref]
		m = appendRef(m[:0], ref)
		m = appendBool(m, 3, r.Up)
		m = appendNanos(m, 4, r.Since)
		m = appendString(m, 5, r.Reason)
		b = appendBytes(b, 2, m)
	}
	return b
}

func sortedRefs(m map[registry.BrokerRef]registry.Report) []registry.BrokerRef {
	return slices.SortedFunc(maps.Keys(m), func(x, y registry.BrokerRef) int {
		return cmp.Or(cmp.Compare(x.Pool, y.Pool), cmp.Compare(x.Broker, y.Broker))
	})
}

// Health reads what AppendHealth wrote.
func (d *Decoder) Health(b []byte) (h registry.Health, err error) {
	f, err := d.open(b)
	if err != nil {
		return h, err
	}
	h.Brokers = make(map[registry.BrokerRef]registry.Report)
	numbered := false
	for f.next() {
		switch f.num {
		case 1:
			h.Seq, numbered = f.uint(), true
		case 2:
			ref, r, err := report(d.nested(f.bytes()))
			if err != nil {
				return registry.Health{}, err
			}
			h.Brokers[ref] = r
		}
	}
	if f.err == nil && !numbered {
		f.err = ErrCorrupt
	}
	return h, f.err
}

func report(f fields) (ref registry.BrokerRef, r registry.Report, err error) {
	for f.next() {
		switch f.num {
		case 1:
			ref.Pool = f.name()
		case 2:
			ref.Broker = f.name()
		case 3:
			r.Up = f.bool()
		case 4:
			r.Since = f.nanos()
		case 5:
			r.Reason = f.str()
		}
	}
	return ref, r, f.err
}

func appendRef(b []byte, ref registry.BrokerRef) []byte {
	return appendString(appendString(b, 1, ref.Pool), 2, ref.Broker)
}

// Schema is what a store says about those who may use it.
type Schema struct {
	Version    uint64 // of the newest edge that wrote here
	MinVersion uint64 // that an edge must understand
	Store      uint64 // a random number, that tells this store from one that took its place
}

// AppendSchema appends a schema.
func AppendSchema(b []byte, s Schema) []byte {
	b = appendUint(append(b, Version), 1, s.Version)
	b = appendUint(b, 2, s.MinVersion)
	return appendUint(b, 3, s.Store)
}

// Schema reads what AppendSchema wrote.
func (d *Decoder) Schema(b []byte) (s Schema, err error) {
	f, err := d.open(b)
	if err != nil {
		return s, err
	}
	for f.next() {
		switch f.num {
		case 1:
			s.Version = f.uint()
		case 2:
			s.MinVersion = f.uint()
		case 3:
			s.Store = f.uint()
		}
	}
	return s, f.err
}
