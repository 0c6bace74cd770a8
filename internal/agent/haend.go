package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/agent/move"
	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

// ending is this node's orderly end: it says so in the store before anything stops, its guests leave or stop by the policy
// of datacenter.cfg, and then the node leaves, so that nobody need wait for its lease. An end of the agent alone is none: guests run on.
type ending struct {
	node    string
	boot    string // boot id
	log     *slog.Logger
	st      store.Store
	worker  *haWorker
	procs   *procs
	locks   *guestLocks
	tasks   *task.List
	starter *starter
	live    leaver
	// closing is told that nothing may come here from now on, or that it may again.
	closing func(bool)
	// kick has the worker look.
	kick func()
	// power brings the machine down.
	power func(ctx context.Context, reboot bool) error
	// stop ends a guest's process.
	stop func(ctx context.Context, id model.VMID, p *proc, logf func(string, ...any)) error

	mu   sync.Mutex
	upid string // the task that ends the node, or has ended it; "" for none. guarded by mu
	wg   sync.WaitGroup
}

// leaver has this node's liveness record say that it left in order; *liveness.Liveness is one.
type leaver interface {
	Leave(ctx context.Context) error
	Return()
}

const (
	// endPace is how often it is looked whether the guests are gone.
	endPace = 100 * time.Millisecond
	// endRetry is the pace of writing the first word while there is no quorum.
	endRetry = time.Second
	// leaveLimit bounds the last word: without it the others wait for the lease.
	leaveLimit = 10 * time.Second
)

// EndNode ends this node in order, and then the machine. It returns when that has begun.
func (e *ending) EndNode(ctx context.Context, reboot bool) error {
	upid, err := e.begin(reboot)
	if err != nil {
		return err
	}
	e.wg.Go(func() { e.finish(context.WithoutCancel(ctx), upid, reboot) })
	return nil
}

// DrainNode ends this node in order and returns when the machine may go down, which the caller sees to. A second call waits for
// what the first has begun.
func (e *ending) DrainNode(ctx context.Context, reboot bool) error {
	upid, err := e.begin(reboot)
	if err != nil {
		return err
	}
	return e.tasks.Wait(ctx, upid)
}

// finish brings the machine down when the node is through with its end.
func (e *ending) finish(ctx context.Context, upid string, reboot bool) {
	err := e.tasks.Wait(ctx, upid)
	if err == nil {
		err = e.power(ctx, reboot)
	}
	if err != nil && !errors.Is(err, move.ErrAbandoned) {
		e.log.Error("the node does not go down", "reboot", reboot, "err", err)
		e.serveAgain(ctx)
	}
}

// begin starts the task, or finds the one that was started.
func (e *ending) begin(reboot bool) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.upid != "" {
		return e.upid, nil
	}
	end, typ := ha.EndsShutdown, "nodeshutdown"
	if reboot {
		end, typ = ha.EndsReboot, "nodereboot"
	}
	upid, err := e.tasks.Start(typ, e.node, func(ctx context.Context, t *task.Task) error {
		err := e.drain(ctx, end, t)
		switch {
		case err == nil:
		case errors.Is(context.Cause(ctx), move.ErrAbandoned):
			return move.ErrAbandoned // the agent ends, and perhaps the machine with it
		default:
			e.serveAgain(context.WithoutCancel(ctx)) // a person cancelled it
		}
		return err
	})
	if err == nil {
		e.upid = upid
	}
	return upid, err
}

// drain is the orderly end.
func (e *ending) drain(ctx context.Context, end ha.NodeEnd, t *task.Task) error {
	e.log.Info("this node ends in order", "end", end)
	e.closing(true)
	rev, lonely := e.announce(ctx, end, t)
	ordinary := make(chan error, 1)
	e.wg.Go(func() { ordinary <- e.stopAll(ctx, t, e.isOrdinary) })
	err := e.awaitWorker(ctx, rev, lonely, t)
	if err := errors.Join(err, <-ordinary); err != nil {
		return err
	}
	e.starter.closed.Store(true)
	if err := e.stopAll(ctx, t, func(model.VMID) bool { return true }); err != nil {
		return err
	}
	if lonely {
		t.Logf("there is no quorum: the other nodes wait for the lease of this one")
		return nil
	}
	leave, cancel := context.WithTimeout(ctx, leaveLimit)
	defer cancel()
	if err := e.live.Leave(leave); err != nil && ctx.Err() == nil {
		t.Logf("the cluster was not told that no guest runs here any more (%v): it waits for the lease", err)
		return nil
	} else if err != nil {
		return err
	}
	t.Logf("no guest runs here, and the cluster knows")
	return nil
}

