//go:build !unix

package result

func readUsage() usage { return usage{} }
