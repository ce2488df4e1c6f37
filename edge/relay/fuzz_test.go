package relay

import (
	"bytes"
	"testing"
	"time"
)

// The machine's own rules, whatever happens to it in whatever order.
func FuzzSession(f *testing.F) {
	f.Add([]byte("\x00\x11"+string(connect311)), []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add(append([]byte{}, connect5...), []byte{9, 9, 0, 0, 3, 3, 1, 1})
	f.Fuzz(func(t *testing.T, data, script []byte) {
		if len(data) > 1<<16 || len(script) > 1<<10 {
			return
		}
		var s Session
		l := &Limits{ConnectSize: 1 << 12, Held: NewBudget(1 << 13)}
		now := int64(1)
		s.Start(l, now, len(script) > 0 && script[0]&0x80 != 0)
		var toBroker, fromClient []byte
		closed, dialing, connected := false, false, false
		run := func(out []Action) {
			for i := 0; i < len(out); i++ {
				if closed {
					t.Fatalf("action %v after close", out[i].Op)
				}
				switch a := out[i]; a.Op {
				case OpWrite:
					if a.Side == Broker {
						if !connected {
							t.Fatal("a write to no broker")
						}
						toBroker = append(toBroker, a.Data...)
					}
				case OpDial:
					dialing = true
				case OpDrop:
					dialing, connected = false, false
				case OpRoute:
					if _, err := s.Connect(); err != nil {
						t.Fatal("a route without a CONNECT")
					}
				case OpClose:
					closed = true
				case OpFlow:
					out = s.Flow(len(data), now, out)
				case OpUnread:
					out = s.Unread(a.Side, len(data), now, out)
				case OpFinish:
					out = s.Finished(out)
				case OpPreamble:
					n := bytes.IndexByte(a.Data, '>') + 1
					out = s.Preamble(n, nil, now, out)
				}
			}
		}
		for _, op := range script {
			if closed {
				break
			}
			now += int64(op) * int64(10*time.Millisecond)
			n := min(len(data), 1+int(op>>4)*7)
			switch op & 0x0f {
			case 0, 1, 2:
				fromClient = append(fromClient, data[:n]...)
				run(s.Received(Client, data[:n], now, nil))
				data = data[n:]
			case 3, 4:
				if connected {
					run(s.Received(Broker, data[:n], now, nil))
					data = data[n:]
				}
			case 5:
				run(s.Routed(Answer{Target: &Target{}}, now, nil))
			case 6:
				run(s.Routed(Answer{Reason: ReasonAwaitHome}, now, nil))
			case 7:
				if dialing {
					dialing, connected = false, true
					toBroker = toBroker[:0]
					run(s.Dialed([]byte("P"), now, nil))
				}
			case 8:
				if dialing {
					dialing = false
					run(s.DialFailed(now, nil))
				}
			case 9:
				run(s.Ended(Client, now, nil))
			case 10:
				if connected {
					run(s.Ended(Broker, now, nil))
				}
			case 11, 12:
				side := Side(op&0x0f - 11)
				switch {
				case side == Broker && !connected:
				case op&0x10 != 0:
					run(s.Unwritable(side, "", now, nil))
				default:
					run(s.Failed(side, ReasonNone, "", now, nil))
				}
			case 13:
				run(s.Tick(now, nil))
			case 14:
				run(s.Stop(ReasonShutdown, now, nil))
			case 15:
				if connected {
					run(s.Received(Broker, connack311, now, nil))
				}
			}
			if connected && len(toBroker) > 0 && !bytes.Contains(append([]byte{}, fromClient...), toBroker[1:]) {
				t.Fatalf("the broker got %q, the client sent %q", toBroker, fromClient)
			}
			if s.Phase < Relaying && !closed && s.Deadline == 0 {
				t.Fatalf("phase %d without a deadline", s.Phase)
			}
			if s := s.kept(); len(s.Held) > 1<<12+maxPipelined+1024 || len(s.First) > maxConnack || len(s.Tail) > maxGoodbye {
				t.Fatalf("kept: %d %d %d bytes", len(s.Held), len(s.First), len(s.Tail))
			}
		}
		// Time alone ends it, unless it relays for two who are there.
		for range 3 * maxAttempts {
			if closed || s.Deadline == 0 {
				break
			}
			now = max(now, s.Deadline)
			run(s.Tick(now, nil))
		}
		if !closed && (s.Phase != Relaying || s.EOF != [2]bool{} || s.Dead != [2]bool{} || s.Reason != ReasonNone) {
			t.Fatalf("phase %d for ever: %+v", s.Phase, s.State)
		}
		if closed && (s.Reason == ReasonNone || l.Held.Used() != 0) {
			t.Fatalf("closed for %v with %d bytes taken", s.Reason, l.Held.Used())
		}
	})
}
