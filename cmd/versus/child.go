//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/load"
	"github.com/limpet-mesh/limpet/cmd/versus/internal/sink"
)

// A child is this program again, as broker or generator: `versus sink BROKERS PROTOCOL`, `versus load TARGET`. It answers each line of its
// standard input, a request, with a line, and ends with it.
type request struct {
	Op       string        `json:"op"`
	Connects load.Connects `json:"connects,omitzero"`
	Rate     float64       `json:"rate,omitempty"`
	Window   int           `json:"window,omitempty"`
}

type answer struct {
	Error string          `json:"error,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
}

func child(args []string, in io.Reader, out, stderr io.Writer) int {
	// A loop that waits by raw system calls keeps its processor: there have to be more, also where the process may use one core only.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 4))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var err error
	switch {
	case args[0] == "sink" && len(args) == 3:
		err = runSink(ctx, cancel, args[1], args[2], in, out)
	case args[0] == "load" && len(args) == 2:
		err = runLoad(ctx, args[1], in, out, stderr)
	default:
		err = fmt.Errorf("no such verb: %q (versus has flags only: --help)", args)
	}
	if err != nil {
		fmt.Fprintln(stderr, "versus:", err)
		return 1
	}
	return 0
}

func runSink(ctx context.Context, cancel context.CancelFunc, brokers, protocol string, in io.Reader, out io.Writer) error {
	n, err := strconv.Atoi(brokers)
	if err != nil {
		return err
	}
	speaks := sink.MQTT
	if protocol == "ws" {
		speaks = sink.WebSocket
	}
	s, err := sink.Listen(n, speaks)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ended <- s.Run(ctx)
	}()
	serve(in, out, func(r request) (any, error) {
		if r.Op == "addresses" {
			return s.Addresses(), nil
		}
		return s.Counts(), nil
	})
	cancel()
	return <-ended
}

func runLoad(ctx context.Context, target string, in io.Reader, out, stderr io.Writer) error {
	var t load.Target
	if err := json.Unmarshal([]byte(target), &t); err != nil {
		return err
	}
	l, err := load.New(t)
	if err != nil {
		return err
	}
	go func() {
		if err := l.Run(ctx); err != nil { // whoever waits for an answer is told by the end of this process
			fmt.Fprintln(stderr, "versus:", err)
			os.Exit(1)
		}
	}()
	serve(in, out, func(r request) (any, error) {
		switch r.Op {
		case "connect":
			return l.Connect(ctx, r.Connects)
		case "traffic":
			return nil, l.Traffic(ctx, r.Rate)
		case "saturate":
			return nil, l.Saturate(r.Window)
		case "mark":
			return l.Mark(), nil
		case "stop":
			return l.Stop(ctx), nil
		}
		return nil, fmt.Errorf("no such request: %q", r.Op)
	})
	return nil // the end of the process closes the sockets: sooner than 8,000 clients would in order
}

func serve(in io.Reader, out io.Writer, do func(request) (any, error)) {
	lines := bufio.NewReader(in)
	write := json.NewEncoder(out)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var r request
		var a answer
		err = json.Unmarshal(line, &r)
		if err == nil {
			var v any
			if v, err = do(r); err == nil && v != nil {
				a.Value, err = json.Marshal(v)
			}
		}
		if err != nil {
			a.Error = err.Error()
		}
		if write.Encode(a) != nil {
			return
		}
	}
}
