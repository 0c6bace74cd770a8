//go:build room

package roomtest

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/lab/image"
	"sauh.dev/sauh/internal/lab/probe"
)

// roomPrefix begins the names of all rooms that these tests build.
const roomPrefix = "rt-"

// shared is the room that most tests use, one after the other; it is built at the first use.
var shared struct {
	once  sync.Once
	world *world
	err   error
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if len(os.Args) == 5 && os.Args[1] == "fence" {
		return fenceHere(os.Args[2], os.Args[3], os.Args[4])
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the room's tests need root")
		return 1
	}
	if err := removeStale(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-interrupted
		_ = removeOwn()
		os.Exit(1)
	}()
	code := m.Run()
	if w := shared.world; w != nil {
		w.close()
		for _, text := range w.sampler.violations() {
			fmt.Fprintln(os.Stderr, "AT MOST ONE RUNNING QEMU PER GUEST WAS BROKEN:", text)
			code = 1
		}
		fmt.Println(w.sampler.summary())
	}
	if err := removeOwn(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// removeStale removes the rooms of test runs that ended without doing so.
func removeStale() error {
	return removeRooms(func(pid int) bool { return syscall.Kill(pid, 0) != nil })
}

func removeOwn() error { return removeRooms(func(pid int) bool { return pid == os.Getpid() }) }

// removeRooms removes the rooms of those test processes that chosen picks.
func removeRooms(chosen func(pid int) bool) error {
	files, err := filepath.Glob("/run/sauh-lab/" + roomPrefix + "*.json")
	if err != nil {
		return err
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		number, _, _ := strings.Cut(strings.TrimPrefix(name, roomPrefix), "-")
		if pid, err := strconv.Atoi(number); err != nil || !chosen(pid) {
			continue
		}
		if _, err := lab.Down(context.Background(), name, false); err != nil {
			return err
		}
	}
	return nil
}

// binary finds a program that `make build` made.
func binary(env, name string) (string, error) {
	path := os.Getenv(env)
	if path == "" {
		path = filepath.Join("..", "..", "..", "bin", name)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run `make build` first, or set %s", err, env)
	}
	return path, nil
}

// world is a machine room with what watches it.
type world struct {
	*lab.Room
	names   []string // of the nodes
	profile string   // flag of `cluster create`; "" is the default
	sampler *sampler
	netns   *os.File // of the room itself: its probes reach guests and nodes
	image   string   // of the probe guest; "" until it is needed

	mu   sync.Mutex
	apis map[string]nodeAPI // by node; guarded by mu
}

// raise builds a room of n nodes; kind tells it from the others of this process.
func raise(ctx context.Context, kind string, n int) (*world, error) {
	sauh, err := binary("SAUH_BIN", "sauh")
	if err != nil {
		return nil, err
	}
	// Not in a node's private directories, and short: sockets are below it.
	name := fmt.Sprintf("%s%d-%s", roomPrefix, os.Getpid(), kind)
	r, err := lab.Up(ctx, lab.Config{Name: name, Nodes: n, Binary: sauh})
	if err != nil {
		return nil, err
	}
	st, err := r.Status(ctx)
	if err != nil {
		return nil, err
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", st.PID))
	if err != nil {
		return nil, err
	}
	w := &world{Room: r, netns: ns, apis: map[string]nodeAPI{}}
	for i := range n {
		w.names = append(w.names, lab.NodeName(i+1))
	}
	w.sampler = newSampler(r, n)
	return w, nil
}

// close ends the sampler and removes the room.
func (w *world) close() {
	w.sampler.stop()
	_ = w.netns.Close()
	for _, a := range w.apis {
		a.Close()
	}
	if _, err := w.Down(context.Background(), false); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// probeImage is the image that guests get a copy of.
func (w *world) probeImage(ctx context.Context) (string, error) {
	if w.image != "" {
		return w.image, nil
	}
	guest, err := binary("SAUH_GUEST_BIN", "sauh-guest")
	if err != nil {
		return "", err
	}
	w.image, err = image.Build(ctx, image.Options{Guest: guest})
	return w.image, err
}

// wall is the date of a moment of CLOCK_BOOTTIME, on which the probes and the kernel's process times stand.
func wall(at time.Duration) time.Time { return time.Now().Add(at - probe.Now()) }
