package zaplog

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"go.uber.org/zap"
)

func TestLines(t *testing.T) {
	var out bytes.Buffer
	lg := New(zerolog.New(&out), zap.WarnLevel, "noise").With(zap.String("member", "m1")).Named("x")
	lg.Info("not passed on")
	lg.Warn("noise")
	lg.Warn("slow", zap.Int("ms", 7), zap.Error(errors.New("disk")))
	lg.Error("bad")
	want := `{"level":"warn","error":"disk","member":"m1","ms":7,"message":"slow"}` + "\n" +
		`{"level":"error","member":"m1","message":"bad"}` + "\n"
	if got := out.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if strings.Contains(out.String(), "noise") {
		t.Error("a dropped message was logged")
	}
}
