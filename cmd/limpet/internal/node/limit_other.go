//go:build !unix

package node

// descriptorLimit is not known on this system.
func descriptorLimit() int { return 0 }
