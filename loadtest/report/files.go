package report

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

// CSV writes the series, a line for each row: rates a second, and times in milliseconds. A time is empty in a row that
// has none.
func CSV(w io.Writer, r *result.Result) error {
	out := csv.NewWriter(w)
	head := []string{"t_s", "warmup", "connected", "connects", "closed", "publishes", "acked", "receives", "errors", "late"}
	for _, name := range []string{"connack", "puback", "e2e"} {
		head = append(head, name+"_p50_ms", name+"_p99_ms", name+"_max_ms")
	}
	if err := out.Write(head); err != nil {
		return err
	}
	number := func(v float64) string { return strconv.FormatFloat(math.Round(v*1000)/1000, 'f', -1, 64) }
	s := &r.Series
	for i := range s.Rows {
		row := &s.Rows[i]
		line := []string{strconv.FormatInt(row.T, 10), strconv.FormatBool(row.Warmup), number(s.Connected(row))}
		for _, n := range []int64{row.Connects, row.Closed, row.Publishes, row.Acked, row.Receives, row.Errors, row.Late} {
			line = append(line, number(s.Rate(row, n, time.Duration(r.Duration))))
		}
		for _, spread := range []result.Spread{row.Connack, row.Puback, row.E2E} {
			if spread.Count() == 0 {
				line = append(line, "", "", "")
				continue
			}
			p := spread.Percentiles(50, 99)
			line = append(line, number(float64(p[0])/1000), number(float64(p[1])/1000), number(float64(spread.Max)/1000))
		}
		if err := out.Write(line); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

// ticks is how many lines a distribution has for every halving of the distance to 100 %; plotters expect 5.
const ticks = 5

// HGRM writes one distribution, in milliseconds, as HdrHistogram's outputPercentileDistribution does: its plotters read
// it.
func HGRM(w io.Writer, h *result.Histogram) error {
	out := bufio.NewWriter(w)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	fmt.Fprintf(out, "%12s %14s %10s %14s\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")
	for s := range h.Steps(ticks) {
		share := s.Percentile / 100
		if share >= 1 {
			fmt.Fprintf(out, "%12.3f %2.12f %10d\n", ms(s.Value), share, s.Count)
		} else {
			fmt.Fprintf(out, "%12.3f %2.12f %10d %14.2f\n", ms(s.Value), share, s.Count, 1/(1-share))
		}
	}
	fmt.Fprintf(out, "#[Mean    = %12.3f, StdDeviation   = %12.3f]\n", ms(h.Mean()), ms(h.StdDev()))
	fmt.Fprintf(out, "#[Max     = %12.3f, Total count    = %12d]\n", ms(h.Max()), h.Count())
	fmt.Fprintf(out, "#[Buckets = %12d, SubBuckets     = %12d]\n", 22, 2048) // of 1 µs to 1 h with 3 digits
	return out.Flush()
}

// WriteHGRM writes a file for every latency that has times: for "run.hgrm" run.connack.hgrm, run.e2e.service.hgrm and so
// on. It returns their names.
func WriteHGRM(path string, r *result.Result) ([]string, error) {
	ext := filepath.Ext(path)
	var names []string
	for _, l := range result.Latencies() {
		h := &r.Latency[l]
		if h.Count() == 0 {
			continue
		}
		name := strings.TrimSuffix(path, ext) + "." + l.String() + ext
		if err := writeFile(name, func(w io.Writer) error { return HGRM(w, h) }); err != nil {
			return names, err
		}
		names = append(names, name)
	}
	return names, nil
}

// WriteHTML writes the page to a file.
func WriteHTML(path string, r *result.Result) error {
	return writeFile(path, func(w io.Writer) error { return HTML(w, r) })
}

// Creatable reports whether WriteHTML and WriteHGRM could write files where path says, and leaves nothing there: better known before a run
// than after it.
func Creatable(path string) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		if info.IsDir() {
			return fmt.Errorf("report: %s is a directory", path)
		}
		return nil // a pipe or a device, which opening may disturb
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0) // neither created nor truncated
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("report: %w", err)
	}
	f, err = os.CreateTemp(filepath.Dir(path), ".limpet-*")
	if err != nil {
		if cause, ok := errors.AsType[*os.PathError](err); ok {
			err = cause.Err // the name is one that nobody gave
		}
		return fmt.Errorf("report: cannot create %s: %w", path, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	err = write(f)
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return fmt.Errorf("report: writing %s: %w", name, err)
	}
	return nil
}
