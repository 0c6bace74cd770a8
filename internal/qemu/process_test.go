package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/sys"
)

// bench is a place for real QEMUs: a run directory, a cgroup, a disk.
type bench struct {
	runDir, cgroup, disk string
}

func newBench(t *testing.T) bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath(Binary); err != nil {
		t.Skip("needs " + Binary)
	}
	runDir, err := os.MkdirTemp("", "sauh-qemu-") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	b := bench{runDir: runDir, cgroup: testCgroup(t, filepath.Base(runDir)), disk: filepath.Join(runDir, "disk.raw")}
	t.Cleanup(func() { os.RemoveAll(runDir) })
	if err := errors.Join(os.WriteFile(b.disk, nil, 0o600), os.Truncate(b.disk, 16<<20)); err != nil {
		t.Fatal(err)
	}
	return b
}

// testCgroup makes a cgroup, and ends what is in it after the test.
func testCgroup(t *testing.T, name string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	root := ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") && len(f) > 4 && f[3] == "/" {
			root = f[4]
		}
	}
	if root == "" {
		t.Skip("needs cgroup v2")
	}
	group := sys.Cgroup(filepath.Join(root, name))
	if err := group.Create(); err != nil {
		t.Skipf("needs to make cgroups: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = group.Thaw()
		if err := errors.Join(group.Kill(), group.WaitEmpty(ctx), group.Remove()); err != nil {
			t.Errorf("end the test's processes: %v", err)
		}
	})
	return string(group)
}

func (b bench) spec(id model.VMID) Spec {
	return Spec{
		VMID: id, Name: "bench", RunDir: b.runDir, Accel: TCG, Machine: "pc", CPU: "qemu64", Sockets: 1, Cores: 1,
		MemoryMiB: 64, Serials: []string{"socket"}, Paused: true,
		Disks: []Disk{{ID: "virtio0", Path: b.disk, Format: storage.Raw, Direct: ProbeDirect(b.disk), WError: "stop", RError: "stop", BootIndex: 100}},
	}
}

// group is a guest's cgroup, made as whoever starts it must.
func (b bench) group(id model.VMID) string {
	dir := filepath.Join(b.cgroup, id.String())
	if err := sys.Cgroup(dir).Create(); err != nil {
		panic(err)
	}
	return dir
}

func (b bench) start(t *testing.T, s Spec) *Process {
	t.Helper()
	p, err := Start(t.Context(), s, b.group(s.VMID))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func (b bench) adopt(t *testing.T, id model.VMID) *Process {
	t.Helper()
	p, err := Adopt(t.Context(), b.runDir, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// files lists what is in the run directory, the disk, locks and logs left out.
func (b bench) files(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(b.runDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); n != "disk.raw" && !strings.HasSuffix(n, ".lock") && !strings.HasSuffix(n, ".log") {
			names = append(names, n)
		}
	}
	return names
}

// nothingLeft checks that guest id has neither process nor file.
func (b bench) nothingLeft(t *testing.T, id model.VMID) {
	t.Helper()
	if populated, err := sys.Cgroup(filepath.Join(b.cgroup, id.String())).Populated(); err == nil && populated {
		t.Errorf("processes are left in the cgroup of guest %s", id)
	}
	for _, f := range b.files(t) {
		if strings.HasPrefix(f, id.String()+".") {
			t.Errorf("%s is left", f)
		}
	}
}

func waitDone(t *testing.T, p *Process, limit time.Duration) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(limit):
		t.Fatalf("the end of process %d was not noticed within %s", p.PID(), limit)
	}
}

func wantKind(t *testing.T, err, kind error, part string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), part) {
		t.Errorf("got %v, want %q and %q in it", err, kind, part)
	}
}

