package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/agent/move"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/qemu"
)

// recoverAgain is how long an interrupted migration that could not be settled rests before the next try.
const recoverAgain = 2 * time.Second

// arrivals are the migrations of guests to this node, and what became of those that an earlier agent left.
type arrivals struct {
	*moving
	log     *slog.Logger
	listen  string // this node's address in the cluster network
	files   guestFiles
	mirror  *mirror.Mirror
	quorate func() bool
	locks   *guestLocks
	starter *starter
	moves   *move.Target
	leaving atomic.Bool // nothing may come here any more
	wg      sync.WaitGroup

	mu       sync.Mutex
	arriving map[model.VMID]func() // unlocks guests that are being received; guarded by mu
}

// newArrivals completes a, which listens on the first of this node's addresses.
func newArrivals(a *arrivals, addresses []netip.Addr) *arrivals {
	a.arriving = map[model.VMID]func(){}
	if len(addresses) > 0 {
		a.listen = addresses[0].String()
	}
	a.moves = move.NewTarget(a.targetDeps())
	return a
}

// wait returns when nothing of it runs any more; those that settle end with their context.
func (a *arrivals) wait() {
	a.moves.Close()
	a.wg.Wait()
}

func (a *arrivals) targetDeps() move.TargetDeps {
	return move.TargetDeps{
		Deps: a.deps(func(id model.VMID, line string) {
			a.log.Info("migration: "+line, "vmid", id)
		}),
		Listen:   a.listen,
		Start:    a.startIncoming,
		Protect:  a.protectIncoming,
		Ready:    a.readyFor,
		Finished: a.ended,
	}
}

// startIncoming starts the QEMU that waits for a guest's memory.
func (a *arrivals) startIncoming(ctx context.Context, r move.StartRequest) (move.QEMU, error) {
	conf, err := pveconf.ParseGuest(r.Config)
	if err != nil {
		return nil, fmt.Errorf("configuration of guest %s: %w", r.VMID, err)
	}
	at := a.starter.term()
	set, err := a.starter.storages.read(ctx)
	if err != nil {
		return nil, err
	}
	spec, err := a.starter.spec(ctx, r.VMID, conf, set)
	if err != nil {
		return nil, err
	}
	if r.Machine != "" {
		if spec, err = spec.OnMachine(r.Machine); err != nil {
			return nil, err
		}
	}
	spec.Incoming, spec.Paused = true, true
	if err := a.starter.prepareGroup(ctx, r.VMID, conf, set, r.Protected, at); err != nil {
		return nil, err
	}
	p, err := a.starter.startQEMU(ctx, spec)
	if err != nil {
		a.starter.dropGroup(context.WithoutCancel(ctx), r.VMID, r.Protected)
		return nil, err
	}
	a.procs.add(r.VMID, newProc(p, true))
	return a.find(ctx, r.VMID)
}

// protectIncoming puts a guest under the guard that became an HA resource while it moved.
func (a *arrivals) protectIncoming(ctx context.Context, id model.VMID) error {
	f, err := a.files.owner(id)
	if err != nil {
		return err
	}
	if f.err != nil {
		return f.err
	}
	at := a.starter.term()
	set, err := a.starter.storages.read(ctx)
	if err != nil {
		return err
	}
	return a.starter.protect(ctx, id, f.conf, set, at)
}

// readyFor says why a guest must not go on here now.
func (a *arrivals) readyFor(_ context.Context, id model.VMID) error {
	if _, ok := a.starter.lease.Valid(); !ok {
		return model.Errorf(model.ErrUnavailable, "%s holds no valid lease, so guest %s may not run there", a.node, id)
	}
	return nil
}

// ended undoes what prepare has begun.
func (a *arrivals) ended(id model.VMID, owner bool, _ string) {
	if p := a.procs.get(id); owner && p != nil {
		p.incoming.Store(false) // also if its user had paused it before
	}
	a.mu.Lock()
	unlock := a.arriving[id]
	delete(a.arriving, id)
	a.mu.Unlock()
	if unlock != nil {
		unlock()
	}
}

// prepare is the target's answer to a source; the guest's lock is held until the migration ended here.
func (a *arrivals) prepare(ctx context.Context, peer string, r move.PrepareRequest) (move.PrepareAnswer, error) {
	if a.leaving.Load() {
		return move.PrepareAnswer{}, model.Errorf(model.ErrUnavailable, "node %s is leaving the cluster", a.node)
	}
	unlock, err := a.locks.tryLock(r.VMID, "arriving from "+peer)
	if err != nil {
		return move.PrepareAnswer{}, err
	}
	a.mu.Lock()
	a.arriving[r.VMID] = unlock
	a.mu.Unlock()
	answer, err := a.moves.Prepare(ctx, r)
	if err != nil && !a.claims.Busy(r.VMID) {
		a.ended(r.VMID, false, "")
	}
	return answer, err
}

func (a *arrivals) abort(ctx context.Context, _ string, r move.AbortRequest) (struct{}, error) {
	return struct{}{}, a.moves.Abort(ctx, r)
}

