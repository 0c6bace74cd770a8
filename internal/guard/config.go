package guard

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// Where things are unless a Config says otherwise.
const (
	DefaultSocket     = "/run/sauh/guard.sock"
	DefaultWatchdog   = "/dev/watchdog"
	DefaultCgroupRoot = "/sys/fs/cgroup"
	// NoWatchdog in place of a path runs the guard without one.
	NoWatchdog = "none"
)

// GuestsDir is the directory of the guests' cgroups: each guest has one, named by its id.
func GuestsDir(cgroupRoot string) string { return filepath.Join(cgroupRoot, "sauh", "guests") }

// Config is what a guard needs to run.
type Config struct {
	// Socket is the path of the unix socket; only root may use it.
	Socket string
	// Watchdog is the path of the device, or NoWatchdog.
	Watchdog string
	// CgroupRoot is where cgroup v2 is mounted. Only groups below GuestsDir(CgroupRoot) can be protected.
	CgroupRoot string
	// Params must be those of the agent.
	Params lease.Params
	// Holder is the command, program first, that calls Hold with Socket: it keeps the watchdog open
	// beside the guard, so that the guard's death does not feed it. Empty for none; Status says so.
	Holder []string
	// Reset resets the machine. Main sets sys.Reset; Run refuses nil, lest a test resets the machine that it runs on.
	Reset func() error
	Log   *slog.Logger

	weak []string // what Main could not get for this process
	now  func() time.Duration
	open func(path string, timeout time.Duration) (watchdog, error)
}

// watchdog is what the guard needs of sys.Watchdog.
type watchdog interface {
	Feed() error
	Timeout() time.Duration
	Identity() string
	CardReset() bool
	File() *os.File
	Disarm() error
	Close() error
}

func openDevice(path string, timeout time.Duration) (watchdog, error) {
	w, err := sys.OpenWatchdog(path, timeout)
	if err != nil {
		return nil, err // an untyped nil
	}
	return w, nil
}

// withDefaults fills what is empty.
func (c Config) withDefaults() Config {
	set := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	set(&c.Socket, DefaultSocket)
	set(&c.Watchdog, DefaultWatchdog)
	set(&c.CgroupRoot, DefaultCgroupRoot)
	if c.Params == (lease.Params{}) {
		c.Params = lease.DefaultParams()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	if c.now == nil {
		c.now = sys.BootTime
	}
	if c.open == nil {
		c.open = openDevice
	}
	return c
}

func (c Config) validate() error {
	if c.Reset == nil {
		return errors.New("run guard: no way to reset the machine was given")
	}
	if err := c.Params.Validate(); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(c.CgroupRoot, "cgroup.procs")); err != nil {
		return model.Invalidf("cgroup-root", "%s is not a cgroup v2 hierarchy: mount one with `mount -t cgroup2 none %s`", c.CgroupRoot, c.CgroupRoot)
	}
	return nil
}
