package loadtest

import (
	"context"
	"testing"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/fault"
	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// TestSessionMadeByAConnectWithoutAnswer: a broker loses its sessions; a client's first connect after that reaches it, but the CONNACK is lost.
// The next one finds the session that the first has made, without a subscription. That is a lost session, and no lost message.
func TestSessionMadeByAConnectWithoutAnswer(t *testing.T) {
	for _, c := range []struct {
		name       string
		verb       fault.Verb
		unanswered bool
		keeps      bool // another client has found its session there
		lost       int64
	}{
		{"restart, unanswered", fault.Restart, true, false, 1},
		{"restart, answered", fault.Restart, false, false, 0},
		{"restart of a broker that keeps sessions on disk", fault.Restart, true, true, 0},
		{"freeze", fault.Freeze, true, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &run{seed: 1, id: 1, work: newTasks(), rec: result.NewRecorder(result.Config{}), ctx: t.Context()}
			r.agenda = newAgenda(r.rec.Fired)
			r.way(nil, nil)
			v, err := newVerification(context.Background(), r, &Verify{Clients: 2, Identity: []string{"session-present", "topic"}})
			if err != nil {
				t.Fatal(err)
			}
			r.verify = v
			connect := func(x *citizen, at int64, present bool) {
				x.OnConnack(&x.Client, at, &mqtt.Connack{SessionPresent: present})
				x.OnPublish(&x.Client, at+1, &mqtt.Publish{Topic: []byte(defaultIdentity), Payload: []byte("b2")})
				if !x.listens {
					x.OnAcked(&x.Client, at+2, tokenStream, x.stream.qos)
				}
			}
			cut := client.Cause{Stage: client.StageSession, Reason: "closed"}
			one, other := v.all[0], v.all[1]
			for _, x := range v.all {
				connect(x, 10, false)
				x.OnClosed(&x.Client, 30, cut)
			}
			f := fault.Event{Number: 1, Fault: fault.Fault{Verb: c.verb}, Target: "broker b2", Begin: 20}
			v.fault(f)
			one.stream.Sent(1) // while the client is away: into the session that is gone
			one.stream.Acked(1)
			f.End = 40
			v.fault(f)
			if c.keeps {
				connect(other, 45, true)
			}
			if c.unanswered {
				one.OnClosed(&one.Client, 50, client.Cause{Stage: client.StageConnack, Reason: "closed"})
			}
			connect(one, 60, true)
			got := v.report()
			if got.SessionsLost.Count != c.lost || got.SessionsLostUnexplained != 0 {
				t.Errorf("%d sessions lost, want %d: %+v", got.SessionsLost.Count, c.lost, got.SessionsLost)
			}
			if m := got.Messages["mesh"]; m.LostWithSession != c.lost || m.Lost != 1-c.lost {
				t.Errorf("lost %d, with the session %d", m.Lost, m.LostWithSession)
			}
			if got := r.rec.Finish(70).Counters[result.Subscribes]; c.unanswered && got < 3 {
				t.Errorf("%d subscribes: the client did not ask again", got)
			}
		})
	}
}
