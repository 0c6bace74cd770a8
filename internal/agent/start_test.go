package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

// diary is what happened in a start, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
	qemu  string // a file that exists once QEMU was run
}

func (d *diary) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := os.Stat(d.qemu); err == nil && !slices.Contains(d.lines, "qemu") {
		d.lines = append(d.lines, "qemu")
	}
	if line != "" {
		d.lines = append(d.lines, line)
	}
}

// take returns the lines and begins anew.
func (d *diary) take() []string {
	d.note("")
	d.mu.Lock()
	defer d.mu.Unlock()
	lines := d.lines
	d.lines = nil
	_ = os.Remove(d.qemu)
	return lines
}

// startNode is a node with one guest, a guard that keeps a diary, and in QEMU's place a program that
// knows one machine type, notes that it was run and fails with what the test says.
func startNode(t *testing.T) (*node, *fakeGuard, *diary) {
	t.Helper()
	n := newNode(t)
	d := &diary{qemu: qemuThatEnds(t)}
	g := n.startGuard()
	g.answers(func(c guardCall) error {
		if c.Op != "status" {
			d.note("guard " + c.Op)
		}
		if c.Op == "protect" { // the guard, and nobody else, makes a protected guest's cgroup
			return os.MkdirAll(c.Group.Cgroup, 0o700)
		}
		return nil
	})
	n.st.onTxn(func(tx store.Txn) error {
		for _, op := range tx.Then {
			d.note("write " + op.Key)
		}
		return nil
	})
	n.put(model.GuestConfigKey("n1", 100), "memory: 32\n")
	return n, g, d
}

// qemuThatEnds has a QEMU that knows one machine and ends at once be the one that is found. It writes the file that is returned when it is to run a guest.
func qemuThatEnds(t *testing.T) (ran string) {
	t.Helper()
	bin := t.TempDir()
	ran = filepath.Join(bin, "was-run")
	program := "#!/bin/sh\nif [ \"$1\" = -machine ] && [ \"$2\" = help ]; then echo 'pc  PC (alias of pc-i440fx-10.0)'; echo 'pc-i440fx-10.0  PC'; exit 0; fi\n" +
		"echo run >" + ran + "\ncat " + bin + "/says >&2\nexit 1\n"
	must(t, os.WriteFile(filepath.Join(bin, qemu.Binary), []byte(program), 0o700))
	must(t, os.WriteFile(filepath.Join(bin, "says"), []byte("qemu-system-x86_64: out of luck\n"), 0o600))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return ran
}

func (n *node) start(id model.VMID) error {
	n.t.Helper()
	return n.m.starter.start(n.t.Context(), startRequest{id: id, log: n.t.Logf})
}

// Everything speaks against this start; one reason after the other is taken away.
func TestAStartIsRefusedForTheFirstReasonThatThereIs(t *testing.T) {
	n, _, d := startNode(t)
	file := model.GuestConfigKey("n1", 100)
	n.delete(file)
	n.put(model.GuestConfigKey("n2", 100), "name: elsewhere\n")
	n.put(model.IntentPrefix+"100", `{"vmid":100,"source":"n2","target":"n3"}`)
	n.put(model.ProtectedPrefix+"100", `{"node":"n1"}`)
	n.put(haResourcesKey, "vm: 100\n\tstate stopped\n")
	ended := n.runs(100)
	haStart := func() error {
		return n.m.starter.start(t.Context(), startRequest{id: 100, haOnly: true, log: t.Logf})
	}

	refused(t, n.start(100), model.ErrBusy, "guest 100 runs already (pid 0)")
	ended()
	refused(t, n.start(100), model.ErrNotFound, "Configuration file 'nodes/n1/qemu-server/100.conf' does not exist: the guest is not on n1")
	n.delete(model.GuestConfigKey("n2", 100))
	n.put(file, "lock: backup\ntemplate: 1\n")
	refused(t, n.start(100), model.ErrBusy, "guest 100 is being migrated from n2 to n3")
	n.delete(model.IntentPrefix + "100")
	refused(t, haStart(), model.ErrConflict, errNotWanted.Error())
	refused(t, n.start(100), model.ErrBusy, "VM is locked (backup)")
	n.put(file, "template: 1\n")
	refused(t, n.start(100), model.ErrInvalid, "template: guest 100 is a template and cannot be started: clone it")
	n.put(file, "memory: 32\n")
	refused(t, n.start(100), model.ErrNoQuorum, "guest 100 is protected and n1 holds no valid lease: it may not run here until the node can renew it (see `sauh cluster status`)")
	if lines := d.take(); len(lines) > 0 {
		t.Errorf("the refused starts did something: %v", lines)
	}
	n.leased(3)
	if err := n.start(100); err == nil || !strings.Contains(err.Error(), "out of luck") || !slices.Contains(d.take(), "qemu") {
		t.Errorf("with nothing against it QEMU was not run: %v", err)
	}
	n.put(haResourcesKey, "vm: 100\n\tstate started\n")
	if err := haStart(); errors.Is(err, errNotWanted) || !slices.Contains(d.take(), "qemu") {
		t.Errorf("HA's start of a wanted guest: %v", err)
	}
}

