package etcdstore

import (
	"slices"
	"time"
)

// A record must last as long as its writer asked, and may last a quarter longer. So many records can share a lease: one that
// is granted for the quarter longer serves every write of about that length until it is too short for them, and is
// then left to run out. It is never kept alive; a record that must last longer is written again, onto a newer lease.
//
//	want ├──────────────────┤            what a write asks for
//	     ├──────────────────┼─────┤      what its lease has left, at first
//	     ├──────────────────┼┤           and at last: no less than want, and a margin for the commit's own time
//
// An expiry is one transaction that every watch hears of, hence a bound on the keys of a lease.
const (
	maxBucketKeys = 4096
	// maxMargin is how long a commit may take from the choice of its lease on, at most; short leases have less.
	maxMargin = 15 * time.Second
	// maxWant is what "very long" is cut to: etcd's longest lease is 285 years, Go's longest duration 292.
	maxWant = 200 * 365 * 24 * time.Hour
)

// buckets is an edge's open leases. It knows no clock and no etcd.
type buckets struct {
	open []bucket
}

type bucket struct {
	id   int64
	ends time.Time // not before
	keys int
}

// lifetime is what a lease for a write that wants so much is granted, in whole seconds.
func lifetime(want time.Duration) time.Duration {
	return (want + want/4 + time.Second - 1).Truncate(time.Second)
}

func margin(want time.Duration) time.Duration { return min(want/20, maxMargin) }

// take finds a lease for one more key, and counts it.
func (b *buckets) take(now time.Time, want time.Duration) (id int64, ok bool) {
	b.open = slices.DeleteFunc(b.open, func(o bucket) bool { return o.keys >= maxBucketKeys || !o.ends.After(now) })
	for i := range b.open {
		left := b.open[i].ends.Sub(now)
		if left >= want+margin(want) && left <= lifetime(want) {
			b.open[i].keys++
			return b.open[i].id, true
		}
	}
	return 0, false
}

// add opens a lease that was granted.
func (b *buckets) add(id int64, ends time.Time) { b.open = append(b.open, bucket{id: id, ends: ends}) }

// drop closes leases that etcd does not know any more.
func (b *buckets) drop(ids []int64) {
	b.open = slices.DeleteFunc(b.open, func(o bucket) bool { return slices.Contains(ids, o.id) })
}
