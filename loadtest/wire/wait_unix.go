//go:build unix

package wire

import "golang.org/x/sys/unix"

func (c *tcpConn) Wait() error { return c.raw.Read(readable) }

// readable tells whether a read of fd would not block. The runtime's poller must be asked this way first: it tells of news only, not of
// what came before and is not read yet.
func readable(fd uintptr) bool {
	for {
		p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p[:], 0)
		if err != unix.EINTR {
			return n != 0 // also -1: Read tells the error
		}
	}
}
