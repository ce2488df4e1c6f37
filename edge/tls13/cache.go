package tls13

import "crypto/cipher"

const (
	// probation is how many ciphers are kept of connections that may be in no hurry to come back.
	probation = 128
	// maxMain bounds the ciphers of busy connections: 32,768 directions, at about 0.8 KB each.
	maxMain = 1 << 15
	// maxUnused is how many ticks a cipher is kept without use.
	maxUnused = 2
)

// A Cache keeps the ciphers of the connections that are busy: setting one up costs half a microsecond and 2 KB, more than to
// encrypt a short message with it, but held for every idle connection they would be most of its memory. The zero value is empty
// and ready. It belongs to one loop, like the Records bound to it: it is not safe for concurrent use.
//
// A cipher that was not there is kept in a ring, where 128 others push it out again. One that is missed a second time between two
// ticks or so belongs to a connection that is busy, and gets a place of its own until it has not been used for two ticks.
type Cache struct {
	ring  []entry // grows to probation
	next  int     // of ring: the place that is taken next
	main  []entry
	free  []uint16 // places in main
	epoch uint16
}

type entry struct {
	owner *half // nil = no entry
	aead  cipher.AEAD
	nonce [ivSize]byte // scratch: on the stack it would be moved to the heap
	used  uint16       // epoch
}

// Tick tells the time: once a second. It lets go of what is not used any more, and returns how many ciphers are held: at 0 the
// next tick can wait until there was traffic.
func (c *Cache) Tick() (held int) {
	c.epoch++
	for i := range c.ring {
		if e := &c.ring[i]; e.owner != nil {
			if c.epoch-e.used >= maxUnused {
				*e = entry{}
			} else {
				held++
			}
		}
	}
	for i := range c.main {
		if e := &c.main[i]; e.owner != nil {
			if c.epoch-e.used >= maxUnused {
				*e = entry{}
				c.free = append(c.free, uint16(i))
			} else {
				held++
			}
		}
	}
	if held == 0 {
		*c = Cache{epoch: c.epoch}
	}
	return held
}

// at returns the place that a half remembers, nil if there is none.
func (c *Cache) at(slot uint16) *entry {
	if slot < probation {
		if int(slot) < len(c.ring) {
			return &c.ring[slot]
		}
	} else if i := int(slot - probation); i < len(c.main) {
		return &c.main[i]
	}
	return nil
}

// get returns the cipher of h. The entry is good until the next call.
func (c *Cache) get(h *half, s suite) *entry {
	if c == nil {
		return &entry{aead: s.aead(h.key[:s.keySize()])}
	}
	e := c.at(h.slot)
	if e == nil || e.owner != h {
		e = c.place(h)
		e.owner, e.aead = h, s.aead(h.key[:s.keySize()])
	}
	e.used = c.epoch
	return e
}

// place finds an entry for h, and throws out who is there.
func (c *Cache) place(h *half) *entry {
	again := h.missed != 0 && c.epoch+1-h.missed <= 1
	if h.missed = c.epoch + 1; h.missed == 0 {
		h.missed = 1 // 0 = never
	}
	if again {
		if n := len(c.free); n > 0 {
			i := c.free[n-1]
			c.free = c.free[:n-1]
			h.slot = probation + i
			return &c.main[i]
		}
		if n := len(c.main); n < maxMain {
			c.main = append(c.main, entry{})
			h.slot = probation + uint16(n)
			return &c.main[n]
		}
	}
	if c.next == len(c.ring) && c.next < probation {
		c.ring = append(c.ring, entry{})
	}
	i := c.next % len(c.ring)
	c.next = i + 1
	if c.next == probation {
		c.next = 0
	}
	h.slot = uint16(i)
	return &c.ring[i]
}

// drop forgets the cipher of h: its key is used no more.
func (c *Cache) drop(h *half) {
	if c == nil {
		return
	}
	if e := c.at(h.slot); e != nil && e.owner == h {
		*e = entry{}
		if h.slot >= probation {
			c.free = append(c.free, h.slot-probation)
		}
	}
}
