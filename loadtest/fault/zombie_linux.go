package fault

import (
	"bytes"
	"os"
	"strconv"
)

// zombie reports whether a process has ended and only waits for its parent to notice (proc(5), stat: the letter behind the name).
func zombie(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	i := bytes.LastIndexByte(stat, ')') // the name may hold any character
	return i > 0 && i+2 < len(stat) && (stat[i+2] == 'Z' || stat[i+2] == 'X')
}
