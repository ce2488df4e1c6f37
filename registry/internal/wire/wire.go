// Package wire is how the mesh's facts are written down: the values of the
// store and the payloads of the bus.
//
// A value is one version byte and then a message in the protobuf wire format,
// written by hand: no schema compiler, fields are small numbers, what is zero
// is left out. An affinity keeps the fields that it does not know, so that an
// edge of version N-1 passes on what one of version N wrote.
//
//	b := wire.AppendAffinity(nil, a, "")
//	var d wire.Decoder
//	a, key, err := d.Affinity(b)
//
// It refuses values of a version that it does not know ([ErrVersion]), and
// whatever does not parse, holds a field of the wrong type, or lacks what makes
// the value one ([ErrCorrupt]). Nothing is allocated from a length that a value
// merely claims.
package wire

import (
	"errors"
	"fmt"
)

// Version is the first byte of every value.
const Version = 1

// ErrVersion is returned for a value of another version.
var ErrVersion = errors.New("wire: unknown version")

// ErrCorrupt is returned for what is no value at all.
var ErrCorrupt = errors.New("wire: corrupt value")

// A Decoder reads values. Its zero value is ready; it is used by one goroutine at a time.
// It keeps the names it has met, since a million affinities name three brokers.
type Decoder struct {
	names map[string]string
}

// Bounds of what a Decoder remembers.
const (
	maxNames   = 4096
	maxNameLen = 64
)

// Name is string(b), shared with the equal names that came before.
func (d *Decoder) Name(b []byte) string {
	if s, ok := d.names[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(s) <= maxNameLen && len(d.names) < maxNames {
		if d.names == nil {
			d.names = make(map[string]string)
		}
		d.names[s] = s
	}
	return s
}

// open strips the version byte.
func (d *Decoder) open(b []byte) (fields, error) {
	if len(b) == 0 {
		return fields{}, ErrCorrupt
	}
	if b[0] != Version {
		return fields{}, fmt.Errorf("%w %d, this program reads %d", ErrVersion, b[0], Version)
	}
	return fields{b: b[1:], dec: d}, nil
}

func (d *Decoder) nested(b []byte) fields { return fields{b: b, dec: d} }
