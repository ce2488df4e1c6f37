package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// TestBucketsAreHdrHistograms: what the recorder gathers lands where HdrHistogram would have put it.
func TestBucketsAreHdrHistograms(t *testing.T) {
	check := func(us int64) {
		t.Helper()
		theirs := hdrhistogram.New(1, longest, digits)
		if err := theirs.RecordValue(us); err != nil {
			t.Fatal(err)
		}
		i := bucket(us, fine)
		if got := theirs.Export().Counts[i]; got != 1 {
			t.Fatalf("%d µs is not in bucket %d", us, i)
		}
		if lo, hi := bucketLow(i, fine), bucketHigh(i, fine); us < lo || us > hi || theirs.Max() != hi {
			t.Fatalf("%d µs is in bucket %d from %d to %d, theirs ends at %d", us, i, lo, hi, theirs.Max())
		}
		if c := bucket(us, coarse); bucket(bucketLow(i, fine), coarse) != c || us < bucketLow(c, coarse) || us > bucketHigh(c, coarse) {
			t.Fatalf("%d µs is in the coarse bucket %d from %d to %d", us, c, bucketLow(c, coarse), bucketHigh(c, coarse))
		}
	}
	for _, us := range []int64{0, 1, 31, 32, 63, 64, 2047, 2048, 2049, 4095, 4096, longest - 1, longest} {
		check(us)
	}
	for range 150 {
		check(rand.Int64N(1 << rand.IntN(31)))
	}
}

// TestHistogramKeepsThreeDigits over the whole range, and clamps what is outside.
func TestHistogramKeepsThreeDigits(t *testing.T) {
	for d := time.Microsecond; d < time.Hour; d = d * 5 / 4 {
		var h Histogram
		h.Record(d)
		if off := (h.Max() - d).Abs(); off > time.Microsecond/2+d/1000 {
			t.Errorf("%v is kept as %v", d, h.Max())
		}
	}
	var h Histogram
	h.Record(-time.Second)
	h.Record(2 * time.Hour)
	if h.Min() != 0 || h.Max() < time.Hour || h.Max() > time.Hour+4*time.Second || h.Count() != 2 {
		t.Errorf("from %v to %v", h.Min(), h.Max())
	}
}

func TestHistogramSurvivesJSON(t *testing.T) {
	var h Histogram
	for range 10000 {
		h.Record(time.Duration(rand.ExpFloat64() * float64(20*time.Millisecond)))
	}
	h.Record(time.Hour)
	text, err := json.Marshal(&h)
	if err != nil {
		t.Fatal(err)
	}
	var read Histogram
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	if !read.Equal(&h) {
		t.Error("it differs")
	}
	twice := h.Clone()
	twice.Add(&read)
	if twice.Count() != 2*h.Count() || twice.Max() != h.Max() || twice.Percentile(99.9) != h.Percentile(99.9) {
		t.Errorf("twice the same: %d times, p99.9 %v, max %v", twice.Count(), twice.Percentile(99.9), twice.Max())
	}
}

// TestForeignHistogramsAreRefused: their range decides how much memory they take.
func TestForeignHistogramsAreRefused(t *testing.T) {
	for _, foreign := range []*hdrhistogram.Histogram{
		hdrhistogram.New(1, 1<<62, 5), hdrhistogram.New(1, longest, 2), hdrhistogram.New(1000, longest, digits),
	} {
		if err := foreign.RecordValue(5000); err != nil {
			t.Fatal(err)
		}
		text, err := foreign.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
		if err != nil {
			t.Fatal(err)
		}
		var h Histogram
		if err := json.Unmarshal(fmt.Appendf(nil, `{"count":1,"hdr":%q}`, text), &h); !errors.Is(err, ErrHistogram) {
			t.Errorf("%d digits up to %d: %v", foreign.SignificantFigures(), foreign.HighestTrackableValue(), err)
		}
	}
	for _, text := range []string{
		`{"count":1}`, `{"count":1,"hdr":"!"}`, `{"count":1,"hdr":"HISTFAAA"}`, `{"count":0,"hdr":"` + strings.Repeat("A", maxEncoded+4) + `"}`,
	} {
		var h Histogram
		if err := json.Unmarshal([]byte(text), &h); !errors.Is(err, ErrHistogram) {
			t.Errorf("%.60s: %v", text, err)
		}
	}
}

func TestSpreadPercentiles(t *testing.T) {
	var c counts
	s := newSpreading()
	for i := range 1000 {
		c.add(int64(i+1) * 100) // 0.1 ms … 100 ms
	}
	c.drain(nil, s)
	got := s.take().Percentiles(50, 99, 100)
	for i, want := range []Micros{50_000, 99_000, 100_000} {
		if off := float64(got[i])/float64(want) - 1; off < 0 || off > 0.033 {
			t.Errorf("got %v, want %d: three in a hundred more at most", got, want)
		}
	}
	if got[2] != 100_000 {
		t.Errorf("the longest is %d, not 100000: it is kept exactly", got[2])
	}
}

func TestCumulative(t *testing.T) {
	var h Histogram
	for i := range 100 {
		h.Record(time.Duration(i+1) * time.Millisecond)
	}
	got := h.Cumulative(0, 10*time.Millisecond, 50*time.Millisecond, time.Hour, 2*time.Hour)
	if want := "[0 10 50 100 100]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
