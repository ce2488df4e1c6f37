package wire

import (
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// maxUnix is the end of the year 9999: what lies beyond is no time that anybody wrote.
const maxUnix = 253402300799

// fields walks over the fields of one message.
//
//	f := fields{b: body}
//	for f.next() {
//		switch f.num {
//		case 1:
//			x.Name = f.str()
//		default:
//			x.Extra = append(x.Extra, f.raw...)
//		}
//	}
//	return f.err
type fields struct {
	b   []byte // what is left
	dec *Decoder
	err error

	num protowire.Number
	typ protowire.Type
	raw []byte // the field, tag included
	val []byte // the content, of a field with a length
	u   uint64 // the value, of a varint
}

// next reads a field and reports whether there is one; false also after an error.
func (f *fields) next() bool {
	if f.err != nil || len(f.b) == 0 {
		return false
	}
	num, typ, tag := protowire.ConsumeTag(f.b)
	if tag < 0 {
		f.err = ErrCorrupt
		return false
	}
	var n int
	switch typ {
	case protowire.VarintType:
		f.u, n = protowire.ConsumeVarint(f.b[tag:])
	case protowire.BytesType:
		f.val, n = protowire.ConsumeBytes(f.b[tag:])
	default:
		n = protowire.ConsumeFieldValue(num, typ, f.b[tag:])
	}
	if n < 0 {
		f.err = ErrCorrupt
		return false
	}
	f.num, f.typ, f.raw = num, typ, f.b[:tag+n]
	f.b = f.b[tag+n:]
	return true
}

// is notes a field of a type that its number does not have.
func (f *fields) is(typ protowire.Type) bool {
	if f.typ != typ {
		f.err = ErrCorrupt
		return false
	}
	return true
}

func (f *fields) bytes() []byte {
	if !f.is(protowire.BytesType) {
		return nil
	}
	return f.val
}

func (f *fields) str() string { return string(f.bytes()) }

// name is a string that many values share.
func (f *fields) name() string { return f.dec.Name(f.bytes()) }

func (f *fields) uint() uint64 {
	if !f.is(protowire.VarintType) {
		return 0
	}
	return f.u
}

func (f *fields) bool() bool { return f.uint() != 0 }

func (f *fields) int() int64 { return protowire.DecodeZigZag(f.uint()) }

func (f *fields) duration() time.Duration { return time.Duration(f.int()) }

func (f *fields) seconds() time.Time {
	u := f.uint()
	if u > maxUnix {
		f.err = ErrCorrupt
	}
	if u == 0 || u > maxUnix {
		return time.Time{}
	}
	return time.Unix(int64(u), 0).UTC()
}

func (f *fields) nanos() time.Time { return time.Unix(0, f.int()).UTC() }

// Each append function below leaves out what is zero.

func appendString(b []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func appendUint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendBool(b []byte, num protowire.Number, v bool) []byte {
	return appendUint(b, num, protowire.EncodeBool(v))
}

func appendInt(b []byte, num protowire.Number, v int64) []byte {
	return appendUint(b, num, protowire.EncodeZigZag(v))
}

// appendSeconds writes a time to the second; times before 1970 count as none.
func appendSeconds(b []byte, num protowire.Number, t time.Time) []byte {
	return appendUint(b, num, uint64(min(max(t.Unix(), 0), maxUnix)))
}

// appendNanos writes a time to the nanosecond, between the years 1678 and 2262.
func appendNanos(b []byte, num protowire.Number, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), protowire.EncodeZigZag(t.UnixNano()))
}
