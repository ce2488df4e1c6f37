package loadtest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// TestABrokerThatNeverWas: the mesh answers, a broker of the control group does not, and its clients would wait for it for ever.
func TestABrokerThatNeverWas(t *testing.T) {
	t.Parallel()
	p := &Plan{
		Verb: "verify", Endpoints: []string{"tcp://" + startBroker(t)},
		Verify: &Verify{Clients: 20, Lives: 2, Up: 100 * time.Millisecond, Down: 50 * time.Millisecond, Control: []string{"tcp://127.0.0.1:1"}},
	}
	res, err := runPlan(t, p, Options{})
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "nobody could connect to 127.0.0.1:1 tcp: connection refused") || res == nil {
		t.Error(err)
	}
}

// TestStranded: who cannot connect any more for long no longer holds up the run, and is told of; one that comes back goes on.
func TestStranded(t *testing.T) {
	r := &run{seed: 1, id: 1, work: newTasks(), rec: result.NewRecorder(result.Config{}), ctx: t.Context()}
	r.agenda = newAgenda(r.rec.Fired)
	r.way([]string{"tcp://home"}, nil)
	v, err := newVerification(context.Background(), r, &Verify{Clients: 1})
	if err != nil {
		t.Fatal(err)
	}
	c := v.all[0]
	r.work.add(1)
	r.work.done() // the run's own
	over := func() bool {
		select {
		case <-r.work.over:
			return true
		default:
			return false
		}
	}
	c.OnConnack(&c.Client, 10, &mqtt.Connack{})
	c.OnClosed(&c.Client, 20, client.Cause{Stage: client.StageSession, Reason: "reset"})
	c.out = 30 // it tries to connect
	refused := client.Cause{Stage: client.StageDial, Reason: "refused"}
	c.OnClosed(&c.Client, int64(strandedAfter), refused)
	if over() || v.present() || v.notes() != nil {
		t.Error("given up too early")
	}
	c.OnClosed(&c.Client, 31+int64(strandedAfter), refused)
	const note = "1 client did not live all its lives: it could not connect any more (limpet-citizen-00000001-0, at tcp://home)"
	if n := v.notes(); !over() || !v.present() || len(n) != 1 || n[0] != note {
		t.Errorf("over %v, present %v, %q", over(), v.present(), n)
	}
	c.OnConnack(&c.Client, 40+int64(strandedAfter), &mqtt.Connack{SessionPresent: true})
	if v.notes() != nil || c.due == 0 || c.state != resting {
		t.Error("it came back, and does not go on")
	}
}

// TestAnInterruptedVerify waits only so long for what is under way, and says so.
func TestAnInterruptedVerify(t *testing.T) {
	t.Parallel()
	at := "tcp://" + startBroker(t)
	p := &Plan{Verb: "verify", Endpoints: []string{at}, Settle: enough, Verify: &Verify{
		Clients: 4, Lives: 1000, Up: 50 * time.Millisecond, Down: time.Hour, Drop: []string{"clean"}, Rate: schedule("100/s"),
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	res, err := Run(ctx, p, Options{})
	if err != nil || !res.Interrupted {
		t.Fatal(err)
	}
	if m := res.Verify.Messages["mesh"]; m.Lost == 0 || !strings.Contains(strings.Join(res.Notes, "\n"), "ended early: what had not come 10s later counts as lost") {
		t.Errorf("%+v, %q", m, res.Notes)
	}
}
