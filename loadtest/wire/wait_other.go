//go:build !unix

package wire

// Wait returns at once: the Read after it waits, with the caller's buffer.
func (c *tcpConn) Wait() error { return nil }
