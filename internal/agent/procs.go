package agent

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sauh.dev/sauh/internal/agent/move"
	corehealth "sauh.dev/sauh/internal/core/health"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/network"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/sys"
)

// procs are the QEMU processes of this node.
type procs struct {
	paths Paths
	log   *slog.Logger
	guard groupGuard
	// changed is told that a process came or went.
	changed func()
	// watch looks after a process until it ended or ctx is done; nil for nobody.
	watch func(ctx context.Context, id model.VMID, p *proc)
	wg    sync.WaitGroup

	mu   sync.Mutex
	all  map[model.VMID]*proc // guarded by mu
	lost map[model.VMID]error // why a process that may be there was not adopted yet; guarded by mu
	gone chan model.VMID      // ends, for the HA worker
	stop chan struct{}
}

// groupGuard has this node's protected guests in its care; *liveness.Liveness is one, and its methods say what they do.
type groupGuard interface {
	Protect(ctx context.Context, g lease.Group) error
	Unprotect(ctx context.Context, name string) error
	Guarded() map[string]bool
	Refresh(ctx context.Context) error
}

// proc is one QEMU process and what the agent knows about it.
type proc struct {
	*qemu.Process
	incoming  atomic.Bool                          // waits for a migration and was never continued
	condition atomic.Pointer[corehealth.Condition] // nil: nothing is known, so it is well
	panicked  chan struct{}                        // holds one token when the node from which it came says that it has panicked
	cleaned   chan struct{}
}

// health is what is thought of the guest.
func (p *proc) health() corehealth.Condition {
	if c := p.condition.Load(); c != nil {
		return *c
	}
	return corehealth.Condition{}
}

func newProc(p *qemu.Process, incoming bool) *proc {
	np := &proc{Process: p, panicked: make(chan struct{}, 1), cleaned: make(chan struct{})}
	np.incoming.Store(incoming)
	return np
}

func newProcs(paths Paths, log *slog.Logger, g groupGuard, changed func()) *procs {
	return &procs{paths: paths, log: log, guard: g, changed: changed, all: map[model.VMID]*proc{}, lost: map[model.VMID]error{}, gone: make(chan model.VMID, 64), stop: make(chan struct{})}
}

// adoptAll takes over the processes that an earlier agent of this boot started.
func (ps *procs) adoptAll(ctx context.Context) {
	ids, err := qemu.List(ps.paths.qemuRun())
	if err != nil {
		ps.log.Error("running guests cannot be listed", "err", err)
		return
	}
	if err := ps.guard.Refresh(ctx); err != nil {
		ps.log.Warn("the guard does not answer", "err", err)
	}
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() { ps.adopt(ctx, id) })
	}
	wg.Wait()
	for name := range ps.guard.Guarded() {
		if id, err := model.ParseVMID(name); err == nil && ps.get(id) == nil {
			ps.unguard(ctx, id) // it ended while no agent looked; kept, it would freeze or reset for nothing
		}
	}
}

// adopt takes over one guest's process, if there is one; true means that it is known now whether there is.
func (ps *procs) adopt(ctx context.Context, id model.VMID) bool {
	p, err := qemu.Adopt(ctx, ps.paths.qemuRun(), id)
	gone := errors.Is(err, model.ErrNotFound)
	ps.mu.Lock()
	_, known := ps.lost[id]
	if err == nil || gone {
		delete(ps.lost, id)
	} else {
		ps.lost[id] = err
	}
	ps.mu.Unlock()
	switch {
	case err == nil:
		ps.log.Info("guest adopted", "vmid", id, "pid", p.PID())
		ps.add(id, newProc(p, p.Spec().Incoming && ps.neverRan(ctx, id, p)))
	case !known:
		ps.log.Warn("guest not adopted", "vmid", id, "err", err)
	}
	return err == nil || gone
}

// unadopted says why it is not known whether the guest runs here, nil if it is known.
func (ps *procs) unadopted(id model.VMID) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if err := ps.lost[id]; err != nil {
		return model.Errorf(model.ErrUnavailable, "it is not known whether guest %s runs here, and the agent goes on trying to find out: %v", id, err)
	}
	return nil
}

