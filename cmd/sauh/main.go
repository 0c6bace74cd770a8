//go:debug multipathtcp=1

// Sauh turns three or more Linux machines into a private cloud. This program is all of it: the node's agent, the
// fencing guard, the command line and the laboratory, told apart by the first argument. Every connection that it
// makes or accepts speaks multipath TCP where the kernel does, so that a cut link costs no connection.
//
// Here stands only what a program must do once: read the environment, turn signals into a context, choose the
// exit status. Start reading at internal/cli.
package main

import (
	"cmp"
	"context"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"sauh.dev/sauh/internal/agent"
	"sauh.dev/sauh/internal/cli"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/store/etcd"
)

// Set by the linker, which can set nothing but globals: -X main.version=… -X main.commit=…
//
//nolint:gochecknoglobals // see above
var version, commit string

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	v := buildVersion()
	m := &cli.Main{
		Version: v,
		Stdin:   os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Getenv: os.Getenv, Now: time.Now,
		Agent: func(ctx context.Context, configPath string) error {
			etcd.TunePeers()
			paths := agent.DefaultPaths()
			paths.Config = configPath
			return agent.Run(ctx, agent.Options{Paths: paths, Version: v, Probe: []string{"/proc/self/exe", "agent", "probe"}})
		},
		Guard: runGuard, Hold: guard.Hold,
	}
	return m.Run(ctx, os.Args[1:])
}

// runGuard gives the guard this same program to keep the watchdog open with.
func runGuard(ctx context.Context, o cli.GuardOptions) error {
	return guard.Main(ctx, guard.Config{
		Socket: o.Socket, Watchdog: o.Watchdog, CgroupRoot: o.CgroupRoot, Params: lease.GuardParams(),
		Holder: []string{"/proc/self/exe", "guard", "hold", "--socket", o.Socket},
	})
}

// buildVersion is what the linker was told, or else what the Go tool noted.
func buildVersion() model.Version {
	v := model.Version{Version: version, Commit: commit, Go: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		v.Version = cmp.Or(v.Version, info.Main.Version)
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = cmp.Or(v.Commit, s.Value)
			}
		}
	}
	v.Version, v.Commit = cmp.Or(v.Version, "unknown"), cmp.Or(v.Commit, "unknown")
	return v
}
