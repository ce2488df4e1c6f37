// Package tls13 goes on with a TLS connection where crypto/tls has left it after the handshake: records in, payload out, without a
// socket, a goroutine, a lock or a clock, so that one loop can carry thousands of connections.
//
//	server := tls13.NewServer(config, tls13.Own)  // once for each listener: it holds the keys of the session tickets
//	h, err := server.Handshake(ctx, conn)         // crypto/tls; blocks; conn keeps its deadlines
//	...                                           // from here on conn is the caller's: no more than Rest was read from it
//	h.Records.Bind(cache)                         // the loop's; h.Records == nil: use h.Stdlib, see h.Why
//	payload, rest, err := h.Records.Open(h.Rest)  // then with what the socket brings, behind rest
//	out = h.Records.Reply(out[:0])                // KeyUpdate or alert: most of the time nothing
//	out = h.Records.Seal(out, answer)
//	out = h.Records.End(out)                      // close_notify
//
// crypto/tls does all that is difficult: the handshake, certificates, tickets. What is left is RFC 8446 §5 and the few messages that
// may follow a handshake, and is done here ([Records]) for what it saves: an idle connection is 240 bytes instead of 7 KB, and all
// of it is a value of some hundred bytes ([Records.AppendState]) with which another process can go on.
//
// The two application traffic secrets come from the key log of a configuration cloned for that one connection. The sequence numbers
// follow from never reading past the record that holds the peer's Finished, and from counting the records (session tickets) that
// open under our own new key among those that the handshake wrote. After that the tls.Conn is dropped, and its way to the socket
// is cut: a record of its own would use a nonce a second time.
//
// Where any of this is not as expected, also with TLS 1.2 and in FIPS 140-3 mode, the tls.Conn stays in charge ([Stdlib]), over
// memory instead of a socket, behind the same methods.
//
// What it refuses: early data, post-handshake client authentication, renegotiation, records after an alert. As a client it does not
// keep the session tickets that arrive after the handshake, so that connections to servers are not resumed.
//
// Secrets are never printed. [Records.Wipe] overwrites them; copies inside crypto/tls and crypto/cipher are out of reach, and are
// left to the garbage collector.
package tls13