// The mirror may be stale; what decides is read from the majority.
func TestAStartNeedsAQuorum(t *testing.T) {
	n, _, d := startNode(t)
	n.st.setQuorum(false)
	if err := n.start(100); !errors.Is(err, model.ErrNoQuorum) || len(d.take()) > 0 {
		t.Error(err)
	}
}

func TestAnUnprotectedGuestStartsWithoutGuardAndLease(t *testing.T) {
	n, _, d := startNode(t)
	if err := n.start(100); err == nil || !strings.Contains(err.Error(), "out of luck") {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"qemu"}, d.take()); diff != "" {
		t.Error(diff)
	}
	if n.m.procs.get(100) != nil || n.get(model.ProtectedPrefix+"100") != "" {
		t.Error("a start that failed left something")
	}
}

func TestAProtectedGuestIsUnderTheGuardBeforeQEMURuns(t *testing.T) {
	n, g, d := startNode(t)
	n.storage("nas", "\tshared 1\n\tlate-writes no\n")
	n.storage("safe", "\tshared 1\n\tlate-writes no\n")
	vol := n.allocate("nas", 100)
	other := n.allocate("safe", 100)
	n.put(model.GuestConfigKey("n1", 100), "memory: 32\nvirtio0: "+vol+"\nvirtio1: "+other+"\nscsi0: "+vol+"\n")
	n.put(haResourcesKey, "vm: 100\n")
	n.leased(7)
	if err := n.start(100); err == nil || !strings.Contains(err.Error(), "out of luck") {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"guard protect", "write protected/100", "qemu", "guard unprotect"}, d.take()); diff != "" {
		t.Error(diff)
	}
	want := lease.Group{Name: "100", Cgroup: n.paths.cgroupOf("100"), Epoch: 7, OnDeadline: lease.FreezeGroup}
	for _, name := range []string{"nas", "safe"} {
		drv, err := n.m.starter.storages.driver(name)
		must(t, err)
		want.Pills = append(want.Pills, drv.Pill(n.m.starter.pillName("n1")))
	}
	if diff := cmp.Diff(&want, g.calls("protect")[0].Group); diff != "" {
		t.Error(diff)
	}
	// The acknowledgement stands: no QEMU of this guest runs here outside the guard.
	if got := n.get(model.ProtectedPrefix + "100"); got != `{"node":"n1"}` {
		t.Errorf("the record is %q", got)
	}
	if err := n.start(100); err == nil {
		t.Error("the second start succeeded")
	}
	if diff := cmp.Diff([]string{"guard protect", "qemu", "guard unprotect"}, d.take()); diff != "" {
		t.Errorf("with the record there already: %s", diff)
	}
	// After a move the record names this node although the guest is no HA resource any more.
	n.delete(haResourcesKey)
	_ = n.start(100)
	if diff := cmp.Diff([]string{"guard protect", "qemu", "guard unprotect"}, d.take()); diff != "" {
		t.Errorf("no HA resource any more: %s", diff)
	}
}

