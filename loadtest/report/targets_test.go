package report

import "testing"

func TestTargets(t *testing.T) {
	for want, all := range map[string][]string{
		"tcp://a:1883, ws://a:80/mqtt": {"tcp://a:1883", "ws://a:80/mqtt"},
		"tcp:1883, wss:8084/mqtt at 10.0.0.1, fe80::1, c": {
			"tcp://10.0.0.1:1883", "tcp://[fe80::1]:1883", "tcp://c:1883", "wss://10.0.0.1:8084/mqtt", "wss://[fe80::1]:8084/mqtt", "wss://c:8084/mqtt",
		},
		"tcp://a:1883, tcp://a:1884, tcp://b:1885, tcp://b:1886 and 1 more": {"tcp://a:1883", "tcp://a:1884", "tcp://b:1885", "tcp://b:1886", "tcp://c:1887"},
		"a, b, c, d and 1 more": {"a", "b", "c", "d", "%"},
	} {
		if got := targets(all); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
