package tls13

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"runtime"
	"testing"
)

func TestNothingIsAllocated(t *testing.T) {
	forSuites(t, func(t *testing.T, id uint16) {
		server, client := twins(t, id)
		for _, n := range []int{100, maxPlaintext, 50_000} {
			p := make([]byte, n)
			var wire []byte
			if got := testing.AllocsPerRun(100, func() {
				wire = client.Reply(wire[:0])
				wire = client.Seal(wire, p)
				payload, _, err := server.Open(wire)
				if err != nil || len(payload) != n {
					t.Fatal(len(payload), err)
				}
			}); got != 0 && !raceEnabled {
				t.Errorf("%d bytes: %v allocations", n, got)
			}
		}
	})
}

func forSuitesB(b *testing.B, f func(b *testing.B, id uint16)) {
	for _, id := range suites {
		b.Run(tls.CipherSuiteName(id)[4:], func(b *testing.B) { f(b, id) })
	}
}

func BenchmarkSeal(b *testing.B) {
	forSuitesB(b, func(b *testing.B, id uint16) {
		for _, n := range []int{100, maxPlaintext} {
			b.Run(fmt.Sprint(n), func(b *testing.B) {
				_, client := twins(b, id)
				p := make([]byte, n)
				dst := make([]byte, 0, n+Overhead)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					dst = client.Seal(dst[:0], p)
				}
			})
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	forSuitesB(b, func(b *testing.B, id uint16) {
		for _, n := range []int{100, maxPlaintext} {
			b.Run(fmt.Sprint(n), func(b *testing.B) {
				server, client := twins(b, id)
				wire := client.Seal(nil, make([]byte, n))
				raw := make([]byte, len(wire))
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					copy(raw, wire)
					server.in.seq = 0
					if _, _, err := server.Open(raw); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	})
}

// BenchmarkOpenMany opens records of many connections in turn: from a ring that is too short, and from places of their own.
func BenchmarkOpenMany(b *testing.B) {
	for _, n := range []int{100, 1000, 9000} {
		for _, cached := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/cached=%t", n, cached), func(b *testing.B) {
				var cache Cache
				all := make([]*Records, n)
				wires := make([][]byte, n)
				for i := range all {
					server, client := twins(b, tls.TLS_AES_128_GCM_SHA256)
					all[i], wires[i] = server, client.Seal(nil, make([]byte, 100))
					server.Bind(nil)
					if cached {
						server.Bind(&cache)
					}
				}
				raw := make([]byte, 200)
				i := 0
				b.ReportAllocs()
				for b.Loop() {
					r := all[i%n]
					r.in.seq = 0
					if _, _, err := r.Open(raw[:copy(raw, wires[i%n])]); err != nil {
						b.Fatal(err)
					}
					i++
				}
			})
		}
	}
}

func BenchmarkStdlib(b *testing.B) {
	only(b, tls.TLS_AES_128_GCM_SHA256)
	a, c := memPipe()
	done := make(chan *Handover, 1)
	go func() {
		h, _ := NewServer(serverConfig(), Crypto).Handshake(context.Background(), a)
		done <- h
	}()
	client, err := Client(context.Background(), c, clientConfig(), Crypto)
	if err != nil {
		b.Fatal(err)
	}
	server := <-done
	p := make([]byte, 100)
	var wire []byte
	b.ReportAllocs()
	for b.Loop() { // a Seal and an Open
		wire = client.Stdlib.Seal(wire[:0], p)
		if _, _, err := server.Stdlib.Open(wire); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	forSuitesB(b, func(b *testing.B, id uint16) {
		server, _ := twins(b, id)
		state := server.AppendState(nil)
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := ReadState(state); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkHandshake shakes hands both ways in memory: with crypto/tls alone, and with the records taken over by the server.
func BenchmarkHandshake(b *testing.B) {
	for _, mode := range []string{"tls", "crypto", "own"} {
		b.Run(mode, func(b *testing.B) {
			config := serverConfig()
			s := NewServer(config, map[string]Policy{"own": Own}[mode])
			client := clientConfig()
			b.ReportAllocs()
			for b.Loop() {
				a, c := memPipe()
				done := make(chan error, 1)
				go func() { done <- tls.Client(c, client).Handshake() }()
				var err error
				if mode == "tls" {
					err = tls.Server(a, config).Handshake()
				} else {
					_, err = s.Handshake(context.Background(), a)
				}
				if err != nil {
					b.Fatal(err)
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHeld tells what an idle connection holds.
func BenchmarkHeld(b *testing.B) {
	for _, policy := range []Policy{Own, Crypto} {
		b.Run(map[Policy]string{Own: "own", Crypto: "crypto"}[policy], func(b *testing.B) {
			const n = 300
			heap := func() uint64 {
				var m runtime.MemStats
				runtime.GC()
				runtime.GC() // twice: pools are emptied by the second
				runtime.ReadMemStats(&m)
				return m.HeapAlloc
			}
			s := NewServer(serverConfig(), policy)
			for b.Loop() {
				before := heap()
				var kept [n]layer
				for i := range kept {
					a, c := memPipe()
					go func() { _ = tls.Client(c, clientConfig()).Handshake() }()
					h, err := s.Handshake(context.Background(), a)
					if err != nil {
						b.Fatal(err)
					}
					if kept[i] = h.Stdlib; h.Records != nil {
						kept[i] = h.Records
					}
				}
				b.ReportMetric(float64(heap()-before)/n, "B/connection")
				runtime.KeepAlive(&kept)
			}
		})
	}
}

var sink []byte

func BenchmarkState(b *testing.B) {
	server, _ := twins(b, tls.TLS_AES_128_GCM_SHA256)
	var state []byte
	b.ReportAllocs()
	for b.Loop() {
		state = server.AppendState(state[:0])
	}
	sink = bytes.Clone(state)
}
