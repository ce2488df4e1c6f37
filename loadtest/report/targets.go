package report

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// fewTargets is how many endpoints are named one by one.
const fewTargets = 4

// targets names the endpoints. Many that are the same ports of several hosts, as a mesh's are, are told as such:
// "tcp:1883, wss:8084/mqtt at 10.0.0.1, 10.0.0.2".
func targets(all []string) string {
	if len(all) <= fewTargets {
		return strings.Join(all, ", ")
	}
	var doors, hosts []string
	known := map[[2]string]bool{}
	for _, s := range all {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" {
			return someTargets(all)
		}
		door := u.Scheme
		if p := u.Port(); p != "" {
			door += ":" + p
		}
		door, host := door+u.Path, u.Hostname()
		if !slices.Contains(doors, door) {
			doors = append(doors, door)
		}
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
		known[[2]string{door, host}] = true
	}
	if len(doors)*len(hosts) != len(known) || len(doors)+len(hosts) >= len(all) {
		return someTargets(all)
	}
	return strings.Join(doors, ", ") + " at " + strings.Join(hosts, ", ")
}

// someTargets names the first; the plan in the JSON and on the page has all.
func someTargets(all []string) string {
	return fmt.Sprintf("%s and %d more", strings.Join(all[:fewTargets], ", "), len(all)-fewTargets)
}
