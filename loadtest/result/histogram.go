package result

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The range of every latency: microseconds, up to an hour, three digits. What is longer counts as an hour, what is
// negative (clocks of two machines) as zero. All histograms are alike, so that adding one to another loses nothing.
const (
	longest    = int64(time.Hour / time.Microsecond)
	digits     = 3
	maxEncoded = 1 << 20 // of one histogram in JSON: every bucket in use, hardly compressed, is a third of it
)

// ErrHistogram is what decoding text that is no histogram of ours gives.
var ErrHistogram = errors.New("result: not a histogram of 1 µs to 1 h with 3 digits")

// A Histogram is a distribution of times with three significant digits. Its zero value is empty and takes no memory.
// It is not safe for concurrent use.
type Histogram struct {
	hdr *hdrhistogram.Histogram
}

// microseconds returns d (ns) as a histogram holds it.
func microseconds(d int64) int64 {
	switch {
	case d <= 0:
		return 0
	case d >= longest*1000:
		return longest
	}
	return (d + 500) / 1000
}

// Record adds one time.
func (h *Histogram) Record(d time.Duration) { h.add(microseconds(int64(d)), 1) }

func (h *Histogram) add(us, n int64) {
	if h.hdr == nil {
		h.hdr = hdrhistogram.New(1, longest, digits)
	}
	// The one error left is a total beyond 63 bits, which no run reaches and Decode refuses.
	_ = h.hdr.RecordValues(us, n)
}

// Count returns how many times were recorded.
func (h *Histogram) Count() int64 {
	if h == nil || h.hdr == nil {
		return 0
	}
	return h.hdr.TotalCount()
}

// Percentile returns the time that p percent (0 … 100) of all did not exceed; 0 if there is none.
func (h *Histogram) Percentile(p float64) time.Duration {
	if h.Count() == 0 {
		return 0
	}
	return time.Duration(h.hdr.ValueAtPercentile(p)) * time.Microsecond
}

// Min returns the shortest time.
func (h *Histogram) Min() time.Duration {
	if h.Count() == 0 {
		return 0
	}
	return time.Duration(h.hdr.ValueAtPercentile(0)) * time.Microsecond
}

// Max returns the longest time.
func (h *Histogram) Max() time.Duration { return h.Percentile(100) }

// Mean returns the average.
func (h *Histogram) Mean() time.Duration {
	if h.Count() == 0 {
		return 0
	}
	return time.Duration(h.hdr.Mean() * float64(time.Microsecond))
}

// StdDev returns the standard deviation.
func (h *Histogram) StdDev() time.Duration {
	if h.Count() == 0 {
		return 0
	}
	return time.Duration(h.hdr.StdDev() * float64(time.Microsecond))
}

// Add adds all that o holds. It is exact, in any order.
func (h *Histogram) Add(o *Histogram) {
	if o.Count() == 0 {
		return
	}
	if h.hdr == nil {
		h.hdr = o.hdr.Clone()
		return
	}
	h.hdr.Merge(o.hdr)
}

// Clone returns a copy that shares nothing.
func (h *Histogram) Clone() *Histogram {
	c := &Histogram{}
	c.Add(h)
	return c
}

// Equal reports whether both hold the same counts.
func (h *Histogram) Equal(o *Histogram) bool {
	if h.Count() == 0 || o.Count() == 0 {
		return h.Count() == o.Count()
	}
	return h.hdr.Equals(o.hdr)
}

// A Step is one line of a cumulative distribution.
type Step struct {
	Percentile float64 // 0 … 100
	Value      time.Duration
	Count      int64 // of all times up to Value
}

// Steps yields the distribution with ticks lines for every halving of the distance to 100 %, as HdrHistogram's
// plotters expect it (5 is their custom).
func (h *Histogram) Steps(ticks int) iter.Seq[Step] {
	return func(yield func(Step) bool) {
		if h.Count() == 0 {
			return
		}
		for _, b := range h.hdr.CumulativeDistributionWithTicks(int32(ticks)) {
			if !yield(Step{b.Quantile, time.Duration(b.ValueAt) * time.Microsecond, b.Count}) {
				return
			}
		}
	}
}

