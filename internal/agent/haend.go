package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
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
	ctx     context.Context // the membership's: whatever is under way ends with it
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
	// goesDown says whether the machine is on its way down. When it has not been for patience, the node serves again.
	goesDown func(ctx context.Context) bool
	patience time.Duration
	// stop ends a guest's process.
	stop func(ctx context.Context, id model.VMID, p *proc, logf func(string, ...any)) error

	// noteFile is where an end that is under way is written down, for the next agent.
	noteFile string

	mu   sync.Mutex
	upid string         // the task that ends the node, or has ended it; "" for none. guarded by mu
	todo endNote        // what that has still to do, as it is in noteFile; guarded by mu
	wg   sync.WaitGroup // the tasks too
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
	// standPatience is how long a machine whose node has ended may do nothing: whoever drained it has begun to bring it down by then.
	standPatience = 5 * time.Minute
	// standChecks is how often it is looked meanwhile.
	standChecks = 20
)

// EndNode ends this node in order, and then the machine. It returns when that has begun.
func (e *ending) EndNode(ctx context.Context, reboot bool) error {
	_, err := e.begin(endNote{Ends: endOf(reboot), Machine: true})
	return err
}

// DrainNode ends this node in order and returns when the machine may go down, which the caller sees to. A second call waits for
// what the first has begun.
func (e *ending) DrainNode(ctx context.Context, reboot bool) error {
	upid, err := e.begin(endNote{Ends: endOf(reboot)})
	if err != nil {
		return err
	}
	return e.tasks.Wait(ctx, upid)
}

func endOf(reboot bool) ha.NodeEnd {
	if reboot {
		return ha.EndsReboot
	}
	return ha.EndsShutdown
}

// finish brings the machine down when the node is through with its end. If the end was taken back the task has seen to that.
func (e *ending) finish(upid string, reboot bool) {
	if err := e.tasks.Wait(e.ctx, upid); err != nil {
		e.log.Info("the machine stays up: its node did not end", "reboot", reboot, "err", err)
		return
	}
	err := e.power(e.ctx, reboot)
	switch {
	case err == nil:
		e.told(upid)
	case e.ctx.Err() == nil:
		e.log.Error("the machine does not go down: its node serves again", "reboot", reboot, "err", err)
		e.serveAgain(upid)
	}
}

// begin starts the task, or finds the one that was started, and has the machine go down after it if n says so.
func (e *ending) begin(n endNote) (string, error) {
	n.BootID = e.boot
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.upid == "" {
		if err := e.beginTask(n); err != nil {
			return "", err
		}
	} else if n.Machine {
		e.keep(n)
	}
	if upid := e.upid; n.Machine {
		e.wg.Go(func() { e.finish(upid, n.Ends == ha.EndsReboot) })
	}
	return e.upid, nil
}

// beginTask starts the task; e.mu is held.
func (e *ending) beginTask(n endNote) error {
	typ := "nodeshutdown"
	if n.Ends == ha.EndsReboot {
		typ = "nodereboot"
	}
	e.keep(n)
	e.wg.Add(1)
	upid, err := e.tasks.Start(typ, e.node, func(ctx context.Context, t *task.Task) error {
		defer e.wg.Done()
		if n.Again {
			t.Logf("the agent was started anew while this node ended: the end goes on")
		}
		return e.run(ctx, n.Ends, t)
	})
	if err != nil {
		e.wg.Done()
		e.strike()
		return err
	}
	e.upid = upid
	return nil
}

// run is the task. It ends with the membership as it does with the agent: nobody's worker says any more when the node may go.
func (e *ending) run(ctx context.Context, end ha.NodeEnd, t *task.Task) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.ctx, func() { cancel(move.ErrAbandoned) })()
	err := e.drain(ctx, end, t)
	switch {
	case err == nil:
		e.drained(t.UPID())
		e.wg.Go(func() { e.stand(t.UPID()) })
	case errors.Is(context.Cause(ctx), move.ErrAbandoned):
		return move.ErrAbandoned // the agent ends, and perhaps the machine with it
	default:
		e.serveAgain(t.UPID()) // a person cancelled it
	}
	return err
}

// stand has a node that ended serve again when its machine stays up.
func (e *ending) stand(upid string) {
	for idle := 0; idle < standChecks; idle++ {
		sleep(e.ctx, e.patience/standChecks)
		if e.ctx.Err() != nil || !e.isEnd(upid) {
			return
		}
		if e.goesDown(e.ctx) {
			idle = 0
		}
	}
	e.log.Error("the machine did not go down: its node serves again", "after", e.patience)
	e.serveAgain(upid)
}

