package registry

import (
	"time"
	"unique"
)

// Record is an Affinity as one keeps it by the hundred thousand: 24 bytes. What many records have in common is kept once for all of them;
// times are whole seconds, and one before 1970 or after 2106 is none. The zero value is no affinity.
type Record struct {
	Revision         int64
	shared           unique.Handle[recordText] // zero: no affinity
	written, expires uint32                    // Unix; 0 = none
}

// recordText is what an affinity says in words. The words are few: names of brokers and edges, reasons. Extra is rare.
type recordText struct{ broker, home, writer, reason, extra string }

// Record packs a. It keeps no memory of a's.
func (a *Affinity) Record() Record {
	if !a.Present() {
		return Record{}
	}
	return Record{
		Revision: a.Revision,
		shared:   unique.Make(a.text()),
		written:  seconds(a.Written), expires: seconds(a.Expires),
	}
}

func (a *Affinity) text() recordText {
	return recordText{a.Broker, a.Home, a.Writer, a.Reason, string(a.Extra)}
}

// Present reports whether r names a broker.
func (r Record) Present() bool { return r.shared != unique.Handle[recordText]{} }

// Broker is the broker that r names, "" if none.
func (r Record) Broker() string {
	if !r.Present() {
		return ""
	}
	return r.shared.Value().broker
}

// Affinity unpacks r. It allocates nothing, unless there is an Extra.
func (r Record) Affinity() Affinity {
	if !r.Present() {
		return Affinity{}
	}
	t := r.shared.Value()
	return t.affinity(r.Revision, r.written, r.expires)
}

// affinity is what says t. It allocates nothing, unless there is an Extra.
func (t *recordText) affinity(revision int64, written, expires uint32) Affinity {
	a := Affinity{
		Broker: t.broker, Home: t.home, Writer: t.writer, Reason: t.reason,
		Written: moment(written), Expires: moment(expires), Revision: revision,
	}
	if t.extra != "" {
		a.Extra = []byte(t.extra)
	}
	return a
}

// over reports whether a record that expires then counts as gone at now, both in Unix seconds.
func over(expires uint32, now int64) bool {
	return expires != 0 && int64(expires)+int64(ExpiryGrace/time.Second) < now
}

// seconds packs a time.
func seconds(at time.Time) uint32 {
	if s := at.Unix(); s > 0 && s <= 1<<32-1 {
		return uint32(s)
	}
	return 0
}

func moment(s uint32) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(int64(s), 0)
}
