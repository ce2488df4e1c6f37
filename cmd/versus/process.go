//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/gauge"
)

// A process is one that this program started.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string // file with what it said
	out  *bufio.Reader
	in   io.WriteCloser
	gone chan struct{} // closed when it has ended
}

// start runs argv on cores, or on all if there are none. What it writes goes to a file in dir; with talk, its standard output comes back.
func start(name, dir string, cores []int, talk bool, argv ...string) (*process, error) {
	p := &process{name: name, cmd: exec.Command(argv[0], argv[1:]...), log: filepath.Join(dir, name+".log")}
	f, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p.cmd.Stderr = f
	p.cmd.Env = append(os.Environ(), "LIMPET_CORE_DUMPS=1") // its memory is to be measured, by who is not root too
	p.cmd.Stdout = f
	// It ends with us, and hears nothing of what the terminal says to us.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if talk {
		p.cmd.Stdout = nil
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		p.out = bufio.NewReader(out)
		if p.in, err = p.cmd.StdinPipe(); err != nil {
			return nil, err
		}
	}
	if err := onCores(cores, p.cmd.Start); err != nil {
		return nil, err
	}
	p.gone = make(chan struct{})
	go func() {
		_ = p.cmd.Wait()
		close(p.gone)
	}()
	return p, nil
}

// onCores runs fn on a thread that may use cores only, which the process that it starts inherits.
func onCores(cores []int, fn func() error) error {
	if len(cores) == 0 {
		return fn()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, some unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	for _, c := range cores {
		some.Set(c)
	}
	if err := unix.SchedSetaffinity(0, &some); err != nil {
		return fmt.Errorf("sched_setaffinity: %w", err)
	}
	return errors.Join(fn(), unix.SchedSetaffinity(0, &all))
}

// ask sends a request to a child of this program and returns its answer in v.
func (p *process) ask(r request, v any) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("%s: %w%s", p.name, err, p.said())
	}
	if line, err = p.out.ReadBytes('\n'); err != nil {
		return fmt.Errorf("%s: %w%s", p.name, err, p.said())
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	if a.Error != "" {
		return fmt.Errorf("%s: %s: %s", p.name, r.Op, a.Error)
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(a.Value, v)
}

// said is the end of what it wrote, for an error.
func (p *process) said() string {
	text, _ := os.ReadFile(p.log)
	if len(text) == 0 {
		return ""
	}
	return "; it said: " + strings.TrimSpace(string(text[max(0, len(text)-2000):]))
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// tree is the process with its children.
func (p *process) tree() ([]int, error) { return gauge.Tree(p.pid()) }

// end kills the process and its children: nothing that is measured comes after.
func (p *process) end() {
	if p == nil {
		return
	}
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL)
	<-p.gone
}