func TestAStartedGuestIsDetachedAndInItsCgroup(t *testing.T) {
	b := newBench(t)
	p := b.start(t, b.spec(100))
	pids, err := sys.Cgroup(b.group(100)).Procs()
	if err != nil || !slices.Equal(pids, []int{p.PID()}) {
		t.Errorf("the cgroup holds %v (%v), want %d", pids, err, p.PID())
	}
	sid, err := unix.Getsid(p.PID())
	if own, _ := unix.Getsid(0); err != nil || sid == own {
		t.Errorf("session %d is the test's own (%v)", sid, err)
	}
	status, err := p.Status(t.Context())
	if diff := cmp.Diff(Status{Status: "prelaunch"}, status); err != nil || diff != "" {
		t.Errorf("status %v (-want +got):\n%s", err, diff)
	}
	if ids, err := List(b.runDir); err != nil || !slices.Equal(ids, []model.VMID{100}) {
		t.Errorf("List: %v %v", ids, err)
	}
	if err := p.Quit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Cleanup(); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t, 100)
	if _, err := os.Stat(filepath.Join(b.cgroup, "100")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cgroup is left: %v", err)
	}
}

func TestAFreshAgentAdoptsARunningGuest(t *testing.T) {
	b := newBench(t)
	old := b.start(t, b.spec(100))
	pid, spec, facts := old.PID(), old.Spec(), old.Facts()
	old.Close()
	p := b.adopt(t, 100)
	if p.PID() != pid {
		t.Errorf("adopted process %d, want %d", p.PID(), pid)
	}
	if diff := cmp.Diff(spec, p.Spec()); diff != "" {
		t.Errorf("Spec (-started +adopted):\n%s", diff)
	}
	if diff := cmp.Diff(facts, p.Facts()); diff != "" {
		t.Errorf("Facts (-started +adopted):\n%s", diff)
	}
	if err := p.Continue(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := p.Status(t.Context()); err != nil || !s.Running {
		t.Errorf("status %+v, %v", s, err)
	}
}

func TestTheEndOfAGuestIsNoticedWithinASecond(t *testing.T) {
	b := newBench(t)
	first := b.start(t, b.spec(100))
	adopted := b.adopt(t, 100)
	if _, err := adopted.Status(deadline(t, 300*time.Millisecond)); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("a second client of the monitor: %v", err)
	}
	if err := unix.Kill(first.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitDone(t, first, time.Second)
	waitDone(t, adopted, time.Second)
	_, err := first.Status(t.Context())
	wantKind(t, err, model.ErrNotFound, "guest 100 is not running any more")
	_, err = Adopt(t.Context(), b.runDir, 100)
	wantKind(t, err, model.ErrNotFound, "does not run on this node")
	b.nothingLeft(t, 100)
}

func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls ok until it is true.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	ticks := time.NewTicker(20 * time.Millisecond)
	defer ticks.Stop()
	for over := time.After(limit); !ok(); {
		select {
		case <-ticks.C:
		case <-over:
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func TestASecondStartOfAGuestIsBusy(t *testing.T) {
	b := newBench(t)
	p := b.start(t, b.spec(100))
	_, err := Start(t.Context(), b.spec(100), b.group(100))
	wantKind(t, err, model.ErrBusy, "running already as process")
	if !p.Running() {
		t.Error("the refused start ended the running guest")
	}
	if s, err := p.Status(t.Context()); err != nil || s.Status != "prelaunch" {
		t.Errorf("status %+v, %v", s, err)
	}
}

func TestALockedImageIsInUse(t *testing.T) {
	b := newBench(t)
	b.start(t, b.spec(100))
	_, err := Start(t.Context(), b.spec(101), b.group(101))
	wantKind(t, err, storage.ErrInUse, "the disk image "+b.disk+" of guest 101 is in use by another process")
	b.nothingLeft(t, 101)
}

func TestAnImageIsStillLockedWhileItsGuestIsFrozen(t *testing.T) {
	b := newBench(t)
	p := b.start(t, b.spec(100))
	freeze(t, b.group(100))
	_, err := Start(t.Context(), b.spec(101), b.group(101))
	wantKind(t, err, storage.ErrInUse, "in use")
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.start(t, b.spec(101))
}

func freeze(t *testing.T, dir string) {
	t.Helper()
	group := sys.Cgroup(dir)
	if err := errors.Join(group.Freeze(), group.WaitFrozen(deadline(t, 5*time.Second))); err != nil {
		t.Fatal(err)
	}
}

func TestAFrozenGuestHoldsNobodyUp(t *testing.T) {
	b := newBench(t)
	p := b.start(t, b.spec(100))
	freeze(t, b.group(100))
	start := time.Now()
	_, err := p.Status(t.Context())
	wantKind(t, err, model.ErrUnavailable, "does not answer")
	if took := time.Since(start); took > qmpTimeout+time.Second {
		t.Errorf("it took %s", took)
	}
	// An agent that starts now finds it all the same, and can end it.
	p.Close()
	fresh := b.adopt(t, 100)
	if err := fresh.Cleanup(); !errors.Is(err, model.ErrBusy) {
		t.Errorf("Cleanup of a frozen guest: %v", err)
	}
	if err := fresh.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitDone(t, fresh, time.Second)
	if err := fresh.Cleanup(); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t, 100)
}

func TestAFrozenCgroupRefusesAStart(t *testing.T) {
	b := newBench(t)
	group := sys.Cgroup(b.group(100))
	if err := errors.Join(group.Create(), group.Freeze()); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), b.spec(100), string(group))
	wantKind(t, err, model.ErrUnavailable, "its cgroup is frozen")
	b.nothingLeft(t, 100)
	// The guard may freeze a moment later, too. Then nothing but this start waits.
	err = run(deadline(t, 500*time.Millisecond), b.spec(100), string(group))
	wantKind(t, err, model.ErrUnavailable, "did not come up in time")
	if populated, err := group.Populated(); err != nil || populated {
		t.Errorf("populated %v, %v", populated, err)
	}
}

