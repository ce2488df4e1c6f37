package cli

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/rs/zerolog"
)

// serveOn makes this process one that SIGINT and SIGTERM alone end, in order: it returns how to tell log of each SIGHUP from now on,
// until end is called.
//
// SIGHUP is what operators, and systemd, send for a reload. Until there is one it must not do what the kernel does with it, which is to
// end the process with all its clients.
//
// SIGPIPE is what a write to standard output or error brings when its reader has died: a log collector that restarts, say. It is
// ignored for good, so that the last words of [Main] do not bring it either; the write fails, and the log counts its lines as lost.
func serveOn(log zerolog.Logger) (end func()) {
	signal.Ignore(syscall.SIGPIPE)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range hangups {
			log.Warn().Str("signal", "SIGHUP").Msg("ignored, for there is no reload yet: restart to read the configuration again; SIGTERM ends in order")
		}
	}()
	return func() {
		signal.Stop(hangups)
		close(hangups)
		<-ended
	}
}