// isEnd: that task is what ended the node, and was not taken back.
func (e *ending) isEnd(upid string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.upid == upid
}

// drain is the orderly end.
func (e *ending) drain(ctx context.Context, end ha.NodeEnd, t *task.Task) error {
	e.log.Info("this node ends in order", "end", end)
	e.closing(true)
	rev, lonely := e.announce(ctx, end, t)
	ordinary := make(chan error, 1)
	e.wg.Go(func() { ordinary <- e.stopAll(ctx, t, e.ordinary) })
	err := e.awaitWorker(ctx, rev, lonely, t)
	if err := errors.Join(err, <-ordinary); err != nil {
		return err
	}
	e.starter.closed.Store(true)
	if err := e.stopAll(ctx, t, everyGuest); err != nil {
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

// ordinary says which guests are not HA's to stop: none while nobody knows, because the configuration cannot be read.
func (e *ending) ordinary() func(model.VMID) bool {
	managed, err := e.worker.resources()
	return func(id model.VMID) bool { return err == nil && !managed(id) }
}

func everyGuest() func(model.VMID) bool { return func(model.VMID) bool { return true } }

// stopAll ends the guests of this node that which names: at the same time, each by a shutdown and, when that takes too long, hard.
// which is asked again at each look.
func (e *ending) stopAll(ctx context.Context, t *task.Task, which func() func(model.VMID) bool) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	begun := map[model.VMID]bool{}
	for ctx.Err() == nil {
		left, concerned := 0, which()
		for id, p := range e.procs.list() {
			if !concerned(id) {
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
		if left == 0 && !e.starting(concerned) {
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

// serveAgain takes the end by that task back, once: the node's record lives, guests may come, and the word is deleted. An end that begins
// meanwhile is another one.
func (e *ending) serveAgain(upid string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.upid != upid {
		return
	}
	e.upid = ""
	e.strike()
	e.starter.closed.Store(false)
	e.closing(false)
	e.live.Return()
	e.wg.Go(e.forget)
}

// forget deletes what an earlier life, or an end that was taken back, said of how this node ends, as soon as the node is registered again:
// a node that left, and of which nothing says why, is one whose guests are taken. It tries until it can. The word of an end that
// has begun meanwhile stays.
func (e *ending) forget() {
	key := model.HANodePrefix + e.node
	for e.ctx.Err() == nil {
		if !e.registered() {
			if !e.isEnd("") {
				return
			}
			sleep(e.ctx, endPace)
			continue
		}
		rec, err := mirror.Read[ha.NodeMode](e.ctx, e.st, key)
		// Whoever has written since then was seen by this look before it wrote, and whoever writes after it changes the revision.
		if err == nil && (rec.Revision == 0 || !e.isEnd("")) {
			return
		}
		if err == nil {
			_, err = e.st.Txn(e.ctx, store.Txn{If: []store.Cond{{Key: key, Revision: rec.Revision}}, Then: []store.Op{store.Delete(key)}})
		}
		if err == nil {
			return
		}
		sleep(e.ctx, endRetry)
	}
}

// registered says whether the node's record is of this boot, and not the one with which it left.
func (e *ending) registered() bool {
	live, err := mirror.Read[model.Live](e.ctx, e.st, model.LivePrefix+e.node)
	return err == nil && live.Value.BootID == e.boot && !live.Value.Left && !live.Value.Fenced
}

// wait returns when nothing of it runs any more; everything ends with the membership's context.
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

// machineGoesDown says whether systemd is bringing the machine down, in the words by which the unit sauh-drain tells. Where that cannot be
// asked, rather yes: a node that serves while its machine goes down is lost like one that crashed.
func machineGoesDown(ctx context.Context) bool {
	if _, err := os.Stat("/run/systemd/system"); errors.Is(err, fs.ErrNotExist) {
		return false // it would have gone at once
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	jobs, err := sys.Output(ctx, "systemctl", "list-jobs", "--no-legend", "--plain")
	return err != nil || goingDown(string(jobs))
}

// goingDown: systemd's jobs end the machine.
func goingDown(jobs string) bool {
	return slices.ContainsFunc([]string{"reboot.target", "kexec.target", "poweroff.target", "halt.target"}, func(t string) bool { return strings.Contains(jobs, t) })
}