func TestAStartKeepsTheGuardsMarkOnTheCgroup(t *testing.T) {
	b := newBench(t)
	group := sys.Cgroup(b.group(100))
	p := b.start(t, b.spec(100))
	if err := errors.Join(p.Kill(t.Context()), group.SetMark("sauh.test", []byte("kept"))); err != nil {
		t.Fatal(err)
	}
	// Traces of the dead guest are cleared, one start goes wrong, one succeeds.
	bad := b.spec(100)
	bad.Extra = []string{"-device", "nonsense"}
	if _, err := Start(t.Context(), bad, string(group)); err == nil {
		t.Fatal("it started")
	}
	b.start(t, b.spec(100))
	if value, ok, err := group.Mark("sauh.test"); err != nil || !ok || string(value) != "kept" {
		t.Errorf("mark %q %v %v", value, ok, err)
	}
}

func TestAThawedGuestAnswersAgain(t *testing.T) {
	b := newBench(t)
	p := b.start(t, b.spec(100))
	freeze(t, b.group(100))
	if _, err := p.Status(deadline(t, 200*time.Millisecond)); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("frozen: %v", err)
	}
	if err := sys.Cgroup(b.group(100)).Thaw(); err != nil {
		t.Fatal(err)
	}
	if s, err := p.Status(t.Context()); err != nil || s.Status != "prelaunch" {
		t.Errorf("thawed: %+v %v", s, err)
	}
}

func TestWhatCannotStartLeavesNothing(t *testing.T) {
	b := newBench(t)
	for name, c := range map[string]struct {
		change func(*Spec)
		kind   error
		part   string
	}{
		"image missing":  {func(s *Spec) { s.Disks[0].Path = "/nowhere/x.raw" }, model.ErrNotFound, "virtio0: the disk image /nowhere/x.raw does not exist"},
		"image no qcow2": {func(s *Spec) { s.Disks[0].Format = storage.QCOW2 }, model.ErrUnavailable, "Image is not in qcow2 format"},
		"bridge missing": {func(s *Spec) {
			s.NICs = []NIC{{ID: "net0", Device: virtioNet, MAC: "BC:24:11:00:00:01", Bridge: "nobr0", Tap: "x"}}
		}, model.ErrNotFound, "net0: this node has no bridge nobr0"},
		"tap missing": {func(s *Spec) {
			s.NICs = []NIC{{ID: "net0", Device: virtioNet, MAC: "BC:24:11:00:00:01", Bridge: "lo", Tap: "notap0"}}
		}, model.ErrNotFound, "the interface notap0 does not exist"},
		"machine unknown":    {func(s *Spec) { s.Machine = "pc-i440fx-99.9" }, model.ErrInvalid, "does not know the machine type pc-i440fx-99.9"},
		"bad argument":       {func(s *Spec) { s.Extra = []string{"-device", "nonsense"} }, model.ErrUnavailable, "'nonsense' is not a valid device model name"},
		"too much memory":    {func(s *Spec) { s.MemoryMiB = 1 << 30 }, model.ErrUnavailable, ""},
		"directory too long": {func(s *Spec) { s.RunDir = "/" + strings.Repeat("x", 100) }, model.ErrInvalid, "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			s := b.spec(100)
			c.change(&s)
			_, err := Start(t.Context(), s, b.group(100))
			wantKind(t, err, c.kind, c.part)
			b.nothingLeft(t, 100)
		})
	}
	b.start(t, b.spec(100)) // and it starts once the fault is mended
}

