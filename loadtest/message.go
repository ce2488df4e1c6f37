package loadtest

import (
	"encoding/binary"
	"strconv"
	"strings"
	"sync"
)

// HeaderSize is how many bytes of a payload say where it comes from and when it was to be sent. Shorter ones are only counted.
//
//	0      4      8           16         24       32
//	| run  | from | sequence  | intended | sent   | filler …
const HeaderSize = 32

// header is what a payload says of itself. Stamps are of pace.Now, whose clock all processes of a machine share.
type header struct {
	run            uint32 // messages of other runs, such as retained ones, are somebody else's
	from           uint32 // the publisher's number
	sequence       uint64 // from 1, for each publisher and topic
	intended, sent int64
}

func (h *header) put(p []byte) {
	binary.BigEndian.PutUint32(p[0:], h.run)
	binary.BigEndian.PutUint32(p[4:], h.from)
	binary.BigEndian.PutUint64(p[8:], h.sequence)
	binary.BigEndian.PutUint64(p[16:], uint64(h.intended))
	binary.BigEndian.PutUint64(p[24:], uint64(h.sent))
}

// readHeader reads what put wrote; false: this is no message of the run.
func readHeader(p []byte, run uint32) (h header, ok bool) {
	if len(p) < HeaderSize || binary.BigEndian.Uint32(p) != run {
		return header{}, false
	}
	return header{
		run:      run,
		from:     binary.BigEndian.Uint32(p[4:]),
		sequence: binary.BigEndian.Uint64(p[8:]),
		intended: int64(binary.BigEndian.Uint64(p[16:])),
		sent:     int64(binary.BigEndian.Uint64(p[24:])),
	}, true
}

// payloads lends out buffers of one size, filled with something that is not all zeros.
type payloads struct {
	size int
	pool sync.Pool
}

func newPayloads(size int) *payloads {
	p := &payloads{size: size}
	p.pool.New = func() any {
		b := make([]byte, size)
		for i := range b {
			b[i] = 'a' + byte(i%26)
		}
		return &b
	}
	return p
}

func (p *payloads) get() *[]byte  { return p.pool.Get().(*[]byte) }
func (p *payloads) put(b *[]byte) { p.pool.Put(b) }

// expand replaces %i by the client's number and %c by its ID; %% is a percent sign. Other letters stay as they are.
func expand(pattern string, number int, id string) string {
	if !strings.Contains(pattern, "%") {
		return pattern
	}
	var b strings.Builder
	for i := 0; i < len(pattern); i++ {
		if pattern[i] != '%' || i+1 == len(pattern) {
			b.WriteByte(pattern[i])
			continue
		}
		i++
		switch pattern[i] {
		case 'i':
			b.WriteString(strconv.Itoa(number))
		case 'c':
			b.WriteString(id)
		case '%':
			b.WriteByte('%')
		default:
			b.WriteByte('%')
			b.WriteByte(pattern[i])
		}
	}
	return b.String()
}
