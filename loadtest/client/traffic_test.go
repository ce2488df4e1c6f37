package client

import (
	"runtime"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// TestTraffic: what is exchanged, and sent again after the connection was lost, is counted to the byte.
func TestTraffic(t *testing.T) {
	for _, d := range drivers {
		if d.loops > 0 && !loopsSupported {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, d, Config{}, wire.Config{})
			r.con.Clean, r.con.Expiry = false, 60
			p := r.connect()
			r.publish(7, "t", "again", 1)
			p.expectPublish("t", "again", 1, false)
			r.client.Abort()
			r.told.expect(t, "closed session: abort")
			p = r.resume()
			id := p.expectPublish("t", "again", 1, true)
			p.sendAck(mqtt.PUBACK, id, 0)
			r.told.expect(t, "acked 7 0x00")

			connect := len(r.con.Append(nil))
			publish, err := mqtt.PublishSize(mqtt.V5, &mqtt.Publish{Topic: []byte("t"), Payload: []byte("again"), QoS: 1})
			if err != nil {
				t.Fatal(err)
			}
			want := Traffic{Out: int64(2 * (connect + publish)), In: int64(2*5 + len(mqtt.AppendAck(nil, mqtt.V5, mqtt.PUBACK, id, 0))), Resent: 1}
			got := r.engine.Traffic()
			for end := time.Now().Add(patience); got != want && time.Now().Before(end); got = r.engine.Traffic() {
				runtime.Gosched() // a writer counts after its write
			}
			if got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}
