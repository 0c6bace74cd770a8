// Package liveness is the shell of core/lease: it renews this node's record, passes
// deadlines on to the guard, and notes when other nodes' renewals arrive.
//
// It decides nothing about guests. Invariants: the record is written only after the guard has answered; what
// counts as a lease is what the guard has confirmed; no question to the guard is asked under a lock or on behalf of
// whoever only wants to know what the guard said last.
//
// Start reading with [Liveness.Run].
package liveness

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/store"
)

// guardDeadline bounds one question to the guard, which answers in microseconds
// unless the machine is in trouble; killing guests may take longer and has killDeadline.
const (
	guardDeadline = 500 * time.Millisecond
	killDeadline  = 5 * time.Second
)

// Guard is this node's guard; [guard.Client] is one, and its methods say what they do.
type Guard interface {
	Renew(ctx context.Context, epoch uint64, deadline time.Duration) error
	Protect(ctx context.Context, g lease.Group) error
	Unprotect(ctx context.Context, name string) error
	Fence(ctx context.Context, epoch uint64) error
	Status(ctx context.Context) (guard.Status, error)
}

// Config is what a Liveness needs. All fields must be set.
type Config struct {
	Node   string // whose record is renewed
	BootID string
	Params lease.Params
	Store  store.Store
	Guard  Guard
	// Clock is CLOCK_BOOTTIME, the guard's clock.
	Clock func() time.Duration
	// FirstEpoch is the least epoch for a record that does not exist: above those of an earlier membership of this
	// name, whose traces may lie on storages.
	FirstEpoch func() uint64
	// Changed is told that the lease began or ended, or that the guard has other groups. It must not block.
	Changed func()
	Log     *slog.Logger
}

// Liveness is safe for concurrent use.
type Liveness struct {
	Config
	gate   sync.Mutex // held while the record is written; Pause holds it longer
	paused bool       // guarded by gate

	wake chan struct{} // has an element after somebody wants something of Run

	mu       sync.Mutex
	observer *lease.Observer          // guarded by mu, as all below
	renewals map[string]time.Duration // when each node's last own write arrived
	left     chan struct{}            // closed when the node has left; nil while nobody wants that
	epoch    uint64                   // of the last renewal
	deadline time.Duration
	last     guard.Status    // the guard's last answer,
	lastAt   time.Duration   // when it came,
	lastErr  error           // and why none came since
	groups   map[string]bool // whom the guard has, as last confirmed; false for one that it kills
	changes  int             // begun and ended changes of the groups; an answer that crossed one says nothing of them
	changing int             // changes under way
}

// New makes a Liveness that does nothing yet.
func New(c Config) *Liveness {
	return &Liveness{
		Config: c, wake: make(chan struct{}, 1), observer: lease.NewObserver(c.Params, c.Node), renewals: map[string]time.Duration{},
		groups: map[string]bool{}, lastErr: errors.New("the guard was not asked yet"),
	}
}

// Observe takes in the liveness records of a batch from the store's watch.
func (l *Liveness) Observe(events []store.Event) {
	now := l.Clock()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		node, ok := strings.CutPrefix(e.Key, model.LivePrefix)
		if !ok {
			continue
		}
		var live model.Live
		if e.Deleted || json.Unmarshal(e.Value, &live) != nil {
			l.observer.Forget(node)
			delete(l.renewals, node)
			continue
		}
		l.observer.Note(node, live, e.ModRevision, now)
		if !live.Fenced { // a cut is written by others
			l.renewals[node] = now
		}
	}
}

// Online says whether node is a living member as far as this node heard.
func (l *Liveness) Online(node string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.observer.Online(node, l.Clock())
}

// Verdict says whether node's guests may be taken over, and how long it has been silent.
func (l *Liveness) Verdict(node string) (lease.Verdict, time.Duration) {
	now := l.Clock()
	l.mu.Lock()
	defer l.mu.Unlock()
	silence, _ := l.observer.Silence(node, now)
	return l.observer.MayTake(node, now), silence
}

// Renewed is when, on Clock, the last renewal of node arrived here; ok is false for a node that was never heard of.
func (l *Liveness) Renewed(node string) (at time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok = l.renewals[node]
	return at, ok
}

// Valid reports whether this node's lease is not over, and its epoch.
func (l *Liveness) Valid() (epoch uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch, l.validLocked()
}

func (l *Liveness) validLocked() bool { return l.deadline-l.Params.FreezeMargin > l.Clock() }

// Pause keeps the record from being written until Resume; it waits for a write that is under way.
func (l *Liveness) Pause() {
	l.gate.Lock()
	defer l.gate.Unlock()
	l.paused = true
}

// Resume ends a Pause.
func (l *Liveness) Resume() {
	l.gate.Lock()
	defer l.gate.Unlock()
	l.paused = false
}