// edit changes a guest's state file, as an agent that died at a bad moment would have left it.
func (b bench) edit(t *testing.T, id model.VMID, change func(*state)) {
	t.Helper()
	text, err := os.ReadFile(runFile(b.runDir, id, suffixState))
	if err != nil {
		t.Fatal(err)
	}
	var st state
	if err := json.Unmarshal(text, &st); err != nil {
		t.Fatal(err)
	}
	change(&st)
	if err := writeState(st); err != nil {
		t.Fatal(err)
	}
}

func TestAGuestWhoseAgentDiedDuringTheStartIsAdopted(t *testing.T) {
	b := newBench(t)
	p := b.start(t, b.spec(100))
	pid := p.PID()
	p.Close()
	b.edit(t, 100, func(st *state) { st.Facts.PID, st.Facts.StartTicks = 0, 0 })
	if got := b.adopt(t, 100).PID(); got != pid {
		t.Errorf("adopted process %d, want %d", got, pid)
	}
}

func TestAHalfMadeStartIsKilled(t *testing.T) {
	b := newBench(t)
	p := b.start(t, b.spec(100))
	b.edit(t, 100, func(st *state) { st.Facts.PID, st.Facts.StartTicks = 0, 0 })
	if err := os.Remove(p.Spec().PIDFile()); err != nil {
		t.Fatal(err)
	}
	_, err := Adopt(t.Context(), b.runDir, 100)
	wantKind(t, err, model.ErrNotFound, "does not run")
	waitDone(t, p, time.Second)
	b.nothingLeft(t, 100)
}

func TestAProcessThatGotTheNumberLaterIsNotAdopted(t *testing.T) {
	b := newBench(t)
	p := b.start(t, b.spec(100))
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*state){
		"another start time": func(st *state) { st.Facts.PID = os.Getpid() },
		"another boot":       func(st *state) { st.Facts.BootID = "another" },
		"pidfile only":       func(st *state) { st.Facts.PID = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			st := state{b.spec(100), p.Facts()}
			change(&st)
			pidfile := []byte("1\n")
			if err := errors.Join(writeState(st), os.WriteFile(st.Spec.PIDFile(), pidfile, 0o600)); err != nil {
				t.Fatal(err)
			}
			_, err := Adopt(t.Context(), b.runDir, 100)
			wantKind(t, err, model.ErrNotFound, "does not run")
			b.nothingLeft(t, 100)
		})
	}
}

func TestTwoStartsAtOnceGiveOneProcess(t *testing.T) {
	b := newBench(t)
	type result struct {
		p   *Process
		err error
	}
	results := make(chan result, 2)
	for range 2 {
		go func() {
			p, err := Start(t.Context(), b.spec(100), b.group(100))
			results <- result{p, err}
		}()
	}
	started := 0
	for range 2 {
		if r := <-results; r.err == nil {
			started++
			defer r.p.Close()
		} else if !errors.Is(r.err, model.ErrBusy) {
			t.Errorf("got %v", r.err)
		}
	}
	if pids, err := sys.Cgroup(b.group(100)).Procs(); started != 1 || err != nil || len(pids) != 1 {
		t.Errorf("%d starts succeeded, processes %v %v", started, pids, err)
	}
}

func TestAnIncomingGuestWaitsForItsMigration(t *testing.T) {
	b := newBench(t)
	s := b.spec(100)
	s.Incoming = true
	if status, err := b.start(t, s).Status(t.Context()); err != nil || status.Status != "inmigrate" {
		t.Errorf("status %+v, %v", status, err)
	}
}

