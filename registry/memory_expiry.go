package registry

import (
	"container/heap"
	"time"
)

// clock is nanoseconds since the store was made; never 0.
func (m *Memory) clock() int64 { return int64(time.Since(m.began)) + 1 }

// record is what is stored of a key, or nil. m.mu is held.
func (m *Memory) record(pool, key string) *memoryRecord {
	if in := m.records[pool]; in != nil {
		return in.byKey[key]
	}
	return nil
}

// putRecord writes a record of the revision that is about to be published. m.mu is held.
func (m *Memory) putRecord(pool, key string, a Affinity, lease time.Duration) *memoryRecord {
	if old := m.record(pool, key); old != nil {
		m.removeRecord(old)
	}
	in := m.records[pool]
	if in == nil {
		in = &memoryRecords{pool: pool, byKey: make(map[string]*memoryRecord)}
		m.records[pool] = in
	}
	a.Revision = m.revision + 1
	r := &memoryRecord{in: in, key: key, value: a.Record()}
	in.byKey[key] = r
	if lease > 0 {
		r.due = m.clock() + int64(lease)
		heap.Push(&m.expiries, r)
	}
	return r
}

// removeRecord takes a record away. m.mu is held.
func (m *Memory) removeRecord(r *memoryRecord) {
	delete(r.in.byKey, r.key)
	if r.due != 0 {
		heap.Remove(&m.expiries, r.index)
	}
}

// deleteRecord is removeRecord, and returns what there is to tell of it. m.mu is held.
func (m *Memory) deleteRecord(r *memoryRecord) memoryEvent {
	m.removeRecord(r)
	return memoryEvent{record: &memoryRecord{in: r.in, key: r.key}}
}

// armExpiry sets the timer for the next record that ends. m.mu is held.
func (m *Memory) armExpiry() {
	due := int64(0)
	if len(m.expiries) > 0 && m.clients > 0 {
		due = m.expiries[0].due
	}
	if due == m.armed {
		return
	}
	if m.expiry != nil {
		m.expiry.Stop()
		m.expiry = nil
	}
	if m.armed = due; due != 0 {
		m.expiry = time.AfterFunc(time.Duration(due-m.clock()), m.expire)
	}
}

// expire deletes the records that are due, in one transaction, as a lease's end does.
func (m *Memory) expire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.armed = 0
	var events []memoryEvent
	for now := m.clock(); len(m.expiries) > 0 && m.expiries[0].due <= now; {
		events = append(events, m.deleteRecord(m.expiries[0]))
	}
	if len(events) > 0 {
		m.advance(events...)
	}
	m.armExpiry()
}

// memoryExpiries is a heap of records by their end.
type memoryExpiries []*memoryRecord

func (h memoryExpiries) Len() int           { return len(h) }
func (h memoryExpiries) Less(i, j int) bool { return h[i].due < h[j].due }
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