// Leave has Run write that this node left in good order, and returns when that is committed. No guest may run here, and none
// can start from now on: the lease is over at once. Return ends it. The error is that of ctx.
func (l *Liveness) Leave(ctx context.Context) error {
	l.mu.Lock()
	if l.left == nil {
		l.left = make(chan struct{})
	}
	left := l.left
	l.deadline = 0
	l.mu.Unlock()
	l.poke()
	select {
	case <-left:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Return makes a node that left, or was about to, a living member again.
func (l *Liveness) Return() {
	l.mu.Lock()
	l.left = nil
	l.mu.Unlock()
	l.poke()
}

func (l *Liveness) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// leaving is closed when the node has left, nil if it is to stay.
func (l *Liveness) leaving() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left
}

// Run keeps the record alive until ctx is done. Then the record stands as it is, and the others wait for the lease to
// end: an agent that ends is no node that left.
func (l *Liveness) Run(ctx context.Context) {
	first := l.firstEpoch(ctx)
	for ctx.Err() == nil {
		l.live(ctx, lease.NewRenewer(l.Params, lease.Identity{BootID: l.BootID, Online: time.Now().Unix(), MinEpoch: first}))
	}
}

// live keeps the record alive until the node has left and is to return, or ctx is done.
func (l *Liveness) live(ctx context.Context, r lease.Renewer) {
	var ev lease.Event = lease.Tick{}
	var leaving chan struct{} // what r was told of
	for ctx.Err() == nil {
		wanted := l.leaving()
		if _, tick := ev.(lease.Tick); tick && wanted != nil && leaving == nil {
			leaving, ev = wanted, lease.Leave{}
		}
		var actions []lease.Action
		r, actions = r.Step(l.Clock(), ev)
		ev = lease.Tick{}
		for _, a := range actions {
			if answer := l.do(ctx, a); answer != nil {
				ev = answer
			}
		}
		if leaving != nil && wanted != leaving {
			return // it is to stay after all; another Renewer registers
		}
		if _, tick := ev.(lease.Tick); !tick {
			continue
		}
		at, ok := r.Wake()
		if !ok && leaving != nil {
			if rec, known := r.Live(); known && rec.Left {
				l.Log.Info("this node left in order")
				close(leaving)
				l.awaitReturn(ctx, leaving)
				return
			}
		}
		if !ok {
			l.Log.Warn("liveness ended: this node is no member any more")
			<-ctx.Done()
			return
		}
		l.rest(ctx, at-l.Clock())
	}
}

func (l *Liveness) awaitReturn(ctx context.Context, left chan struct{}) {
	for ctx.Err() == nil && l.leaving() == left {
		select {
		case <-l.wake:
		case <-ctx.Done():
		}
	}
}

// rest sleeps until something is wanted of Run.
func (l *Liveness) rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-l.wake:
	case <-t.C:
	}
}

// do carries out one action and returns its outcome, nil if it has none.
func (l *Liveness) do(ctx context.Context, a lease.Action) lease.Event {
	switch a := a.(type) {
	case lease.Read:
		return l.read(ctx)
	case lease.Renew:
		return l.writeGuarded(ctx, a.Live, a.IfRevision)
	case lease.Register:
		l.Log.Info("registering", "epoch", a.Live.Epoch, "boot", a.Live.BootID)
		return l.writeGuarded(ctx, a.Live, a.IfRevision)
	case lease.Extend:
		l.extend(ctx, a)
	case lease.Fenced:
		l.Log.Warn("this node was fenced: its protected guests are killed", "epoch", a.Epoch)
		l.killBefore(ctx, a.Epoch)
		return lease.FencedHandled(a)
	case lease.Removed:
		l.Log.Warn("this node's record is gone: its protected guests are killed")
		l.killBefore(ctx, a.Epoch)
	}
	return nil
}

func (l *Liveness) read(ctx context.Context) lease.Event {
	kv, err := l.Store.Get(ctx, model.LivePrefix+l.Node, store.Linearizable)
	if errors.Is(err, store.ErrNotFound) {
		return lease.ReadMissing{}
	}
	var live model.Live
	if err != nil || json.Unmarshal(kv.Value, &live) != nil {
		return lease.Unknown{}
	}
	return lease.ReadBack{Live: live, Revision: kv.ModRevision}
}

// writeGuarded writes the record if the guard answers. A node without its guard
// could not keep the promise that the record makes, so it must count as dead.
func (l *Liveness) writeGuarded(ctx context.Context, live model.Live, rev int64) lease.Event {
	if err := l.Refresh(ctx); err != nil {
		l.Log.Warn("the guard does not answer, so this node does not count as alive", "err", err)
		sleep(ctx, l.Params.Renew)
		return lease.Unknown{}
	}
	return l.write(ctx, live, rev)
}