func TestTheConsoleShowsTheFirmware(t *testing.T) {
	b := newBench(t)
	_, err := Console(t.Context(), b.runDir, 100)
	wantKind(t, err, model.ErrNotFound, "guest 100 has no console here")
	p := b.start(t, b.spec(100))
	conn, err := Console(t.Context(), b.runDir, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := p.Continue(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	for buf := make([]byte, 4096); !strings.Contains(seen.String(), "SeaBIOS"); {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, seen.String())
		}
		seen.Write(buf[:n])
	}
	eventually(t, 5*time.Second, "the log holds what the console showed", func() bool {
		log, err := os.ReadFile(p.Spec().SerialLog(0))
		return err == nil && strings.Contains(string(log), "SeaBIOS")
	})
}

func TestTheProbeFindsAnAcceleratorAndRemembersIt(t *testing.T) {
	b := newBench(t)
	a, err := ProbeAccel(t.Context(), b.runDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s", a.Name, a.Reason)
	if a.Name != KVM && a.Name != TCG || a.Reason == "" {
		t.Errorf("got %+v", a)
	}
	start := time.Now()
	again, err := ProbeAccel(t.Context(), b.runDir)
	if err != nil || again != a {
		t.Errorf("the second time: %+v, %v", again, err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the second time took %s", took)
	}
	if left, _ := filepath.Glob(filepath.Join(b.runDir, "probe-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestARememberedAcceleratorHoldsOnlyWhileItMay(t *testing.T) {
	_, err := os.Stat("/dev/kvm")
	haveKVM := err == nil
	now := accelCache{QEMU: "10.0.2", Kernel: "6.1", BootID: "b1"}
	with := func(name, reason string) accelCache {
		c := now
		c.Accel = Accel{name, reason}
		return c
	}
	otherBoot, otherQEMU, otherKernel := now, now, now
	otherBoot.BootID, otherQEMU.QEMU, otherKernel.Kernel = "b2", "10.1.0", "6.2"
	for _, c := range []struct {
		name       string
		have, want accelCache
		ok         bool
	}{
		{"tcg, KVM did not boot", with(TCG, "slow"), now, haveKVM},
		{"tcg, no KVM there", with(TCG, noKVM), now, !haveKVM},
		{"tcg, another boot", with(TCG, "slow"), otherBoot, false},
		{"kvm", with(KVM, "booted"), now, haveKVM},
		{"kvm, another boot", with(KVM, "booted"), otherBoot, haveKVM},
		{"kvm, another QEMU", with(KVM, "booted"), otherQEMU, false},
		{"kvm, another kernel", with(KVM, "booted"), otherKernel, false},
	} {
		path := filepath.Join(t.TempDir(), "cache")
		text, err := json.Marshal(c.have)
		if err != nil || os.WriteFile(path, text, 0o600) != nil {
			t.Fatal(err)
		}
		if _, ok := cachedAccel(path, c.want); ok != c.ok {
			t.Errorf("%s: believed is %v, want %v", c.name, ok, c.ok)
		}
	}
}

func TestTheProbesDiskIsItsSource(t *testing.T) {
	for _, tool := range []string{"as", "ld"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	dir := t.TempDir()
	object, binary := filepath.Join(dir, "boot.o"), filepath.Join(dir, "boot.bin")
	for _, argv := range [][]string{
		{"as", "-o", object, "probe/boot.asm"},
		{"ld", "-m", "elf_x86_64", "-Ttext", "0x7c00", "--oformat", "binary", "-o", binary, object},
	} {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Skipf("needs an assembler for x86-64: %v %s", err, out)
		}
	}
	built, err := os.ReadFile(binary)
	if err != nil || string(built) != string(probeDisk) {
		t.Errorf("probe/boot.bin is not what probe/boot.asm makes (%v): assemble it again", err)
	}
}

func TestThisNodesQEMUIsKnown(t *testing.T) {
	newBench(t)
	version, err := QEMUVersion(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	machine, err := ResolveMachine(t.Context(), "pc")
	if err != nil || !strings.HasPrefix(machine, "pc-i440fx-") {
		t.Errorf("pc is %q, %v", machine, err)
	}
	t.Logf("QEMU %s, pc is %s", version, machine)
	if _, err := ResolveMachine(t.Context(), "pc-i440fx-99.9"); !errors.Is(err, model.ErrInvalid) {
		t.Errorf("an unknown machine: %v", err)
	}
}
