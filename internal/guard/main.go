package guard

import (
	"context"
	"os/signal"
	"runtime"
	"syscall"

	"sauh.dev/sauh/internal/sys"
)

const (
	// priority is the guard's real-time priority: above every ordinary process, below the
	// kernel's interrupt threads, which have 50 and which its own work depends on.
	priority = 20
	// procs bounds the threads that run Go code at once.
	procs = 2
)

// Main is the command `sauh guard`: Run in a process that is made hard to disturb. SIGTERM and
// SIGINT ask it to stop. What it cannot get is logged and shown in Status, because a guard with less is better than none.
func Main(ctx context.Context, cfg Config) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	runtime.GOMAXPROCS(procs)
	cfg = cfg.withDefaults()
	if cfg.Reset == nil {
		cfg.Reset = sys.Reset
	}
	for _, harden := range []func() error{
		sys.LockMemory,
		sys.NeverOOM,
		func() error { return sys.SetRealtime(priority) },
	} {
		if err := harden(); err != nil {
			cfg.weak = append(cfg.weak, "the guard runs without it: "+err.Error())
			cfg.Log.Warn("the guard runs without it", "err", err)
		}
	}
	return Run(ctx, cfg)
}
