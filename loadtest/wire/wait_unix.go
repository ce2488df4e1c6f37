//go:build unix

package wire

import "golang.org/x/sys/unix"

func (c *tcpConn) Wait() error { return c.raw.Read(readable) }

// readable tells whether a read of fd would not block, without reading: the poller tells news only, so it must be asked whether there is
// something old first.
func readable(fd uintptr) bool {
	for {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
		if err != unix.EINTR {
			return err != unix.EAGAIN
		}
	}
}
