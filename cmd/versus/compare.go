//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/peer"
)

// Report is everything that a run found, as --json writes it.
type Report struct {
	Command  []string                     `json:"command"`
	Date     time.Time                    `json:"date"`
	Machine  machine                      `json:"machine"`
	Params   *params                      `json:"params"`
	Versions map[string]string            `json:"versions"` // by peer
	Configs  map[string]map[string]string `json:"configs"`  // by mode and peer, then by file: of the first repetition
	Missing  []string                     `json:"missing,omitempty"`
	Differs  []string                     `json:"differs"`
	Table    []mode                       `json:"table"`
	Units    []*unit                      `json:"units"`
}

type machine struct {
	System      string `json:"system"`
	CPU         string `json:"cpu"`
	Cores       int    `json:"cores"`
	Memory      int64  `json:"memory"` // bytes
	Descriptors uint64 `json:"descriptors"`
	Go          string `json:"go"`
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.System = unix.ByteSliceToString(name.Sysname[:]) + " " + unix.ByteSliceToString(name.Release[:]) + " " + unix.ByteSliceToString(name.Machine[:])
	}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan() && m.CPU == ""; {
			if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
			}
		}
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = int64(info.Totalram) * int64(info.Unit)
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		m.Descriptors = limit.Cur
	}
	return m
}

// raiseDescriptors gives this process, and those that it starts, as many descriptors as it may have.
func raiseDescriptors() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("getrlimit: %w", err)
	}
	// The Go runtime gives its children back the soft limit that it found, unless somebody has set another one.
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("setrlimit: %w", err)
	}
	return nil
}

func compare(ctx context.Context, p *params, stdout, stderr io.Writer) error {
	if err := raiseDescriptors(); err != nil {
		return err
	}
	r := &Report{
		Command: os.Args, Date: time.Now(), Machine: thisMachine(), Params: p, Versions: map[string]string{}, Configs: map[string]map[string]string{}, Missing: p.missing,
	}
	for _, m := range p.missing {
		fmt.Fprintln(stderr, m)
	}
	if need := uint64(2*p.Idle + 500); r.Machine.Descriptors < need && r.wants(idle) {
		fmt.Fprintf(stderr, "%d idle clients take a proxy %d descriptors, and %d are allowed (ulimit -n): this will fail; --idle takes less\n", p.Idle, need, r.Machine.Descriptors)
	}
	dir, err := os.MkdirTemp("", "versus-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for i := range p.Peers {
		one := &p.Peers[i]
		if err := one.Build(ctx, dir); err != nil {
			return err
		}
		r.Versions[one.Name] = one.Version()
	}
	cert := filepath.Join(dir, "cert.pem")
	if err := writeCertificate(cert); err != nil {
		return err
	}
	r.Differs = peer.Differences(p.Modes)
	for _, m := range p.Modes {
		stopped := r.measure(ctx, m, cert, stderr)
		t := tabulate(p, m, r.Units)
		r.Table = append(r.Table, t)
		t.print(stdout)
		if err := errors.Join(stopped, r.write()); err != nil { // what there is so far is shown and written
			return err
		}
	}
	r.printEnd(stdout)
	return r.write()
}

func (r *Report) wants(figure string) bool {
	for _, m := range r.Params.Modes {
		for _, f := range r.Params.figures(m) {
			if f == figure {
				return true
			}
		}
	}
	return false
}

// measure measures all figures of a mode: for each figure all repetitions, in each of them one peer after the other. Who begins changes.
func (r *Report) measure(ctx context.Context, m peer.Mode, cert string, stderr io.Writer) error {
	p := r.Params
	for _, figure := range p.figures(m) {
		for rep := range p.Reps {
			for i := range p.Peers {
				one := p.Peers[(i+rep)%len(p.Peers)]
				if !one.Speaks(m) {
					continue
				}
				begin := time.Now()
				u, configs, err := p.measureQuietly(ctx, one, m, figure, rep, cert)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil { // another repetition may do better
					u = &unit{Mode: m, Figure: figure, Peer: one.Name, Rep: rep, Begin: begin, Faults: []string{err.Error()}}
				}
				r.Units = append(r.Units, u)
				if key := string(m) + " " + one.Name; r.Configs[key] == nil && configs != nil {
					r.Configs[key] = configs
				}
				fmt.Fprintf(stderr, "%s %s %d/%d %s: %.1f s, others %.0f %%%s\n", m, figure, rep+1, p.Reps, one.Name, time.Since(begin).Seconds(), 100*u.others(), u.note())
			}
		}
	}
	return nil
}

// tries is how often a unit is measured at most when other programs disturb it.
const tries = 3

// measureQuietly measures a unit; with patience, on a machine that does little else, and again if something else ran meanwhile. It returns the
// one that was disturbed least: what it found plays no part in that.
func (p *params) measureQuietly(ctx context.Context, one peer.Peer, m peer.Mode, figure string, rep int, cert string) (best *unit, configs map[string]string, err error) {
	for try := range tries {
		if err := waitQuiet(ctx, p.Patience); err != nil {
			return nil, nil, err
		}
		u, c, err := p.measure(ctx, one, m, figure, rep, cert)
		if err != nil {
			return nil, nil, err
		}
		if best == nil || u.others() < best.others() {
			best, configs = u, c
		}
		best.Tries = try + 1
		if p.Patience == 0 || u.others() < quiet {
			break
		}
	}
	return best, configs, nil
}

// others is the share of the machine that other programs used while u was measured.
func (u *unit) others() (most float64) {
	for _, s := range u.Spent {
		most = max(most, s.Others.Seconds()/s.Elapsed.Seconds()/float64(runtime.NumCPU()))
	}
	return most
}

func (u *unit) note() string {
	all := u.Faults
	if u.Late != "" {
		all = append(all[:len(all):len(all)], u.Late)
	}
	if len(all) == 0 {
		return ""
	}
	return ": " + strings.Join(all, "; ")
}

func (r *Report) write() error {
	if r.Params.JSON == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(r.Params.JSON, append(text, '\n'), 0o644)
}

// writeCertificate makes an ECDSA P-256 certificate for 127.0.0.1 that is its own authority: name, name.key, and both in name.both.
func writeCertificate(name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "versus"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(7 * 24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &cert, &cert, &key.PublicKey, key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	for file, text := range map[string][]byte{name: certPEM, name + ".key": keyPEM, name + ".both": append(certPEM[:len(certPEM):len(certPEM)], keyPEM...)} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}
