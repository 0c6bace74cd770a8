package guard

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/sys"
)

// roleEnv makes the test binary, started again, a guard, a holder or an agent.
const roleEnv = "SAUH_GUARD_TEST_ROLE"

// roleConfig is what such a process is told, as JSON in roleConfigEnv.
type roleConfig struct {
	Socket, CgroupRoot string
	Feeds              string // the file that a guard's simulated watchdog writes the times of feedings to
	Epoch              uint64
}

const roleConfigEnv = "SAUH_GUARD_TEST_CONFIG"

func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	var rc roleConfig
	if err := json.Unmarshal([]byte(os.Getenv(roleConfigEnv)), &rc); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if err := play(role, rc); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func play(role string, rc roleConfig) error {
	ctx := context.Background()
	switch role {
	case "hold":
		return Hold(rc.Socket)
	case "agent":
		c, err := Dial(ctx, rc.Socket)
		for err == nil {
			err = c.Renew(ctx, rc.Epoch, sys.BootTime()+shortParams().Lease)
			<-time.After(shortParams().Renew)
		}
		return err
	}
	_ = os.Setenv(roleEnv, "hold") // for the process that the guard starts
	cfg := Config{Socket: rc.Socket, CgroupRoot: rc.CgroupRoot, Params: shortParams(), Watchdog: NoWatchdog, Reset: func() error { os.Exit(42); return nil }}
	if rc.Feeds != "" {
		cfg.Watchdog, cfg.Holder = "simulated", []string{"/proc/self/exe"}
		cfg.open = func(_ string, timeout time.Duration) (watchdog, error) {
			log, err := os.OpenFile(rc.Feeds, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			w := &feedLog{log: log, file: os.NewFile(3, "pipe"), timeout: timeout}
			return w, errors.Join(err, w.Feed())
		}
	}
	return Main(ctx, cfg)
}

// feedLog is a watchdog that writes down when it was fed; its file is the end of a pipe.
type feedLog struct {
	log, file *os.File
	timeout   time.Duration
}

func (w *feedLog) Feed() error {
	return binary.Write(w.log, binary.LittleEndian, int64(sys.BootTime()))
}
func (w *feedLog) Timeout() time.Duration { return w.timeout }
func (w *feedLog) Identity() string       { return "a simulated one" }
func (w *feedLog) CardReset() bool        { return false }
func (w *feedLog) File() *os.File         { return w.file }
func (w *feedLog) Disarm() error          { return w.file.Close() }
func (w *feedLog) Close() error           { return w.file.Close() }

// lastFeed is the time of the last feeding in a feedLog's file.
func lastFeed(t *testing.T, path string) time.Duration {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || len(b) < 8 {
		return 0
	}
	return time.Duration(binary.LittleEndian.Uint64(b[len(b)/8*8-8:]))
}

// shortParams make a lease of three seconds, long enough for a busy machine.
func shortParams() lease.Params {
	return lease.Params{
		Lease: 3 * time.Second, Renew: 200 * time.Millisecond, Watchdog: time.Second,
		FreezeMargin: time.Second, InFlight: 50 * time.Millisecond, ClockErrorPPM: 1000,
	}
}

// fakeDog is a watchdog in memory.
type fakeDog struct {
	mu       sync.Mutex
	fed      time.Duration
	feeds    int
	disarmed bool
	closed   bool
	timeout  time.Duration
}

func (w *fakeDog) Feed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fed, w.feeds = sys.BootTime(), w.feeds+1
	return nil
}
func (w *fakeDog) Timeout() time.Duration { return w.timeout }
func (w *fakeDog) Identity() string       { return "Software Watchdog" }
func (w *fakeDog) CardReset() bool        { return true }
func (w *fakeDog) File() *os.File         { return nil }
func (w *fakeDog) Disarm() error          { w.mu.Lock(); defer w.mu.Unlock(); w.disarmed = true; return nil }

func (w *fakeDog) Close() error { w.mu.Lock(); defer w.mu.Unlock(); w.closed = true; return nil }
func (w *fakeDog) count() int   { w.mu.Lock(); defer w.mu.Unlock(); return w.feeds }

