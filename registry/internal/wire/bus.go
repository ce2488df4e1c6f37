package wire

import "github.com/limpet-mesh/limpet/registry"

// AppendNotice appends a notice of the bus.
func AppendNotice(b []byte, n registry.Notice) []byte {
	b = appendString(append(b, Version), 1, n.Pool)
	b = appendString(b, 2, n.Key)
	b = appendUint(b, 3, uint64(n.Revision))
	if n.Affinity.Present() {
		b = appendBytes(b, 4, appendAffinity(nil, n.Affinity))
	}
	return b
}

// Notice reads what AppendNotice wrote. The affinity's revision is the notice's.
func (d *Decoder) Notice(b []byte) (n registry.Notice, err error) {
	f, err := d.open(b)
	if err != nil {
		return n, err
	}
	for f.next() {
		switch f.num {
		case 1:
			n.Pool = f.name()
		case 2:
			n.Key = f.str()
		case 3:
			n.Revision = int64(f.uint())
		case 4:
			if n.Affinity, _, err = affinity(d.nested(f.bytes())); err != nil {
				return registry.Notice{}, err
			}
		}
	}
	if f.err == nil && (n.Pool == "" || n.Revision <= 0) {
		f.err = ErrCorrupt
	}
	if f.err != nil {
		return registry.Notice{}, f.err
	}
	if n.Affinity.Present() {
		n.Affinity.Revision = n.Revision
	} else {
		n.Affinity = registry.Affinity{}
	}
	return n, nil
}

// AppendDoubt appends a doubt of the bus.
func AppendDoubt(b []byte, ref registry.BrokerRef) []byte { return appendRef(append(b, Version), ref) }

// Doubt reads what AppendDoubt wrote.
func (d *Decoder) Doubt(b []byte) (ref registry.BrokerRef, err error) {
	f, err := d.open(b)
	if err != nil {
		return ref, err
	}
	for f.next() {
		switch f.num {
		case 1:
			ref.Pool = f.name()
		case 2:
			ref.Broker = f.name()
		}
	}
	if f.err == nil && (ref.Pool == "" || ref.Broker == "") {
		f.err = ErrCorrupt
	}
	return ref, f.err
}
