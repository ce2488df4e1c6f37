package cli

import (
	"os"

	"github.com/rs/zerolog"
)

// dumpsEnv in the environment lets this process dump core, and be attached to by its user.
const dumpsEnv = "LIMPET_CORE_DUMPS"

// guardMemory keeps the keys and passwords that this process is going to hold out of core dumps, unless its user wants these.
func guardMemory(log zerolog.Logger) {
	if os.Getenv(dumpsEnv) == "1" {
		log.Warn().Msg(dumpsEnv + "=1: a core dump of this process would hold its keys")
		return
	}
	if err := forbidDumps(); err != nil {
		log.Warn().Err(err).Msg("core dumps of this process would hold its keys")
	}
}
