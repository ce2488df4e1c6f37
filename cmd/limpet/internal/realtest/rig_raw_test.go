package realtest

import (
	"fmt"
	"io"
	"net"
	"time"
)

// rawConnect is the least that an MQTT 3.1.1 client can do: a TCP connection, CONNECT, CONNACK.
func rawConnect(address, id string, clean bool, within time.Duration) (conn net.Conn, present bool, err error) {
	conn, err = net.DialTimeout("tcp", address, within)
	if err != nil {
		return nil, false, err
	}
	conn.SetDeadline(time.Now().Add(within))
	if _, err = conn.Write(appendConnect(nil, id, clean)); err == nil {
		var ack [4]byte
		if _, err = io.ReadFull(conn, ack[:]); err == nil && (ack[0] != 0x20 || ack[1] != 2 || ack[3] != 0) {
			err = fmt.Errorf("answered with %x", ack)
		}
		present = ack[2] == 1
	}
	if err != nil {
		conn.Close()
		return nil, false, fmt.Errorf("%s at %s: %w", id, address, err)
	}
	conn.SetDeadline(time.Time{})
	return conn, present, nil
}

// hangUp sends DISCONNECT and closes.
func hangUp(conn net.Conn) {
	if conn != nil {
		conn.Write([]byte{0xe0, 0})
		conn.Close()
	}
}

// ends waits until the peer closes the connection; what it says before is dropped.
func ends(conn net.Conn, within time.Duration) error {
	conn.SetReadDeadline(time.Now().Add(within))
	_, err := io.Copy(io.Discard, conn)
	if e, ok := err.(net.Error); ok && e.Timeout() {
		return fmt.Errorf("still connected after %v", within)
	}
	return nil
}