// testRoot makes a cgroup v2 "root" of its own, which the test's end kills and removes.
func testRoot(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root, err := sys.Cgroup2Root()
	if err != nil {
		t.Skip("needs cgroup v2:", err)
	}
	dir, err := os.MkdirTemp(root, "sauh-guard-test-")
	if err != nil {
		t.Skip("needs a writable cgroup v2:", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		c := sys.Cgroup(dir)
		if err := errors.Join(c.Kill(), c.WaitEmpty(ctx), c.Remove()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	return dir
}

// rig is a guard in this process with a simulated watchdog.
type rig struct {
	t      *testing.T
	root   string
	client *Client
	dog    *fakeDog
	stop   context.CancelFunc
	ended  chan error
	resets chan struct{}
}

func startRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, root: testRoot(t), dog: &fakeDog{}, ended: make(chan error, 1), resets: make(chan struct{}, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	socket := filepath.Join(t.TempDir(), "g.sock")
	cfg := Config{
		Socket: socket, CgroupRoot: r.root, Params: shortParams(), Watchdog: "simulated",
		Reset: func() error { r.resets <- struct{}{}; return nil },
		Log:   slog.New(slog.NewTextHandler(t.Output(), nil)),
		open: func(_ string, timeout time.Duration) (watchdog, error) {
			r.dog.timeout = timeout
			return r.dog, r.dog.Feed()
		},
	}
	go func() { r.ended <- Run(ctx, cfg) }()
	r.client = &Client{socket: socket}
	t.Cleanup(func() {
		cancel()
		_ = r.client.Fence(within(t, 10*time.Second), math.MaxUint64)
		select {
		case <-r.ended:
		case <-time.After(10 * time.Second):
			t.Error("the guard does not end")
		}
	})
	eventually(t, "the watchdog is armed", func() bool {
		s, err := r.client.Status(t.Context())
		return err == nil && s.Grade == GradeSoftware
	})
	return r
}

// renew extends the lease by a whole lease from now and returns the deadline.
func (r *rig) renew(epoch uint64) time.Duration {
	r.t.Helper()
	deadline := sys.BootTime() + shortParams().Lease
	must(r.t, r.client.Renew(r.t.Context(), epoch, deadline))
	return deadline
}

func (r *rig) state(name string) lease.GroupState {
	r.t.Helper()
	return stateOf(r.t, r.client, name)
}

func stateOf(t *testing.T, c *Client, name string) lease.GroupState {
	t.Helper()
	s, err := c.Status(t.Context())
	must(t, err)
	for _, g := range s.Groups {
		if g.Name == name {
			return g.State
		}
	}
	return ""
}

// startGuest starts a process in the cgroup of a protected group that writes to a file without end.
func startGuest(t *testing.T, root, name string) (file string, cmd *exec.Cmd) {
	t.Helper()
	dir, err := os.Open(filepath.Join(GuestsDir(root), name))
	must(t, err)
	defer dir.Close()
	file = filepath.Join(t.TempDir(), "count")
	cmd = exec.Command("sh", "-c", "while :; do echo x >> "+file+"; sleep 0.005; done")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	must(t, cmd.Start())
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	grows(t, file)
	return file, cmd
}

func testGroup(name string, epoch uint64, pills ...string) lease.Group {
	return lease.Group{Name: name, Epoch: epoch, OnDeadline: lease.FreezeGroup, Pills: pills}
}

func size(file string) int64 {
	info, err := os.Stat(file)
	if err != nil {
		return 0
	}
	return info.Size()
}

func grows(t *testing.T, file string) {
	t.Helper()
	before := size(file)
	eventually(t, "the guest runs", func() bool { return size(file) > before })
}

func rests(t *testing.T, file string) {
	t.Helper()
	before := size(file)
	<-time.After(150 * time.Millisecond)
	if after := size(file); after != before {
		t.Fatalf("the guest runs: its file grew from %d to %d bytes", before, after)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// spawn starts the test binary in a role; the test's end kills it.
func spawn(t *testing.T, role string, rc roleConfig, files ...*os.File) *exec.Cmd {
	t.Helper()
	config, err := json.Marshal(rc)
	must(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+role, roleConfigEnv+"="+string(config))
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr // a file: a pipe would be waited for until the holder ends, too
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if role == "guard" {
			eventually(t, "no holder is left", func() bool { return !dismiss(rc.Socket) })
		}
	})
	return cmd
}
