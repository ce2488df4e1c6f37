// Package ledger keeps the books of a run: which messages were promised and which came, how often, in which order and how late; and
// which broker each client met. Numbers go in, verdicts come out: no sockets, no clocks, no dice.
//
//	books := ledger.New(ledger.Config{Late: time.Second})
//	s := books.Stream("pub-7", "lt/7", 1) // numbers 1, 2, … of one publisher on one topic at one QoS
//	f := s.Flow("sub-9", 1)               // and one who subscribed to it
//	f.Subscribed(s.Last() + 1)            // at the SUBACK
//	s.Sent(1)                             // before it is written
//	s.Acked(1)                            // PUBACK or PUBCOMP
//	f.Received(1, dup, sent, now)
//	report := books.Settle(now, nil)      // after the last message had time to arrive
//
// # What is promised
//
// A server that acknowledges a message of QoS 1 or 2 owes it to everyone who was subscribed when it was sent. Missing then means
// lost, unless the subscriber's session itself was lost meanwhile (a CONNACK without Session Present where one was due): those
// messages are counted apart, since a broker that dies takes what only it knew. Of QoS 0 nothing is owed; what is missing is counted
// in its own row. A message that was never acknowledged may come or not.
//
// Order is promised for the same topic and QoS, as received from one client [MQTT-4.6.0-5] (3.1.1: [MQTT-4.6.0-6]): that is a stream.
// Reordered is a message whose first delivery comes behind one with a higher number; deliveries after the first never are.
//
// At QoS 1 a second delivery is legal if it says so (DUP, set by a resend to the subscriber), or if the publisher may have sent the
// message again, because its connection broke before the acknowledgement: a server counts that as a new message [MQTT-3.3.1-3]. At QoS
// 2 neither is an excuse [MQTT-4.3.3-10], except that the publisher's session was lost.
//
// # What it costs
//
// Numbers are kept as intervals: a million messages in order cost what one costs. Disorder costs an interval for each hole, up to a
// bound; beyond it the oldest numbers are settled early, and what still comes of them is counted as forgotten, nothing else. Every
// count has examples (who, what, when), a bounded number of each kind.
//
// It refuses to guess: a publisher, its subscribers and their sessions must be told to one Ledger, and copies that are legal for
// other reasons (retained messages, overlapping or shared subscriptions) must not be told at all.
package ledger
