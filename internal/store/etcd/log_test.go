package etcd

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

func TestEtcdsWarningsReachTheLoggerAndNothingBelow(t *testing.T) {
	var out bytes.Buffer
	z := newZap(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	z.Info("nothing")
	z.With(zap.String("peer", "n2")).Warn("slow", zap.Int("ms", 7))
	z.Error("broken")
	z.Warn("simple token is not cryptographically signed")
	for range 10 {
		z.Warn("again")
	}
	want := "level=WARN msg=slow from=etcd peer=n2 ms=7\nlevel=ERROR msg=broken from=etcd\n" +
		"level=WARN msg=again from=etcd\nlevel=WARN msg=again from=etcd\nlevel=WARN msg=again from=etcd\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Errorf("log (-want +got):\n%s", d)
	}
}
