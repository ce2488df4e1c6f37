// Package liar is an MQTT proxy that breaks promises on purpose, and says how often: what a load test must find, it finds behind a liar,
// with the right word and the right number. It is test gear.
//
//	l, err := liar.Listen(liar.Config{Brokers: []string{b1, b2}})
//	go l.Run(ctx) // returns when ctx is done and all connections are closed
//	dial(l.Addr())
//	l.Set(liar.Lies{Drop: 10_000}) // one PUBLISH in 10,000; the zero Lies is an honest proxy
//	told := l.Told()               // told.Dropped is what the test must have found
//
// # How it lies
//
// It lies only in ways that nobody repairs. A PUBLISH that is dropped on its way to a subscriber is acknowledged to the broker by the liar
// itself, with the whole handshake of its QoS; otherwise the broker would send it again. A copy has a packet ID of its own, so that to the
// subscriber it is another message, and its acknowledgements end at the liar. Neighbours that change places are of one topic and QoS, where
// order is promised. Messages that need not come, or may come twice anyway (retained ones, those with DUP), are left alone.
//
// Between lies it is honest: it takes a client to the broker that it met last, passes every byte on and ends both sides together. Pause
// holds everything up, like a server that stops for a while.
//
// It reads TCP, and of MQTT only the boundaries of packets, client IDs, topics and packet IDs.
package liar
