// Command limpet is a distributed sticky-routing mesh for MQTT: the edges, their
// stores for small sites, and the operator's verbs. `limpet --help` lists them;
// package cli holds one file for each.
package main

import (
	"os"

	"github.com/limpet-mesh/limpet/cmd/limpet/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
