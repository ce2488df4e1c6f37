// Package zaplog lets a library that logs with zap write into a zerolog.Logger.
//
//	lg := zaplog.New(log, zap.WarnLevel)
//
// It passes on warnings and worse, with their fields. What a library calls
// fatal is logged as an error here, and then does what zap does.
package zaplog

import (
	"maps"
	"slices"

	"github.com/rs/zerolog"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// New returns a zap logger over log that passes on level and above, except the messages named in drop.
func New(log zerolog.Logger, level zapcore.LevelEnabler, drop ...string) *zap.Logger {
	return zap.New(&core{LevelEnabler: level, log: log, drop: drop})
}

type core struct {
	zapcore.LevelEnabler
	log    zerolog.Logger
	drop   []string
	fields []zapcore.Field
}

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	next := *c
	next.fields = slices.Concat(c.fields, fields)
	return &next
}

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) || slices.Contains(c.drop, e.Message) {
		return ce
	}
	return ce.AddCore(e, c)
}

func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	ev := c.log.WithLevel(level(e.Level))
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range slices.Concat(c.fields, fields) {
		f.AddTo(enc)
	}
	for _, k := range slices.Sorted(maps.Keys(enc.Fields)) {
		ev = ev.Interface(k, enc.Fields[k])
	}
	ev.Msg(e.Message)
	return nil
}

func (c *core) Sync() error { return nil }

func level(l zapcore.Level) zerolog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return zerolog.ErrorLevel
	case l == zapcore.WarnLevel:
		return zerolog.WarnLevel
	case l == zapcore.InfoLevel:
		return zerolog.InfoLevel
	}
	return zerolog.DebugLevel
}
