// Command init is pid 1 of the machines that internal/lab/vmtest boots. It starts the guard, plays the agent,
// and tells on the serial port what it sees; it does nothing outside of a virtual machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/lab/guest"
	"sauh.dev/sauh/internal/sys"
)

const (
	counterFile = "/run/count"
	epoch       = 1
	// rest is how long a frozen guest is watched: four times the watchdog's timeout.
	rest = 20 * time.Second
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "count" {
		count()
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "this is the init of a virtual machine of internal/lab/vmtest and does nothing here")
		os.Exit(1)
	}
	if err := run(context.Background()); err != nil {
		say("FAILED %v", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// say writes a line that the test reads; the time is the machine's own.
func say(format string, args ...any) {
	fmt.Printf("VM %d %s\n", sys.BootTime().Milliseconds(), fmt.Sprintf(format, args...))
}

// count is the guest: it writes how far it has come.
func count() {
	for n := 1; ; n++ {
		_ = os.WriteFile(counterFile+".new", []byte(strconv.Itoa(n)), 0o644)
		_ = os.Rename(counterFile+".new", counterFile)
		<-time.After(10 * time.Millisecond)
	}
}

func counted() int {
	text, _ := os.ReadFile(counterFile)
	n, _ := strconv.Atoi(string(text))
	return n
}

func run(ctx context.Context) error {
	if err := mounts(); err != nil {
		return err
	}
	if err := guest.LoadModules(guest.ModuleDir); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	params := lease.DefaultParams()
	g, client, err := startGuard(ctx)
	if err != nil {
		return err
	}
	var renewing atomic.Bool
	renewing.Store(true)
	go func() { // plays the agent as long as the machine lives
		for ; ; <-time.After(params.Renew) {
			if renewing.Load() {
				_ = client.Renew(ctx, epoch, sys.BootTime()+params.Lease)
			}
		}
	}()
	st, err := await(ctx, client, func(s guard.Status) bool { return s.TimeoutS > 0 && s.Leased })
	if err != nil {
		return err
	}
	say("GUARD identity=%q grade=%s timeout=%v reset=%v", st.Identity, st.Grade, st.TimeoutS, st.WatchdogReset)
	if st.WatchdogReset {
		return nil // the second boot: that was to be seen
	}
	if err := startGuest(ctx, client); err != nil {
		return err
	}
	switch {
	case strings.Contains(string(line), "scenario=kill"):
		return killed(g)
	case strings.Contains(string(line), "scenario=freeze"):
		return frozen(ctx, client, &renewing)
	}
	return errors.New("no scenario in the kernel's command line")
}

func mounts() error {
	if err := guest.MountAll(); err != nil {
		return err
	}
	for _, m := range [][2]string{{"tmpfs", "/run"}, {"cgroup2", "/sys/fs/cgroup"}} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	return nil
}

// startGuard starts the production guard as an installation does.
func startGuard(ctx context.Context) (*os.Process, *guard.Client, error) {
	if err := os.MkdirAll(filepath.Dir(guard.DefaultSocket), 0o755); err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, "/sauh", "guard")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	for range 100 {
		if c, err := guard.Dial(ctx, guard.DefaultSocket); err == nil {
			if _, err := c.Status(ctx); err == nil {
				return cmd.Process, c, nil
			}
		}
		<-time.After(100 * time.Millisecond)
	}
	return nil, nil, errors.New("the guard does not answer")
}

func await(ctx context.Context, c *guard.Client, ok func(guard.Status) bool) (guard.Status, error) {
	var st guard.Status
	var err error
	for range 300 {
		if st, err = c.Status(ctx); err == nil && ok(st) {
			return st, nil
		}
		<-time.After(100 * time.Millisecond)
	}
	return st, fmt.Errorf("the guard does not come to what was waited for: %+v, %w", st, err)
}

// startGuest starts the counter in a protected group.
func startGuest(ctx context.Context, c *guard.Client) error {
	dir := filepath.Join(guard.GuestsDir(guard.DefaultCgroupRoot), "100")
	if err := c.Protect(ctx, lease.Group{Name: "100", Epoch: epoch, OnDeadline: lease.FreezeGroup}); err != nil {
		return err
	}
	group, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = group.Close() }()
	cmd := exec.CommandContext(ctx, "/init", "count")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd()), Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	for range 100 {
		if counted() > 10 {
			say("GUEST runs")
			return nil
		}
		<-time.After(50 * time.Millisecond)
	}
	return errors.New("the guest does not count")
}

// killed kills the guard and tells for how long the machine lives on.
func killed(g *os.Process) error {
	say("KILL")
	if err := g.Kill(); err != nil {
		return err
	}
	for range 600 {
		say("ALIVE guest=%d", counted())
		<-time.After(50 * time.Millisecond)
	}
	return errors.New("the machine lived on for 30 s without a guard")
}

// frozen lets the lease end and comes back long after: the guest must rest and then go on, and the machine must live.
func frozen(ctx context.Context, c *guard.Client, renewing *atomic.Bool) error {
	say("SILENCE")
	renewing.Store(false)
	if _, err := await(ctx, c, func(s guard.Status) bool { return len(s.Groups) == 1 && s.Groups[0].State == lease.Frozen }); err != nil {
		return err
	}
	before := counted()
	say("FROZEN at %d", before)
	<-time.After(rest)
	after := counted()
	say("RESTED from %d to %d", before, after)
	renewing.Store(true)
	for range 100 {
		if counted() > after+10 {
			say("THAWED at %d", counted())
			return nil
		}
		<-time.After(100 * time.Millisecond)
	}
	return errors.New("the guest was not thawed")
}
