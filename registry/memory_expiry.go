package registry

import (
	"container/heap"
	"time"
)

// putRecord writes a record of the revision that is about to be published. m.mu is held.
func (m *Memory) putRecord(ref PinRef, a Affinity, lease time.Duration) {
	m.deleteRecord(ref)
	a.Revision = m.revision + 1
	r := &memoryRecord{ref: ref, value: a}
	m.records[ref] = r
	if lease > 0 {
		r.due = time.Now().Add(lease)
		heap.Push(&m.expiries, r)
	}
}

func (m *Memory) deleteRecord(ref PinRef) {
	r := m.records[ref]
	if r == nil {
		return
	}
	delete(m.records, ref)
	if !r.due.IsZero() {
		heap.Remove(&m.expiries, r.index)
	}
}

// armExpiry sets the timer for the next record that ends. m.mu is held.
func (m *Memory) armExpiry() {
	if m.expiry != nil {
		m.expiry.Stop()
		m.expiry = nil
	}
	if len(m.expiries) > 0 && m.clients > 0 {
		m.expiry = time.AfterFunc(time.Until(m.expiries[0].due), m.expire)
	}
}

// expire deletes the records that are due, in one transaction, as a lease's end does.
func (m *Memory) expire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	var changes []Change
	for now := time.Now(); len(m.expiries) > 0 && !m.expiries[0].due.After(now); {
		ref := m.expiries[0].ref
		m.deleteRecord(ref)
		changes = append(changes, Change{Kind: KindAffinity, PoolName: ref.Pool, Name: ref.Key, Deleted: true})
	}
	if len(changes) > 0 {
		m.publish(changes...)
	}
	m.armExpiry()
}

// memoryExpiries is a heap of records by their end.
type memoryExpiries []*memoryRecord

func (h memoryExpiries) Len() int           { return len(h) }
func (h memoryExpiries) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h memoryExpiries) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *memoryExpiries) Push(x any) {
	r := x.(*memoryRecord)
	r.index = len(*h)
	*h = append(*h, r)
}

func (h *memoryExpiries) Pop() any {
	old := *h
	r := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return r
}