func (n *node) allocate(name string, id model.VMID) string {
	n.t.Helper()
	drv, err := n.m.starter.storages.driver(name)
	must(n.t, err)
	v, err := drv.Allocate(n.t.Context(), storage.Allocation{VMID: id, Size: 1 << 20})
	must(n.t, err)
	return v.ID
}

func TestLateWritesOnOneStorageMeanAReset(t *testing.T) {
	n, g, _ := startNode(t)
	n.storage("nas", "\tshared 1\n\tlate-writes no\n")
	n.storage("nfs", "\tshared 1\n")
	n.put(model.GuestConfigKey("n1", 100), "virtio0: "+n.allocate("nfs", 100)+"\nvirtio1: "+n.allocate("nas", 100)+"\n")
	n.put(haResourcesKey, "vm: 100\n")
	n.leased(7)
	_ = n.start(100)
	if got := g.calls("protect")[0].Group.OnDeadline; got != lease.ResetMachine {
		t.Errorf("at the deadline the guard does %s", got)
	}
}

func TestWithoutTheGuardsWordNothingIsAcknowledgedAndNothingStarts(t *testing.T) {
	n, g, d := startNode(t)
	n.put(haResourcesKey, "vm: 100\n")
	n.leased(7)
	g.answers(func(c guardCall) error {
		if c.Op == "protect" {
			return model.Errorf(model.ErrConflict, "epoch 7 is over")
		}
		return nil
	})
	if err := n.start(100); !errors.Is(err, model.ErrConflict) || !strings.Contains(err.Error(), "put guest 100 under the guard: ") {
		t.Error(err)
	}
	if lines := d.take(); len(lines) > 0 || n.get(model.ProtectedPrefix+"100") != "" {
		t.Errorf("all the same: %v", lines)
	}
}