// histogramJSON is a histogram on the wire. Only HDR counts when it is read; the rest is for whoever reads the JSON.
type histogramJSON struct {
	Count  int64  `json:"count"`
	Min    int64  `json:"min_us"`
	Mean   int64  `json:"mean_us"`
	P50    int64  `json:"p50_us"`
	P90    int64  `json:"p90_us"`
	P99    int64  `json:"p99_us"`
	P999   int64  `json:"p99.9_us"`
	P9999  int64  `json:"p99.99_us"`
	P99999 int64  `json:"p99.999_us"`
	Max    int64  `json:"max_us"`
	HDR    string `json:"hdr,omitempty"`
}

// MarshalJSON writes the histogram losslessly, in HdrHistogram's V2 compressed format, beside its main percentiles.
func (h *Histogram) MarshalJSON() ([]byte, error) {
	us := func(p float64) int64 { return h.Percentile(p).Microseconds() }
	j := histogramJSON{
		Count: h.Count(), Min: h.Min().Microseconds(), Mean: h.Mean().Microseconds(), Max: h.Max().Microseconds(),
		P50: us(50), P90: us(90), P99: us(99), P999: us(99.9), P9999: us(99.99), P99999: us(99.999),
	}
	if j.Count > 0 {
		text, err := h.hdr.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
		if err != nil {
			return nil, fmt.Errorf("result: encoding a histogram: %w", err)
		}
		j.HDR = string(text)
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (h *Histogram) UnmarshalJSON(text []byte) error {
	var j histogramJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return err
	}
	h.hdr = nil
	if j.HDR == "" {
		if j.Count != 0 {
			return fmt.Errorf("%w: %d times, but no distribution", ErrHistogram, j.Count)
		}
		return nil
	}
	if err := checkGeometry(j.HDR); err != nil {
		return err
	}
	hdr, err := hdrhistogram.Decode([]byte(j.HDR))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrHistogram, err)
	}
	if hdr.TotalCount() != j.Count {
		return fmt.Errorf("%w: %d times, but its count says %d", ErrHistogram, hdr.TotalCount(), j.Count)
	}
	if hdr.TotalCount() > math.MaxInt64/mergeable {
		return fmt.Errorf("%w: %d times are more than any run can make", ErrHistogram, hdr.TotalCount())
	}
	if j.Count > 0 {
		h.hdr = hdr
	}
	return nil
}

// checkGeometry looks at the header of an encoded histogram: its ranges decide how much memory decoding takes.
func checkGeometry(text string) error {
	if len(text) > maxEncoded {
		return fmt.Errorf("%w: %d bytes of text", ErrHistogram, len(text))
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) < 8 {
		return ErrHistogram
	}
	// https://github.com/HdrHistogram/HdrHistogram, AbstractHistogram.encodeIntoCompressedByteBuffer: cookie and length,
	// then deflated: cookie, length, offset, digits (4 bytes each), lowest, highest, ratio (8 bytes each).
	z, err := zlib.NewReader(bytes.NewReader(raw[8:]))
	if err != nil {
		return ErrHistogram
	}
	var header [40]byte
	if _, err := io.ReadFull(z, header[:]); err != nil {
		return ErrHistogram
	}
	if binary.BigEndian.Uint32(header[12:]) != digits || binary.BigEndian.Uint64(header[16:]) != 1 ||
		binary.BigEndian.Uint64(header[24:]) != uint64(longest) ||
		math.Float64frombits(binary.BigEndian.Uint64(header[32:])) != 1 {
		return ErrHistogram
	}
	return nil
}

// Cumulative returns how many times are at most as long as each bound, to the histogram's precision. The bounds must be
// ascending.
func (h *Histogram) Cumulative(bounds ...time.Duration) []int64 {
	out := make([]int64, len(bounds))
	if h.Count() == 0 {
		return out
	}
	counts := h.hdr.Export().Counts
	i, seen := 0, int64(0)
	for k, b := range bounds {
		for ; i <= bucket(microseconds(int64(b)), fine) && i < len(counts); i++ {
			seen += counts[i]
		}
		out[k] = seen
	}
	return out
}
