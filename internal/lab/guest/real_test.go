package guest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/health"
	watcher "sauh.dev/sauh/internal/health"
	"sauh.dev/sauh/internal/lab/image"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/qga"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/sys"
)

// bootLimit is for a boot under TCG on a machine that builds something at the same time; an idle one needs 4 s.
const bootLimit = 60 * time.Second

// real is a probe guest in a real QEMU.
type real struct {
	t    *testing.T
	p    *qemu.Process
	qga  *qga.Client
	http string

	mu        sync.Mutex
	seen      []health.Incident
	condition health.Condition
}

// buildDisk makes a disk of the probe guest in dir.
func buildDisk(t *testing.T, dir string) string {
	t.Helper()
	program := filepath.Join(dir, "sauh-guest")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "sauh.dev/sauh/cmd/sauh-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's program: %v %s", err, out)
	}
	user, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	src, err := image.Build(t.Context(), image.Options{Guest: program, CacheDir: filepath.Join(user, "sauh-lab")})
	if errors.Is(err, image.ErrMissing) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(src) })
	disk := filepath.Join(dir, "disk.raw")
	// The address is the one that QEMU's own network expects.
	config := image.Config{IP: netip.MustParsePrefix("10.0.2.15/24"), Gateway: netip.MustParseAddr("10.0.2.2"), Hostname: "probe"}
	if err := errors.Join(image.Copy(disk, src), image.Personalize(disk, config)); err != nil {
		t.Fatal(err)
	}
	return disk
}

// makeCgroup makes a cgroup and ends what is in it after the test.
func makeCgroup(t *testing.T, name string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if !strings.Contains(line, " - cgroup2 ") || len(f) < 5 || f[3] != "/" {
			continue
		}
		group := sys.Cgroup(filepath.Join(f[4], name))
		if err := group.Create(); err != nil {
			t.Skipf("needs to make cgroups: %v", err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := errors.Join(group.Kill(), group.WaitEmpty(ctx), group.Remove()); err != nil {
				t.Errorf("end the test's processes: %v", err)
			}
		})
		return string(group)
	}
	t.Skip("needs cgroup v2")
	return ""
}

// freePort is a TCP port of loopback that nobody uses at the moment.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func bootReal(t *testing.T) *real {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a guest four times")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath(qemu.Binary); err != nil {
		t.Skip("needs " + qemu.Binary)
	}
	dir, err := os.MkdirTemp("", "sauh-guest-") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	disk := buildDisk(t, dir)
	port := freePort(t)
	s := qemu.Spec{
		VMID: 100, Name: "probe", RunDir: dir, Accel: qemu.TCG, Machine: "pc+sauh1", CPU: "max", Sockets: 1, Cores: 1,
		MemoryMiB: 256, Serials: []string{"socket"}, GuestAgent: true,
		Disks: []qemu.Disk{{ID: "virtio0", Volume: "local:100/disk.raw", Path: disk, Format: storage.Raw, WError: "stop", RError: "stop", BootIndex: 100}},
		Extra: []string{
			"-netdev", fmt.Sprintf("user,id=test,hostfwd=tcp:127.0.0.1:%d-:80", port),
			"-device", "virtio-net-pci,netdev=test,romfile=",
		},
	}
	p, err := qemu.Start(t.Context(), s, makeCgroup(t, filepath.Base(dir)))
	if err != nil {
		t.Fatal(err)
	}
	r := &real{t: t, p: p, qga: qga.Open(s.AgentSocket()), http: fmt.Sprintf("http://127.0.0.1:%d", port)}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		p.Follow(ctx, func(i health.Incident) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.seen = append(r.seen, i)
		})
	})
	watch := &watcher.Guest{
		Params: health.Params{PingEvery: 500 * time.Millisecond, PingFirst: 500 * time.Millisecond, PingWait: time.Second, Misses: 3},
		QEMU:   p, Agent: r.qga,
		Held: func() string { return "" },
		Changed: func(c health.Condition) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.condition = c
		},
	}
	wg.Go(func() { watch.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		p.Close()
		if log, err := os.ReadFile(s.SerialLog(0)); err == nil && t.Failed() {
			t.Logf("console:\n%s", log)
		}
	})
	return r
}

