package cli

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/rs/zerolog"
)

// serveOn makes this process one that SIGINT and SIGTERM alone end, in order: from now on SIGHUPs are told by hangups, until end is called
// and closes it.
//
// SIGHUP is what operators, and systemd, send for a reload. Whatever it does, it must not be what the kernel does with it, which is to end
// the process with all its clients. One that waits stands for all that come meanwhile.
//
// SIGPIPE is what a write to standard output or error brings when its reader has died: a log collector that restarts, say. It is
// ignored for good, so that the last words of [Main] do not bring it either; the write fails, and the log counts its lines as lost.
func serveOn() (hangups <-chan os.Signal, end func()) {
	signal.Ignore(syscall.SIGPIPE)
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c, func() {
		signal.Stop(c)
		close(c)
	}
}

// serveOnRegardless is serveOn for a verb that has nothing to reload: each SIGHUP is a line in log.
func serveOnRegardless(log zerolog.Logger) (end func()) {
	hangups, stop := serveOn()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range hangups {
			log.Warn().Str("signal", "SIGHUP").Msg("ignored, for there is no reload yet: restart to read the configuration again; SIGTERM ends in order")
		}
	}()
	return func() {
		stop()
		<-ended
	}
}
