package loadtest

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// TestAMillionMessagesLeaveNothingBehind: the books, the record and the clients of a verification are as large after a million messages as
// after a hundred thousand, also when a few of them are lost, swapped, duplicated and never acknowledged.
func TestAMillionMessagesLeaveNothingBehind(t *testing.T) {
	const (
		warm  = 100_000
		all   = 1_000_000
		every = int64(200 * time.Microsecond) // a message: 5,000 a second, 200 s
		most  = 1 << 20                       // a byte a message
	)
	r := &run{seed: 1, id: 1, work: newTasks(), rec: result.NewRecorder(result.Config{}), ctx: t.Context()}
	r.agenda = newAgenda(r.rec.Fired)
	r.way(nil, nil)
	v, err := newVerification(context.Background(), r, &Verify{Clients: 10, Feeders: 2})
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, DefaultSize)
	now := int64(1)
	deliver := func(c *citizen, sequence uint64) {
		h := header{run: r.id, sequence: sequence, intended: now, sent: now}
		h.put(payload)
		c.OnPublish(&c.Client, now+every/2, &mqtt.Publish{Topic: c.stream.topic, Payload: payload, QoS: c.stream.qos})
	}
	for _, c := range v.all {
		c.OnAcked(&c.Client, now, tokenStream, c.stream.qos) // SUBACK
	}
	var before uint64
	for i := range all {
		now += every
		if i == warm {
			before = heapInUse()
		}
		c := v.all[i%len(v.all)]
		s, f := c.stream, c.stream.feeder
		s.sequence++
		s.Sent(s.sequence)
		token := f.take(delivery{owed{s, now}, s.sequence, now})
		switch s.sequence % 10_000 {
		case 1: // never acknowledged
			f.give(token)
			deliver(c, s.sequence)
			continue
		case 2: // lost
		case 3: // swapped with the next
		case 4:
			deliver(c, s.sequence)
			deliver(c, s.sequence-1)
		case 5:
			deliver(c, s.sequence)
			fallthrough
		default:
			deliver(c, s.sequence)
		}
		f.OnAcked(&f.Client, now+every/2, token, 0)
		if i%5000 == 0 {
			r.rec.Tick(now)
		}
	}
	after := heapInUse()
	got := v.report().Messages["mesh"]
	if want := int64(all / 10_000); got.Lost != want || got.Reordered != want || got.Duplicated != want || got.ReceivedUnacked != want {
		t.Errorf("of each anomaly %d were made, found are %+v", want, *got)
	}
	if got.Expected != all-all/10_000 || got.Received != all-all/10_000 {
		t.Errorf("%d messages, %d expected, %d received", all, got.Expected, got.Received)
	}
	t.Logf("heap %d KiB after %d messages, %d KiB after %d", before>>10, warm, after>>10, all)
	if after > before+most {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	runtime.KeepAlive(v)
}

// heapInUse is what lives once the garbage is gone.
func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // what pools held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