// The file moved away, or somebody wrote the record, between the reading and the acknowledgement.
func TestAnAcknowledgementThatFailsStartsNothing(t *testing.T) {
	for name, key := range map[string]string{"the file": model.GuestConfigKey("n1", 100), "the record": model.ProtectedPrefix + "100"} {
		t.Run(name, func(t *testing.T) {
			n, _, d := startNode(t)
			n.put(haResourcesKey, "vm: 100\n")
			n.leased(7)
			n.st.onTxn(func(tx store.Txn) error {
				d.note("write " + tx.Then[0].Key)
				putKey(t, n.other, key, `{"node":"n2"}`)
				return nil
			})
			if err := n.start(100); !errors.Is(err, model.ErrConflict) {
				t.Error(err)
			}
			if diff := cmp.Diff([]string{"guard protect", "write protected/100", "guard unprotect"}, d.take()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAGuestThatOnlyThisNodeCanRunIsNotProtected(t *testing.T) {
	n, _, d := startNode(t)
	n.storage("local", "")
	n.put(model.GuestConfigKey("n1", 100), "virtio0: "+n.allocate("local", 100)+"\n")
	n.put(haResourcesKey, "vm: 100\n")
	_ = n.start(100)
	if diff := cmp.Diff([]string{"qemu"}, d.take()); diff != "" {
		t.Error(diff)
	}
}

func TestAStartWaitsForTheAccelerator(t *testing.T) {
	n, _, d := startNode(t)
	n.m.starter.host = &hostInfo{probed: make(chan struct{}), version: "10.0.2", accel: qemu.Accel{Name: qemu.TCG}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := n.m.starter.start(ctx, startRequest{id: 100, log: t.Logf}); !errors.Is(err, context.DeadlineExceeded) || len(d.take()) > 0 {
		t.Error(err)
	}
	n.m.starter.host = &hostInfo{probed: n.m.starter.host.probed, version: "10.0.2"}
	close(n.m.starter.host.probed)
	if err := n.start(100); !errors.Is(err, model.ErrUnavailable) || len(d.take()) > 0 {
		t.Errorf("without one: %v", err)
	}
}

func TestPillsAreWrittenToEachSharedStorageBeforeTheStart(t *testing.T) {
	n, _, d := startNode(t)
	n.storage("nas", "\tshared 1\n\tlate-writes no\n")
	n.storage("two", "\tshared 1\n\tlate-writes no\n")
	n.storage("unused", "\tshared 1\n\tlate-writes no\n")
	n.put(model.GuestConfigKey("n1", 100), "virtio0: "+n.allocate("nas", 100)+"\nvirtio1: "+n.allocate("two", 100)+"\n")
	_ = n.m.starter.start(t.Context(), startRequest{id: 100, pills: []ha.Pill{{Node: "n2", Epoch: 4}, {Node: "n3", Epoch: 9}}, log: t.Logf})
	if !slices.Contains(d.take(), "qemu") {
		t.Error("the guest was not started")
	}
	got := map[string]uint64{}
	for _, name := range []string{"nas", "two", "unused"} {
		drv, err := n.m.starter.storages.driver(name)
		must(t, err)
		for _, node := range []string{"n1", "n2", "n3"} {
			data, err := os.ReadFile(drv.Pill(n.m.starter.pillName(node)))
			if epoch, ok := lease.ParsePill(data); err == nil && ok {
				got[name+" "+node] = epoch
			}
		}
	}
	if diff := cmp.Diff(map[string]uint64{"nas n2": 4, "nas n3": 9, "two n2": 4, "two n3": 9}, got); diff != "" {
		t.Error(diff)
	}
}

// The worker tries such a start again soon: the node that was fenced may hold the lock yet.
func TestALockedImageIsToldFromOtherFailures(t *testing.T) {
	if kind := failKind(fmt.Errorf("task: %w", &lockedError{model.Errorf(model.ErrBusy, "in use")})); kind != ha.FailLocked {
		t.Errorf("a locked image is %v", kind)
	}
	n, _, _ := startNode(t)
	must(t, os.WriteFile(filepath.Join(strings.Split(os.Getenv("PATH"), ":")[0], "says"),
		[]byte("qemu-system-x86_64: -blockdev x: Failed to get \"write\" lock\nIs another process using the image [/x]?\n"), 0o600))
	if err := n.start(100); failKind(err) != ha.FailLocked {
		t.Errorf("QEMU's own words for a locked image: %v", err)
	}
}

func TestStartAtBootStartsOnceAndOnlyWhatIsToBeStarted(t *testing.T) {
	n, _, _ := startNode(t)
	n.put(model.GuestConfigKey("n1", 100), "onboot: 1\n")
	n.put(model.GuestConfigKey("n1", 101), "name: not-at-boot\n")
	n.put(model.GuestConfigKey("n1", 102), "onboot: 1\n")
	n.put(model.GuestConfigKey("n1", 103), "onboot: 1\ntemplate: 1\n")
	n.put(model.GuestConfigKey("n1", 104), "onboot: 1\n")
	n.put(model.GuestConfigKey("n2", 200), "onboot: 1\n")
	n.put(haResourcesKey, "vm: 102\n\tstate stopped\n")
	n.runs(104)
	for range 2 {
		n.m.operations.startOnBoot(t.Context())
		n.tasksEnd()
	}
	list, err := n.a.tasks.ListTasks(t.Context())
	must(t, err)
	if len(list) != 1 || list[0].ID != "100" || list[0].Type != "qmstart" {
		t.Errorf("the tasks are %v", list)
	}
}

// acknowledge, as the worker does it for a guest that runs or does not run when it becomes an HA resource.
func TestTheWorkerAcknowledgesAfterTheGuardConfirmed(t *testing.T) {
	n, _, d := startNode(t)
	n.put(haResourcesKey, "vm: 100\n")
	n.leased(7)
	kv, _ := n.m.mirror.Snapshot().Get(model.GuestConfigKey("n1", 100))
	ack := ha.Acknowledge{VMID: 100, Node: "n1", ConfigRevision: kv.ModRevision}
	stale := ack
	stale.ConfigRevision--
	if _, err := n.m.worker.do(t.Context(), stale); !errors.Is(err, store.ErrConflict) || n.get(model.ProtectedPrefix+"100") != "" {
		t.Errorf("of another file: %v", err)
	}
	d.take()
	n.runs(100)
	_, err := n.m.worker.do(t.Context(), ack)
	must(t, err)
	if diff := cmp.Diff([]string{"guard protect", "write protected/100"}, d.take()); diff != "" {
		t.Error(diff)
	}
	if !n.m.live.Guarded()["100"] || n.get(model.ProtectedPrefix+"100") != `{"node":"n1"}` {
		t.Error("the guest does not count as guarded")
	}
	written := ack
	written.Written = true
	_, err = n.m.worker.do(t.Context(), written)
	must(t, err)
	if diff := cmp.Diff([]string{"guard protect"}, d.take()); diff != "" {
		t.Error(diff)
	}
}

// realGuard runs a guard in this process over a cgroup tree of its own.
func (n *node) realGuard() *guard.Client {
	t := n.t
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root, err := sys.Cgroup2Root()
	if err != nil {
		t.Skip("needs cgroup v2:", err)
	}
	dir, err := os.MkdirTemp(root, "sauh-agent-test-")
	if err != nil {
		t.Skip("needs a writable cgroup v2:", err)
	}
	n.paths.CgroupRoot, n.m.starter.paths.CgroupRoot, n.m.procs.paths.CgroupRoot = dir, dir, dir
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	cfg := guard.Config{
		Socket: n.paths.guardSocket(), Watchdog: guard.NoWatchdog, CgroupRoot: dir, Params: shortLease(), Log: n.a.log,
		Reset: func() error { t.Error("the guard resets the machine"); return nil },
	}
	go func() { ended <- guard.Run(ctx, cfg) }()
	var c *guard.Client
	eventually(t, "the guard answers", func() bool { c, err = guard.Dial(t.Context(), cfg.Socket); return err == nil })
	t.Cleanup(func() {
		n.close()
		within, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Fence(within, math.MaxUint64); err != nil {
			t.Error(err)
		}
		stop()
		must(t, <-ended)
		g := sys.Cgroup(dir)
		if err := errors.Join(g.Kill(), g.WaitEmpty(within), g.Remove()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestARealGuestRunsUnderARealGuard(t *testing.T) {
	n := newNode(t)
	c := n.realGuard()
	if _, err := qemu.QEMUVersion(t.Context()); err != nil {
		t.Skip(err)
	}
	n.lives()
	n.put(model.GuestConfigKey("n1", 100), "memory: 16\nkvm: 0\n")
	n.put(haResourcesKey, "vm: 100\n")
	eventually(t, "the lease is valid", func() bool { _, ok := n.m.starter.lease.Valid(); return ok })
	must(t, n.start(100))
	p := n.m.procs.get(100)
	if pids, err := sys.Cgroup(n.paths.cgroupOf("100")).Procs(); err != nil || !slices.Contains(pids, p.PID()) {
		t.Errorf("QEMU %d is not in the group, which holds %v: %v", p.PID(), pids, err)
	}
	s, err := c.Status(t.Context())
	must(t, err)
	if len(s.Groups) != 1 || s.Groups[0].Name != "100" || !n.m.live.Guarded()["100"] || n.get(model.ProtectedPrefix+"100") != `{"node":"n1"}` {
		t.Errorf("the guard has %v, the record is %q", s.Groups, n.get(model.ProtectedPrefix+"100"))
	}
	n.follow()
	row, err := n.m.roles.Guests.Get(t.Context(), 100)
	must(t, err)
	if row.Status != "running" || row.QMPStatus != "running" || row.PID != p.PID() || row.Frozen {
		t.Errorf("the guest is %+v", row)
	}
	cut := n.fence() // another node cuts this one off: the guest dies before the node lives again
	eventually(t, "the guest is dead", func() bool { return n.m.procs.get(100) == nil })
	eventually(t, "the node lives again", func() bool { return !n.live().Fenced })
	if l := n.live(); l.Epoch != cut.Epoch {
		t.Errorf("it registered as %+v", l)
	}
	if s, err = c.Status(t.Context()); err != nil || len(s.Groups) != 0 {
		t.Errorf("the guard still has %v: %v", s.Groups, err)
	}
	eventually(t, "the lease is valid", func() bool { _, ok := n.m.starter.lease.Valid(); return ok })
	must(t, n.start(100))
	must(t, n.run(n.m.roles.Guests.Stop(t.Context(), 100)))
	if n.m.procs.get(100) != nil {
		t.Error("a stopped guest is still there")
	}
}

// A node that is fenced and registers again while a start is under way must not run what it read before.
func TestAStartUsesTheEpochFromBeforeItReadWhoseTheGuestIs(t *testing.T) {
	n, g, d := startNode(t)
	n.storage("nas", "\tshared 1\n\tlate-writes no\n")
	n.put(model.GuestConfigKey("n1", 100), "memory: 32\nvirtio0: "+n.allocate("nas", 100)+"\n")
	n.put(haResourcesKey, "vm: 100\n")
	n.leased(3)
	epoch, ok := n.m.starter.lease.Valid()
	o, err := n.m.starter.readOwnership(t.Context(), 100, "n1")
	must(t, err)
	n.leased(4) // fenced and back
	conf, err := pveconf.ParseGuest(o.conf.Value)
	must(t, err)
	spec, err := n.m.starter.spec(t.Context(), 100, conf, o.storages)
	must(t, err)
	_ = n.m.starter.launch(t.Context(), conf, spec, o, term{epoch, ok})
	if got := g.calls("protect")[0].Group.Epoch; got != 3 {
		t.Errorf("the guard was asked to take the guest under epoch %d, want 3, which it refuses", got)
	}
	d.take()
}

func TestEveryNodeNameHasAPillOfItsOwn(t *testing.T) {
	n := newNode(t)
	n.storage("nas", "\tshared 1\n")
	drv, err := n.m.starter.storages.driver("nas")
	must(t, err)
	seen := map[string]string{}
	for range 2 {
		n.m.starter.cluster = newUUID()
		for _, name := range []string{"n1", "n2", strings.Repeat("n", 63), strings.Repeat("n", 62) + "1"} {
			if model.ValidateNodeName(name) != nil {
				t.Fatalf("%s is no name", name)
			}
			pill, whose := drv.Pill(n.m.starter.pillName(name)), n.m.starter.cluster+" "+name
			if pill == "" || seen[pill] != "" {
				t.Errorf("the pill of %s is %q, which is that of %q too", whose, pill, seen[pill])
			}
			seen[pill] = whose
		}
	}
}

// The agent lost sight of a QEMU that runs: a start that fails on it must not take it from the guard.
func TestAFailedStartLeavesARunningGuestUnderTheGuard(t *testing.T) {
	n := newNode(t)
	c := n.realGuard()
	if _, err := qemu.QEMUVersion(t.Context()); err != nil {
		t.Skip(err)
	}
	n.lives()
	n.put(model.GuestConfigKey("n1", 100), "memory: 16\nkvm: 0\n")
	n.put(haResourcesKey, "vm: 100\n")
	eventually(t, "the lease is valid", func() bool { _, ok := n.m.starter.lease.Valid(); return ok })
	must(t, n.start(100))
	p := n.m.procs.get(100)
	n.m.procs.mu.Lock()
	delete(n.m.procs.all, 100)
	n.m.procs.mu.Unlock()
	if err := n.start(100); !errors.Is(err, model.ErrBusy) || !strings.Contains(err.Error(), "running already") {
		t.Errorf("a second QEMU: %v", err)
	}
	if s, err := c.Status(t.Context()); err != nil || len(s.Groups) != 1 {
		t.Errorf("the guard has %v: %v", s.Groups, err)
	}
	if !p.Running() {
		t.Error("the guest does not run any more")
	}
	must(t, p.Kill(t.Context()))
	must(t, p.waitCleaned(t.Context()))
	if s, err := c.Status(t.Context()); err != nil || len(s.Groups) != 0 {
		t.Errorf("after its end the guard has %v: %v", s.Groups, err)
	}
	must(t, p.Close())
}

// What the guard does at the deadline rests on storage.cfg, so the mirror's copy, which may be stale, must not decide it.
func TestAStartReadsTheStoragesFromTheMajority(t *testing.T) {
	n, g, _ := startNode(t)
	n.storage("nfs", "\tshared 1\n")
	n.put(model.GuestConfigKey("n1", 100), "virtio0: "+n.allocate("nfs", 100)+"\n")
	n.put(haResourcesKey, "vm: 100\n")
	n.leased(7)
	n.m.starter.storages.mirror = mirror.New(n.st, n.a.log, nil) // it has seen nothing yet
	_ = n.start(100)
	calls := g.calls("protect")
	if len(calls) != 1 || calls[0].Group.OnDeadline != lease.ResetMachine || len(calls[0].Group.Pills) != 1 {
		t.Errorf("the guard was asked for %+v", calls)
	}
	n.put(storageCfgKey, "dir: nfs\n\tshared maybe\n\tpath /x\n")
	if err := n.start(100); !errors.Is(err, model.ErrInvalid) || len(g.calls("protect")) != 1 {
		t.Errorf("with a storage.cfg that cannot be read: %v", err)
	}
}

func TestWhatACardAsksForAndDoesNotGetIsNamed(t *testing.T) {
	n, _, _ := startNode(t)
	n.put(model.GuestConfigKey("n1", 100), "memory: 32\nnet0: virtio=BC:24:11:00:00:01,tag=5\n")
	var log []string
	_ = n.m.starter.start(t.Context(), startRequest{id: 100, log: func(f string, args ...any) { log = append(log, fmt.Sprintf(f, args...)) }})
	if !slices.Contains(log, "WARN: net0: tag=5 is kept but has no effect in this version") {
		t.Errorf("the log is %q", log)
	}
}

// A process of which only broken traces are there may run: nobody may take the guest for stopped.
func TestAGuestThatCannotBeAdoptedIsUnknownUntilItIs(t *testing.T) {
	n, _, d := startNode(t)
	n.put(haResourcesKey, "vm: 100\n\tstate stopped\n")
	state := filepath.Join(n.paths.qemuRun(), "100.json")
	must(t, os.WriteFile(state, []byte("{broken"), 0o600))
	n.m.procs.adoptAll(t.Context())
	row, err := n.m.roles.Guests.Get(t.Context(), 100)
	if err != nil || row.Status != "unknown" || !strings.Contains(row.Reason, "it is not known whether guest 100 runs here") {
		t.Fatalf("the guest is %+v: %v", row, err)
	}
	d.take()
	for what, err := range map[string]error{
		"start": n.start(100), "stop": n.run(n.m.roles.Guests.Stop(t.Context(), 100)), "destroy": n.destroyGuest(100),
		"migrate": n.run(n.m.roles.Guests.Migrate(t.Context(), 100, "n2", true)),
	} {
		if err == nil || what == "start" && !errors.Is(err, model.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := n.m.arrivals.find(t.Context(), 100); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("a migration takes the process for gone: %v", err)
	}
	if lines := d.take(); len(lines) > 0 {
		t.Errorf("something was done: %v", lines)
	}
	must(t, os.Remove(state))
	n.m.arrivals.resolveInterrupted(n.m.ctx)
	eventually(t, "it is found out that it does not run", func() bool {
		row, err := n.m.roles.Guests.Get(t.Context(), 100)
		return err == nil && row.Status == "stopped" && len(n.m.worker.locks.holders()) == 0
	})
}

// Its file does not matter to the process that runs.
func TestAGuestWhoseFileCannotBeReadCanBeStopped(t *testing.T) {
	n, _, _ := startNode(t)
	n.put(model.GuestConfigKey("n1", 100), "cores: many\n")
	row, err := n.m.roles.Guests.Get(t.Context(), 100)
	if err != nil || row.Status != "stopped" {
		t.Errorf("its status: %+v %v", row, err)
	}
	err = n.run(n.m.roles.Guests.Stop(t.Context(), 100))
	refused(t, err, model.ErrBusy, "VM 100 not running") // and not that its file is wrong
}
