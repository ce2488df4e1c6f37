package result

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{``, "line 1, column 0"},
		{`{`, "unexpected end"},
		{"{\n\"schema\": x}", "line 2, column 11"},
		{`{}`, `no field "schema"`},
		{`{"schema":2}`, "its schema is 2, and this program reads 1"},
		{`{"schema":1,"duration_ns":"x"}`, "duration_ns"},
		{`{"schema":1,"duration_ns":-1}`, "duration_ns is -1"},
		{`{"schema":1,"counters":{"publishes":-1}}`, "counters.publishes holds the count -1"},
		{`{"schema":1,"counters":{"publishes":9223372036854775807}}`, "counters.publishes"},
		{`{"schema":1,"errors":{"tls":-4}}`, "errors.tls"},
		{`{"schema":1,"latency":{"e2e":{"count":3}}}`, "latency.e2e"},
		{`{"schema":1,"series":{"width_s":3,"rows":[]}}`, "series.width_s is 3"},
		{`{"schema":1,"series":{"width_s":2,"rows":[{"t":1}]}}`, "series.rows[0].t is 1"},
		{`{"schema":1,"series":{"width_s":1,"rows":[{"t":1},{"t":1}]}}`, "series.rows[1].t is 1 after 1"},
		{`{"schema":1,"series":{"width_s":1,"rows":[{"t":1,"errors":-1}]}}`, "holds the count -1"},
		{`{"schema":1,"series":{"width_s":1,"rows":[{"t":1,"e2e":{"max_us":1,"buckets":"/////w=="}}]}}`, "distribution of a second"},
		{`{"schema":1,"series":{"width_s":1,"rows":[{"t":1,"e2e":{"max_us":9,"buckets":"AQE="}}]}}`, "not in its last bucket"},
		{`{"schema":1,"verify":{"judged":1,"sticky":2}}`, "verify.sticky is 2 of 1"},
		{`{"schema":1,"verify":{"messages":{"mesh":null}}}`, "verify.messages.mesh is null"},
		{`{"schema":1,"verify":{"moves":{"count":0,"entries":[{}]}}}`, "verify.moves counts 0 and lists 1"},
		{`{"schema":1,"race":{"splits":{"count":2,"entries":[{"at_ns":2},{"at_ns":1}]}}}`, "race.splits is not in order"},
		{`{"schema":1,"generator":{"late":-1}}`, "generator holds"},
		{`{"schema":1,"faults":[{"begin_ns":-5}]}`, "faults[0]"},
	} {
		_, err := Decode(strings.NewReader(c.text))
		if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrHistogram) && !errors.Is(err, errSpread) || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s:\n\tgot %v, want %s", c.text, err, c.want)
		}
	}
	if _, err := Decode(endless{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("an endless text: %v", err)
	}
}

// endless never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// TestNewerResultsAreRead: a field or a name that this program does not know is no error.
func TestNewerResultsAreRead(t *testing.T) {
	r, err := Unmarshal([]byte(`{"schema":1,"new":{},"counters":{"new":1,"acked":2},"latency":{"new":{}},"errors":{"new":3}}`))
	if err != nil || r.Counters[Acked] != 2 || r.Errors["new"] != 3 || r.Errors["tls"] != 0 {
		t.Errorf("%v %v", r, err)
	}
}

func FuzzDecode(f *testing.F) {
	full := measured()
	full.Faults = []Fault{{Number: 1, Spec: "at 1s kill broker b1", Begin: 1, End: 2, Outage: &full.Latency[Connack]}}
	full.Sweep = &Sweep{Objective: "connack.p99<1s", Steps: []SweepStep{{Rate: 5}}}
	full.Verify.Moves.Add(Move{Client: "c"})
	for _, r := range []*Result{New(), full} {
		var b bytes.Buffer
		if err := r.Encode(&b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Unmarshal(text)
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := r.Encode(&b); err != nil {
			t.Fatal(err)
		}
		again, err := Decode(&b)
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		same(t, "read, written, read", again, r)
		sum := Merge(r, again)
		if sum.Counters[Publishes] != 2*r.Counters[Publishes] || sum.Latency[E2E].Count() != 2*r.Latency[E2E].Count() {
			t.Errorf("twice the same is not twice as much")
		}
		for _, a := range []string{"stickiness>1", "connack.p99<1s", "publish.rate>1", "knee>1"} {
			must(a).Evaluate(r)
		}
		if m := r.Measured(); m < 0 {
			t.Errorf("measured %v", m)
		}
	})
}
