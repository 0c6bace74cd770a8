package etcd

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Without a quorum etcd repeats itself twice a second for as long as that lasts:
// of each message the first three in logPeriod are written.
const (
	logPeriod = 10 * time.Second
	logFirst  = 3
)

// slogCore writes what etcd logs through zap to a slog.Logger, from warnings up.
type slogCore struct {
	zapcore.LevelEnabler
	to *slog.Logger
}

func newZap(to *slog.Logger) *zap.Logger {
	if to == nil {
		return zap.NewNop()
	}
	core := &slogCore{LevelEnabler: zapcore.WarnLevel, to: to.With("from", "etcd")}
	return zap.New(zapcore.NewSamplerWithOptions(core, logPeriod, logFirst, 0))
}

// isNoise: warnings about things that this package chose, and what etcd says of
// listeners that Close has closed.
func isNoise(message string) bool {
	switch message {
	case "Running http and grpc server on single port. This is not recommended for production.",
		"simple token is not cryptographically signed",
		"setting up serving from embedded etcd failed.":
		return true
	}
	return false
}

// With implements zapcore.Core.
func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{LevelEnabler: c.LevelEnabler, to: c.to.With(attrs(fields)...)}
}

// Check implements zapcore.Core.
func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !isNoise(e.Message) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	c.to.Log(context.Background(), level, e.Message, attrs(fields)...)
	return nil
}

// Sync implements zapcore.Core.
func (c *slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	var out []any
	for _, k := range slices.Sorted(maps.Keys(enc.Fields)) {
		out = append(out, slog.Any(k, enc.Fields[k]))
	}
	return out
}