// announce writes how the node ends, and returns the revision. It is lonely if the lease ended before it could.
func (e *ending) announce(ctx context.Context, end ha.NodeEnd, t *task.Task) (rev int64, lonely bool) {
	key := model.HANodePrefix + e.node
	for ctx.Err() == nil {
		rec, err := e.st.Get(ctx, key, store.Linearizable)
		if err == nil || errors.Is(err, store.ErrNotFound) {
			rev, err = e.st.Txn(ctx, store.Txn{
				If:   []store.Cond{{Key: key, Revision: rec.ModRevision}},
				Then: []store.Op{store.Put(key, mustJSON(ha.NodeMode{Ends: end, BootID: e.boot}))},
			})
		}
		if err == nil {
			t.Logf("%s: the cluster knows", end)
			return rev, false
		}
		if e.worker.mayLeave().lonely {
			return 0, true
		}
		t.Logf("the cluster cannot be told yet: %v", err)
		e.kick()
		sleep(ctx, endRetry)
	}
	return 0, false
}

// awaitWorker returns when HA has nothing left to do here, by a view of rev or later.
func (e *ending) awaitWorker(ctx context.Context, rev int64, lonely bool, t *task.Task) error {
	last := ""
	for ctx.Err() == nil {
		l := e.worker.mayLeave()
		if l.may && (l.revision >= rev || l.lonely || lonely) {
			return nil // without a quorum no view of rev need ever come
		}
		if l.why != last && l.why != "" {
			t.Logf("waiting: %s", l.why)
			last = l.why
		}
		e.kick()
		sleep(ctx, endPace)
	}
	return ctx.Err()
}

// isOrdinary: the guest is not HA's to stop.
func (e *ending) isOrdinary(id model.VMID) bool {
	_, managed := e.worker.view().Resources[id]
	return !managed
}

// stopAll ends the guests of this node that which names: at the same time, each by a shutdown and, when that takes too long, hard.
func (e *ending) stopAll(ctx context.Context, t *task.Task, which func(model.VMID) bool) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	begun := map[model.VMID]bool{}
	for ctx.Err() == nil {
		left := 0
		for id, p := range e.procs.list() {
			if !which(id) {
				continue
			}
			left++
			if begun[id] {
				continue
			}
			unlock, err := e.locks.tryLock(id, "the node ends")
			if err != nil {
				continue // what is being done with it comes first
			}
			begun[id] = true
			t.Logf("stopping guest %s", id)
			wg.Go(func() {
				defer unlock()
				if err := e.stop(ctx, id, p, t.Logf); err != nil {
					t.Logf("guest %s: %v", id, err)
				}
			})
		}
		if left == 0 && !e.starting(which) {
			return nil
		}
		sleep(ctx, endPace)
	}
	return ctx.Err()
}

// stopGuest ends a guest by a shutdown and, when that takes too long, hard.
func stopGuest(ctx context.Context, id model.VMID, p *proc, logf func(string, ...any)) error {
	if err := p.stop(ctx, ha.Stop{VMID: id}, logf); err != nil {
		return err
	}
	return p.waitCleaned(ctx)
}

// starting: something holds the lock of such a guest, and may be about to make a process.
func (e *ending) starting(which func(model.VMID) bool) bool {
	for id := range e.locks.holders() {
		if which(id) {
			return true
		}
	}
	return false
}

// serveAgain takes an end back: the machine did not go down.
func (e *ending) serveAgain(ctx context.Context) {
	e.mu.Lock()
	e.upid = ""
	e.mu.Unlock()
	e.starter.closed.Store(false)
	e.closing(false)
	e.live.Return()
	ctx, cancel := context.WithTimeout(ctx, leaveLimit)
	defer cancel()
	e.forget(ctx)
}

// forget deletes what an earlier life, or an end that was taken back, said of how this node ends.
func (e *ending) forget(ctx context.Context) {
	key := model.HANodePrefix + e.node
	for ctx.Err() == nil {
		rec, err := mirror.Read[ha.NodeMode](ctx, e.st, key)
		if err == nil && rec.Revision == 0 {
			return
		}
		if err == nil {
			_, err = e.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: key, Revision: rec.Revision}}, Then: []store.Op{store.Delete(key)}})
		}
		if err == nil {
			return
		}
		sleep(ctx, endRetry)
	}
}

// wait returns when nothing of it runs any more; those that wait for a task end when the list of tasks is stopped.
func (e *ending) wait() { e.wg.Wait() }

// endMachine has systemd bring the machine down, or does it itself where there is none.
func endMachine(ctx context.Context, reboot bool) error {
	verb := "poweroff"
	if reboot {
		verb = "reboot"
	}
	if _, err := os.Stat("/run/systemd/system"); errors.Is(err, fs.ErrNotExist) {
		return sys.EndMachine(reboot)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := sys.Output(ctx, "systemctl", verb); err != nil {
		return fmt.Errorf("systemctl %s: %w", verb, err)
	}
	return nil
}
