package mqtt

// place is where a list of properties stands; as a bit in propertyKind.in, where a property may stand.
type place uint8

const (
	inConnect place = 1 << iota
	inWill
	inConnack
	inDisconnect
)

// wire is how a property's value is written (MQTT 5 §1.5).
type wire uint8

const (
	wireByte wire = iota + 1
	wireU16
	wireU32
	wireField // UTF-8 string or binary data
	wirePair  // two UTF-8 strings
)

// Property identifiers that are read or written here (MQTT 5 §2.2.2.2).
const (
	propSessionExpiry     = 0x11
	propAssignedClientID  = 0x12
	propServerKeepAlive   = 0x13
	propAuthMethod        = 0x15
	propWillDelay         = 0x18
	propReceiveMaximum    = 0x21
	propTopicAliasMaximum = 0x22
	propUserProperty      = 0x26
	propMaximumPacketSize = 0x27
	lastProperty          = 0x2A
)

// knownProperties is table 2-4 of MQTT 5 §2.2.2.2, without what stands in none of our packets.
var knownProperties = [lastProperty + 1]struct {
	wire wire
	in   place
}{
	0x01:                  {wireByte, inWill},  // Payload Format Indicator
	0x02:                  {wireU32, inWill},   // Message Expiry Interval
	0x03:                  {wireField, inWill}, // Content Type
	0x08:                  {wireField, inWill}, // Response Topic
	0x09:                  {wireField, inWill}, // Correlation Data
	propSessionExpiry:     {wireU32, inConnect | inConnack | inDisconnect},
	propAssignedClientID:  {wireField, inConnack},
	propServerKeepAlive:   {wireU16, inConnack},
	propAuthMethod:        {wireField, inConnect | inConnack},
	0x16:                  {wireField, inConnect | inConnack}, // Authentication Data
	0x17:                  {wireByte, inConnect},              // Request Problem Information
	propWillDelay:         {wireU32, inWill},
	0x19:                  {wireByte, inConnect},                 // Request Response Information
	0x1A:                  {wireField, inConnack},                // Response Information
	0x1C:                  {wireField, inConnack | inDisconnect}, // Server Reference
	0x1F:                  {wireField, inConnack | inDisconnect}, // Reason String
	propReceiveMaximum:    {wireU16, inConnect | inConnack},
	propTopicAliasMaximum: {wireU16, inConnect | inConnack},
	0x24:                  {wireByte, inConnack}, // Maximum QoS
	0x25:                  {wireByte, inConnack}, // Retain Available
	propUserProperty:      {wirePair, inConnect | inWill | inConnack | inDisconnect},
	propMaximumPacketSize: {wireU32, inConnect | inConnack},
	0x28:                  {wireByte, inConnack}, // Wildcard Subscription Available
	0x29:                  {wireByte, inConnack}, // Subscription Identifiers Available
	0x2A:                  {wireByte, inConnack}, // Shared Subscription Available
}

// properties is what a list of properties says, as far as anybody here asks.
type properties struct {
	seen              uint64 // one bit per identifier
	sessionExpiry     uint32
	willDelay         uint32
	maximumPacketSize uint32
	receiveMaximum    uint16
	topicAliasMaximum uint16
	serverKeepAlive   uint16
	assignedClientID  []byte
}

func (p *properties) has(id byte) bool { return p.seen&(1<<id) != 0 }

// properties reads a property length and as many bytes of properties. Values are the receiver's to judge.
func (c *cursor) properties(where place, v Version) (p properties, err error) {
	length, n := uvarint(c.rest)
	switch {
	case n < 0:
		return p, fail(BadProperty, v, "property length has more than four bytes")
	case n == 0:
		return p, fail(Truncated, v, "property length is missing")
	case n > 1 && c.rest[n-1] == 0: // [MQTT-1.5.5-1]
		return p, fail(BadProperty, v, "property length is not in its shortest form")
	}
	c.rest = c.rest[n:]
	list, ok := c.take(int(length))
	if !ok {
		return p, fail(Truncated, v, "properties reach beyond the packet's end")
	}
	for l := (cursor{list}); len(l.rest) > 0; {
		if err := p.read(&l, where, v); err != nil {
			return p, err
		}
	}
	return p, nil
}

// read reads one property of a list that is not empty.
func (p *properties) read(l *cursor, where place, v Version) error {
	id := l.rest[0] // a variable byte integer by the letter, but all of them have one byte
	l.rest = l.rest[1:]
	if id > lastProperty || knownProperties[id].in&where == 0 {
		return failNumber(BadProperty, v, "does not belong here: property", int(id))
	}
	if p.has(id) && id != propUserProperty {
		return failNumber(DuplicateProperty, v, "given twice: property", int(id))
	}
	p.seen |= 1 << id

	var (
		ok  bool
		u16 uint16
		u32 uint32
		f   []byte
	)
	switch knownProperties[id].wire {
	case wireByte:
		_, ok = l.u8() // flags between client and broker
	case wireU16:
		u16, ok = l.u16()
	case wireU32:
		u32, ok = l.u32()
	case wireField:
		f, ok = l.field()
	case wirePair:
		if _, ok = l.field(); ok {
			_, ok = l.field()
		}
	}
	if !ok {
		return failNumber(Truncated, v, "reaches beyond the properties' end: property", int(id))
	}

	switch id {
	case propSessionExpiry:
		p.sessionExpiry = u32
	case propWillDelay:
		p.willDelay = u32
	case propMaximumPacketSize:
		p.maximumPacketSize = u32
	case propReceiveMaximum:
		p.receiveMaximum = u16
	case propTopicAliasMaximum:
		p.topicAliasMaximum = u16
	case propServerKeepAlive:
		p.serverKeepAlive = u16
	case propAssignedClientID:
		p.assignedClientID = f
	}
	return nil
}
