//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "versus: only on Linux: what processes cost is read from /proc")
	os.Exit(1)
}