// unadoptedIDs are the guests of which it is not known.
func (ps *procs) unadoptedIDs() []model.VMID {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return slices.Sorted(maps.Keys(ps.lost))
}

// neverRan reports whether an incoming QEMU still waits for its guest, or has it
// and no agent has settled yet whose it is: then the migration's note is there.
func (ps *procs) neverRan(ctx context.Context, id model.VMID, p *qemu.Process) bool {
	if _, err := (move.DirNotes{Dir: ps.paths.qemuRun()}).Load(id); err == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s, err := p.Status(ctx)
	return err == nil && s.Status == "inmigrate"
}

// add keeps a process until it ends.
func (ps *procs) add(id model.VMID, p *proc) {
	ps.mu.Lock()
	ps.all[id] = p
	ps.mu.Unlock()
	ps.changed()
	ctx, cancel := context.WithCancel(context.Background())
	if ps.watch != nil {
		ps.wg.Go(func() { ps.watch(ctx, id, p) })
	}
	ps.wg.Go(func() {
		defer cancel()
		select {
		case <-ps.stop:
			return
		case <-p.Done():
		}
		ps.ended(id, p)
	})
}

// ended cleans up after a process: network, guard, files.
func (ps *procs) ended(id model.VMID, p *proc) {
	defer close(p.cleaned)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ps.log.Info("guest ended", "vmid", id, "pid", p.PID())
	removeTaps(ctx, ps.log, p.Spec())
	ps.unguard(ctx, id)
	if err := p.Cleanup(); err != nil {
		ps.log.Warn("files of an ended guest not removed", "vmid", id, "err", err)
	}
	ps.mu.Lock()
	if ps.all[id] == p {
		delete(ps.all, id)
	}
	ps.mu.Unlock()
	select {
	case ps.gone <- id:
	default: // the worker looks at everything anyway when it comes to it
	}
	ps.changed()
}

// absent says what of a guest is still here, or may be.
func (ps *procs) absent(id model.VMID) error {
	if err := ps.unadopted(id); err != nil {
		return err
	}
	populated, err := sys.Cgroup(ps.paths.cgroupOf(id.String())).Populated()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, guarded := ps.guard.Guarded()[id.String()]
	if ps.get(id) != nil || populated || guarded {
		return model.Errorf(model.ErrBusy, "something of guest %s is still on this node", id)
	}
	return nil
}

// unguard takes a group out of the guard's care if nothing runs in it. One that
// has a process stays, whoever lost sight of that: the guest's protected record promises it.
func (ps *procs) unguard(ctx context.Context, id model.VMID) {
	populated, err := sys.Cgroup(ps.paths.cgroupOf(id.String())).Populated()
	if populated || err != nil && !errors.Is(err, fs.ErrNotExist) {
		ps.log.Warn("a group stays under the guard: something runs in it", "vmid", id, "err", err)
		return
	}
	if err := ps.guard.Unprotect(ctx, id.String()); err != nil {
		ps.log.Debug("guard keeps a group", "vmid", id, "err", err)
	}
}

func removeTaps(ctx context.Context, log *slog.Logger, s qemu.Spec) {
	for _, n := range s.NICs {
		if n.Tap == "" {
			continue
		}
		if err := network.RemoveTap(ctx, n.Tap); err != nil {
			log.Warn("tap not removed", "tap", n.Tap, "err", err)
		}
	}
}

func (ps *procs) get(id model.VMID) *proc {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.all[id]
}

func (ps *procs) list() map[model.VMID]*proc {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	out := make(map[model.VMID]*proc, len(ps.all))
	for id, p := range ps.all {
		out[id] = p
	}
	return out
}

// release lets go of all processes; they run on.
func (ps *procs) release() {
	close(ps.stop)
	ps.wg.Wait()
	for _, p := range ps.list() {
		if err := p.Close(); err != nil {
			ps.log.Debug("connection to a guest not closed in order", "pid", p.PID(), "err", err)
		}
	}
}

// frozen reports whether the guest's cgroup is frozen.
func (ps *procs) frozen(id model.VMID) bool {
	frozen, err := sys.Cgroup(ps.paths.cgroupOf(id.String())).Frozen()
	return err == nil && frozen
}