// await polls until ok.
func (r *real) await(limit time.Duration, what string, ok func() bool) {
	r.t.Helper()
	start := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for over := time.After(limit); !ok(); {
		select {
		case <-tick.C:
		case <-over:
			r.mu.Lock()
			defer r.mu.Unlock()
			r.t.Fatalf("not within %s: %s; QEMU told %+v", limit, what, r.seen)
		}
	}
	r.t.Logf("%s after %s", what, time.Since(start).Round(10*time.Millisecond))
}

func (r *real) answers() bool {
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
	defer cancel()
	return r.qga.Ping(ctx) == nil
}

// told reports whether QEMU told of k, and forgets everything up to there.
func (r *real) told(k health.IncidentKind) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, i := range r.seen {
		if i.Kind == k {
			r.seen = r.seen[n+1:]
			return true
		}
	}
	return false
}

// order asks the guest for something over HTTP.
func (r *real) order(path string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.http+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	answer, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer answer.Body.Close()
	if text, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != http.StatusOK {
		r.t.Fatalf("%s: %s %s %v", path, answer.Status, text, err)
	}
}

func (r *real) is(c health.Condition) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.condition.Answers == c.Answers && r.condition.Sick == c.Sick
}

func (r *real) status() string {
	s, err := r.p.Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return s.Status
}

func (r *real) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestARealProbeGuestAnswersFallsIllAndIsReset(t *testing.T) {
	r := bootReal(t)
	r.await(bootLimit, "the agent in the guest answers", r.answers)
	info, err := r.qga.Info(t.Context())
	if err != nil || info.Version != "sauh-guest" {
		t.Errorf("%+v %v", info, err)
	}
	if s, err := r.qga.FreezeStatus(t.Context()); s != qga.Thawed || err != nil {
		t.Errorf("%q %v", s, err)
	}

	r.await(10*time.Second, "the watch has its first answer", func() bool { return r.is(health.Condition{Answers: true}) })

	r.order("/agent?silent=1")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := r.qga.Ping(ctx); !errors.Is(err, qga.ErrSilent) {
		t.Errorf("silent: %v", err)
	}
	r.await(20*time.Second, "the silent guest is sick", func() bool { return r.is(health.Condition{Answers: true, Sick: health.SickSilent}) })
	r.order("/agent?silent=0")
	r.await(10*time.Second, "it answers again", r.answers)

	r.await(10*time.Second, "it is well again", func() bool { return r.is(health.Condition{Answers: true}) })

	r.order("/panic")
	r.await(10*time.Second, "the panic is seen", func() bool { return r.told(health.Panicked) })
	r.await(bootLimit, "the guest resets itself, as without the device", func() bool { return r.told(health.Reset) })
	r.await(bootLimit, "it answers after its reset", r.answers)

	r.must(r.p.PauseOnPanic(t.Context(), true))
	r.order("/panic")
	r.await(10*time.Second, "it stands still after a panic", func() bool { return r.status() == "guest-panicked" })
	if !r.is(health.Condition{Answers: true, Sick: health.SickPanicked}) && !r.is(health.Condition{Sick: health.SickPanicked}) {
		t.Error("the panicked guest is not sick")
	}
	r.must(r.p.Reset(t.Context()))
	r.await(bootLimit, "it answers after a reset from outside", r.answers)
	r.await(10*time.Second, "it is well after the reset", func() bool { return r.is(health.Condition{Answers: true}) })

	r.order("/hang")
	r.await(10*time.Second, "a guest that hangs is silent", func() bool { return !r.answers() })
	if s := r.status(); s != "running" {
		t.Errorf("to QEMU a guest that hangs is %s", s)
	}
	r.must(r.p.Reset(t.Context()))
	r.await(bootLimit, "it answers after it hung", r.answers)

	r.must(r.qga.Shutdown(t.Context(), qga.PowerOff))
	ctx, cancel = context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r.must(r.p.Wait(ctx))
}
