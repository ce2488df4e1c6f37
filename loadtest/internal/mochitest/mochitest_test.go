package mochitest

import (
	"fmt"
	"net"
	"testing"
)

// TestClientsThatLeaveAtOnce: a broker ends in order while its clients have only just come, and gone.
func TestClientsThatLeaveAtOnce(t *testing.T) {
	for i := range 50 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			_, at := Start(t)
			c, err := net.Dial("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	}
}