// readyPatience is given to a node that has just come back: guests return to it as soon as its record is written, which is
// before it knows itself.
const readyPatience = 5 * time.Second

// awaitReady says why no guest can run here, once that has been so for a while.
func (a *arrivals) awaitReady(ctx context.Context) string {
	if a.starter.host.awaitAccel(ctx) != nil {
		return "it is still looking for an accelerator"
	}
	for end := time.Now().Add(readyPatience); ; sleep(ctx, readyPatience/100) {
		_, leased := a.starter.lease.Valid()
		quorate := a.quorate()
		over := ctx.Err() != nil || time.Now().After(end)
		switch {
		case quorate && leased:
			return ""
		case over && !quorate:
			return "it has no quorum"
		case over:
			return "it holds no valid lease"
		}
	}
}

// check says why this node cannot take a guest.
func (a *arrivals) check(ctx context.Context, _ string, r checkRequest) (struct{}, error) {
	var none struct{}
	refuse := func(format string, args ...any) (struct{}, error) {
		return none, model.Errorf(model.ErrUnavailable, "node %s cannot take guest %s: %s", a.node, r.VMID, fmt.Sprintf(format, args...))
	}
	if why := a.awaitReady(ctx); why != "" {
		return refuse("%s", why)
	}
	if a.procs.get(r.VMID) != nil {
		return refuse("a process of that guest is there")
	}
	conf, err := pveconf.ParseGuest(r.Config)
	if err != nil {
		return none, err
	}
	set, err := a.starter.storages.read(ctx)
	if err != nil {
		return none, err
	}
	spec, err := a.starter.spec(ctx, r.VMID, conf, set)
	if err != nil {
		return refuse("%v", err)
	}
	if !r.Running {
		return none, nil
	}
	_, version, err := a.starter.host.qemu()
	if err == nil {
		err = qemu.SupportsMigration(spec.Accel, version)
	}
	if err != nil {
		return refuse("%v", err)
	}
	if _, err := spec.OnMachine(r.Machine); err != nil {
		return refuse("%v", err)
	}
	_, available, err := memory()
	switch {
	case err != nil:
		return none, err
	case spec.Accel != r.Accel:
		return refuse("the guest runs with %s, and there it would with %s", r.Accel, spec.Accel)
	case spec.CPU != r.CPU:
		return refuse("the guest has the CPU %s, and there it would have %s", r.CPU, spec.CPU)
	case available>>20 < spec.MemoryMiB:
		return refuse("it has %d MiB of memory free and the guest needs %d", available>>20, spec.MemoryMiB)
	}
	return none, nil
}

// resolveInterrupted settles migrations that an earlier agent of this node left.
// It takes the locks of all that are known at the start before it returns,
// so that nothing else touches those guests first, and looks for others as long as ctx lasts:
// an intent of this node as the source whose guest nobody holds was left by somebody dead. A guest whose process could not be adopted is
// held the same way until it is.
func (a *arrivals) resolveInterrupted(ctx context.Context) {
	notes := move.DirNotes{Dir: a.dir}
	for id := range a.procs.list() {
		if _, err := notes.Load(id); err == nil {
			a.settle(ctx, id)
		}
	}
	for _, id := range a.procs.unadoptedIDs() {
		a.settle(ctx, id)
	}
	for id, in := range a.intents() {
		if in.Source == a.node || in.Target == a.node {
			a.settle(ctx, id)
		}
	}
	a.wg.Go(func() {
		for ctx.Err() == nil {
			sleep(ctx, recoverAgain)
			for id, in := range a.intents() {
				if in.Source == a.node {
					a.settle(ctx, id)
				}
			}
		}
	})
}

// settle adopts a guest's process if that is still to be done, and recovers its migration if there is one, in the
// background, unless something has the guest's lock.
func (a *arrivals) settle(ctx context.Context, id model.VMID) {
	unlock, err := a.locks.tryLock(id, "settling an interrupted migration")
	if err != nil {
		return
	}
	a.wg.Go(func() {
		defer unlock()
		for ctx.Err() == nil {
			if a.procs.unadopted(id) != nil && !a.procs.adopt(ctx, id) {
				sleep(ctx, recoverAgain)
				continue
			}
			v, err := move.Recover(ctx, a.targetDeps(), id)
			if err == nil || errors.Is(err, model.ErrNotFound) {
				if err == nil {
					a.log.Info("interrupted migration settled", "vmid", id, "verdict", v)
				}
				if p := a.procs.get(id); p != nil {
					p.incoming.Store(a.procs.neverRan(ctx, id, p.Process))
				}
				return
			}
			a.log.Warn("interrupted migration not settled yet", "vmid", id, "err", err)
			sleep(ctx, recoverAgain)
		}
	})
}

// intents are the migrations under way. One whose record cannot be read is nobody's to settle.
func (a *arrivals) intents() map[model.VMID]ha.Intent {
	all, _ := intentsIn(a.mirror.Snapshot())
	return all
}
