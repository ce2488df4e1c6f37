package mqtt

import (
	"bytes"
	"testing"
)

// hotPath is what an edge does for every client or every read; none of it may allocate.
func hotPath(t testing.TB) []struct {
	name  string
	bytes int
	run   func()
} {
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	v311 := unhex(t, "103000044d51545404d4003c000a6c696d7065742d3331310005772f3331310004676f6e650003616e6e0006736563726574")
	v5 := unhex(t, "107900044d51545405ec003c2d21000a2700010000220007260004726f636b0004706f6f6c260004726f636b0005706f6f6c3217011100000e1000086c696d7065742d35"+
		"1e180000005a03000a746578742f706c61696e0200000005260001610001620003772f350004676f6e650003616e6e0006736563726574")
	connack3 := unhex(t, "20020000")
	connack5 := unhex(t, "203500003222000a1200296175746f2d39324343343943302d314331342d364543412d463044392d353435363742313841383031210014")
	disconnect5 := unhex(t, "e014001211000000782600016b0001761f0003627965")
	small := bytes.Repeat(unhex(t, "3010 0005'a/b/c' 'payload!!'"), 1000) // 1,000 packets of 18 bytes
	large := append(appendUvarint([]byte{0x30}, 1<<20), make([]byte, 1<<20)...)
	reply := make([]byte, 0, 64)

	return []struct {
		name  string
		bytes int
		run   func()
	}{
		{"ParseConnect/3.1.1", len(v311), func() { _, err := ParseConnect(v311, testLimit); must(err) }},
		{"ParseConnect/5", len(v5), func() { _, err := ParseConnect(v5, testLimit); must(err) }},
		{"ParseConnect/short", 20, func() {
			if _, err := ParseConnect(v5[:20], testLimit); err != ErrShort {
				t.Fatal(err)
			}
		}},
		{"ParseConnack/3.1.1", len(connack3), func() { _, err := ParseConnack(connack3, V311); must(err) }},
		{"ParseConnack/5", len(connack5), func() { _, err := ParseConnack(connack5, V5); must(err) }},
		{"ParseDisconnect/5", len(disconnect5), func() { _, err := ParseDisconnect(disconnect5, V5); must(err) }},
		{"AppendConnack+Disconnect", 9, func() {
			if b := AppendDisconnect(AppendConnack(reply, V5, false, ServerBusy), V5, ServerBusy); len(b) != 9 {
				t.Fatal(len(b))
			}
		}},
		{"Scanner.Skip/1000 small packets", len(small), func() {
			var s Scanner
			if n, ended, err := s.Skip(small, 1<<DISCONNECT); n != len(small) || ended != 1000 || err != nil {
				t.Fatal(n, ended, err)
			}
		}},
		{"Scanner.Step/1000 small packets", len(small), func() {
			var s Scanner
			ended := 0
			for p := small; len(p) > 0; {
				n, ev, err := s.Step(p)
				must(err)
				if ev&End != 0 {
					ended++
				}
				p = p[n:]
			}
			if ended != 1000 {
				t.Fatal(ended)
			}
		}},
		{"Scanner.Skip/1 MiB in reads of 16 KiB", len(large), func() {
			var s Scanner
			ended := 0
			for p := large; len(p) > 0; {
				q := p[:min(16<<10, len(p))]
				n, e, err := s.Skip(q, 1<<DISCONNECT)
				must(err)
				ended += e
				p = p[n:]
			}
			if ended != 1 {
				t.Fatal(ended)
			}
		}},
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	for _, h := range hotPath(t) {
		if n := testing.AllocsPerRun(20, h.run); n != 0 {
			t.Errorf("%s: %v allocations", h.name, n)
		}
	}
}

func BenchmarkMQTT(b *testing.B) {
	for _, h := range hotPath(b) {
		b.Run(h.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(h.bytes))
			for b.Loop() {
				h.run()
			}
		})
	}
}

// BenchmarkRefuse is what a stranger costs: errors are the only thing that allocates.
func BenchmarkRefuse(b *testing.B) {
	tls := unhex(b, "16030100f8010000f40303")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseConnect(tls, testLimit); err == ErrShort {
			b.Fatal(err)
		}
	}
}