func (l *Liveness) write(ctx context.Context, live model.Live, rev int64) lease.Event {
	l.gate.Lock()
	defer l.gate.Unlock()
	if l.paused {
		sleep(ctx, l.Params.Renew/4)
		return lease.Unknown{}
	}
	value, err := json.Marshal(live)
	if err != nil {
		return lease.Unknown{}
	}
	key := model.LivePrefix + l.Node
	got, err := l.Store.Txn(ctx, store.Txn{If: []store.Cond{{Key: key, Revision: rev}}, Then: []store.Op{store.Put(key, value)}})
	switch {
	case err == nil:
		return lease.Committed{Revision: got}
	case errors.Is(err, store.ErrConflict):
		return lease.Conflict{}
	}
	return lease.Unknown{}
}

// extend tells the guard the new deadline. Only what the guard has confirmed counts as a lease.
func (l *Liveness) extend(ctx context.Context, a lease.Extend) {
	cctx, cancel := context.WithTimeout(ctx, guardDeadline)
	err := l.Guard.Renew(cctx, a.Epoch, a.Deadline)
	cancel()
	if err != nil {
		l.Log.Warn("the guard did not take the lease: protected guests cannot start here", "err", err)
		return
	}
	l.mu.Lock()
	was := l.validLocked()
	if l.epoch = a.Epoch; l.left == nil {
		l.deadline = a.Deadline
	}
	is := l.validLocked()
	l.mu.Unlock()
	if is && !was {
		l.Changed()
	}
}

// killBefore returns when the guard has confirmed that no protected guest of an earlier epoch lives.
func (l *Liveness) killBefore(ctx context.Context, epoch uint64) {
	l.mu.Lock()
	l.deadline = 0
	l.mu.Unlock()
	l.Changed()
	for ctx.Err() == nil {
		err := l.change(ctx, killDeadline, func(ctx context.Context) error { return l.Guard.Fence(ctx, epoch) }, func() {})
		if err == nil {
			_ = l.Refresh(ctx) // the next renewal asks again
			return
		}
		l.Log.Error("the guard has not killed the protected guests yet", "err", err)
		sleep(ctx, 200*time.Millisecond)
	}
}

// KillAll ends every protected guest of a node that is no member any more: others may have taken them over.
func (l *Liveness) KillAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*killDeadline)
	defer cancel()
	if err := l.Refresh(ctx); err != nil {
		l.Log.Error("the guard does not answer: it freezes what is left at the end of the lease", "err", err)
		return
	}
	s, _ := l.Status()
	l.killBefore(ctx, s.Epoch+1)
}

// firstEpoch is the epoch for a record that does not exist: above that of every group that the guard
// still has, and at least Config.FirstEpoch. It waits for the guard.
func (l *Liveness) firstEpoch(ctx context.Context) uint64 {
	for ctx.Err() == nil {
		err := l.Refresh(ctx)
		if err == nil {
			s, _ := l.Status()
			return max(s.Epoch+1, l.FirstEpoch())
		}
		l.Log.Warn("the guard does not answer, so this node does not count as alive", "err", err)
		sleep(ctx, l.Params.Renew)
	}
	return 0
}

// Refresh asks the guard what it knows, for Status and Guarded. Run does so with each renewal.
func (l *Liveness) Refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, guardDeadline)
	defer cancel()
	l.mu.Lock()
	before := l.changes
	l.mu.Unlock()
	s, err := l.Guard.Status(ctx)
	changed := false
	l.mu.Lock()
	l.lastErr = err
	if err == nil {
		l.last, l.lastAt = s, l.Clock()
		if l.changes == before && l.changing == 0 {
			groups := map[string]bool{}
			for _, g := range s.Groups {
				groups[g.Name] = g.State != lease.Killing
			}
			changed = !maps.Equal(groups, l.groups)
			l.groups = groups
		}
	}
	l.mu.Unlock()
	if changed {
		l.Changed()
	}
	return err
}

// Status is the guard's last answer, or why it gave none. It does not ask.
func (l *Liveness) Status() (guard.Status, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.last
	if s.Leased {
		s.LeftMS -= (l.Clock() - l.lastAt).Milliseconds()
	}
	return s, l.lastErr
}

// Guarded lists the groups that the guard has in its care, as it confirmed last; false is one that it is killing. It does not ask.
func (l *Liveness) Guarded() map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.groups)
}

// Protect has the guard take a group; see [guard.Client.Protect].
func (l *Liveness) Protect(ctx context.Context, g lease.Group) error {
	return l.change(ctx, guardDeadline, func(ctx context.Context) error { return l.Guard.Protect(ctx, g) }, func() { l.groups[g.Name] = true })
}

// Unprotect has the guard let go of a group; see [guard.Client.Unprotect].
func (l *Liveness) Unprotect(ctx context.Context, name string) error {
	return l.change(ctx, guardDeadline, func(ctx context.Context) error { return l.Guard.Unprotect(ctx, name) }, func() { delete(l.groups, name) })
}

// change asks the guard to change its groups, and notes what it confirmed.
func (l *Liveness) change(ctx context.Context, limit time.Duration, ask func(context.Context) error, note func()) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	l.mu.Lock()
	l.changes++
	l.changing++
	l.mu.Unlock()
	err := ask(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changes++
	l.changing--
	if err == nil {
		note()
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
