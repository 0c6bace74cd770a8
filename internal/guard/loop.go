package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

// mark is the name of the mark on the cgroup of a protected group: its lease.Group as JSON.
// An earlier guard of this boot tells a later one by it which guests it protected.
const mark = "sauh.guard"

// Run is the guard. It serves until ctx is done and no group is protected: then it
// disarms the watchdog and returns nil. While a group is protected it goes on, however often it is told
// to stop. It returns an error at once if it cannot do its work, such as a watchdog that another process holds.
func Run(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return err
	}
	found, err := scan(cfg)
	if err != nil {
		return err
	}
	calls, epochs := make(chan call), make(chan uint64)
	srv, err := listen(ctx, cfg.Socket, calls)
	if err != nil {
		return err
	}
	defer srv.close()
	l := &loop{
		cfg: cfg, log: cfg.Log, calls: calls, epochs: epochs,
		pills: newPills(epochs, srv.done),
		state: lease.NewGuard(cfg.Params, cfg.Watchdog != NoWatchdog, cfg.now(), found),
	}
	l.dog.init(cfg)
	defer l.dog.end()
	for _, g := range found {
		l.log.Warn("found a protected guest of an earlier guard: it stays frozen until the lease is renewed", "guest", g.Name, "epoch", g.Epoch)
	}
	return l.run(ctx)
}

// scan finds the groups that an earlier guard of this boot protected.
func scan(cfg Config) ([]lease.Group, error) {
	dir := GuestsDir(cfg.CgroupRoot)
	if err := sys.Cgroup(dir).Create(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for guests in %s: %w", dir, err)
	}
	var found []lease.Group
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		value, ok, err := sys.Cgroup(path).Mark(mark)
		if errors.Is(err, fs.ErrNotExist) || (err == nil && !ok) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// A mark that cannot be read counts as one of the oldest epoch.
		g := lease.Group{OnDeadline: lease.FreezeGroup}
		if err := json.Unmarshal(value, &g); err != nil {
			g = lease.Group{OnDeadline: lease.ResetMachine}
		}
		g.Name, g.Cgroup = e.Name(), path
		found = append(found, g)
	}
	return found, nil
}

// loop is the guard's only thread of decisions: everything that it does to
// cgroups and to the watchdog happens here, in order. If any of it hangs, feeding hangs with it.
type loop struct {
	cfg    Config
	log    *slog.Logger
	state  lease.Guard
	calls  <-chan call
	epochs <-chan uint64
	pills  *pills
	dog    dog

	// wake is when the machine wants its next step. Only a step moves it, so that no
	// client, however often it asks, keeps the machine from its work.
	wake       time.Duration
	fences     []fence
	thawFailed []string // reported with the next tick
	stopping   bool
	fatal      error
}

// fence is a Fence request that waits for its groups to die.
type fence struct {
	epoch uint64
	reply chan<- response
}

func (l *loop) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	stop := ctx.Done()
	for {
		select {
		case <-timer.C:
			l.tick()
		case c := <-l.calls:
			l.handle(c)
		case epoch := <-l.epochs:
			_ = l.step(lease.PillRead{Epoch: epoch})
		case <-l.dog.holderEnded:
			l.dog.hold()
		case <-stop:
			stop = nil
			l.stop()
		}
		if l.fatal != nil {
			return l.fatal
		}
		l.answerFences()
		if l.stopping && len(l.state.Groups()) == 0 {
			return l.dog.disarm()
		}
		l.pills.poll(l.state.Pills(), time.Now())
		timer.Reset(l.wake - l.cfg.now())
	}
}

func (l *loop) tick() {
	failed := l.thawFailed
	l.thawFailed = nil
	if len(failed) > 0 {
		_ = l.step(lease.Done{ThawFailed: failed})
		return
	}
	_ = l.step(lease.Tick{})
}

func (l *loop) stop() {
	l.stopping = true
	var names []string
	for _, g := range l.state.Groups() {
		names = append(names, g.Name)
	}
	if len(names) == 0 {
		l.log.Info("stopping: no guest is protected")
		return
	}
	l.log.Error("told to stop and refused: guests are protected. The guard stops when the last of them was stopped or moved; "+
		"if it is killed, the watchdog resets the machine", "guests", strings.Join(names, " "))
}

// step tells the machine ev and does what it says, until there is nothing left to
// be done now. The error is the machine's refusal of ev.
func (l *loop) step(ev lease.GuardEvent) error {
	before := l.state
	next, actions, refused := l.state.Step(l.cfg.now(), ev)
	l.state = next
	for len(actions) > 0 {
		done, progress := l.perform(actions)
		if !progress {
			break
		}
		l.state, actions, _ = l.state.Step(l.cfg.now(), done)
	}
	now := l.cfg.now()
	l.wake = l.state.Next(now)
	l.report(before)
	return refused
}

// perform does the actions in order; progress is false if nothing came of them yet.
func (l *loop) perform(actions []lease.GuardAction) (done lease.Done, progress bool) {
	for _, a := range actions {
		switch a := a.(type) {
		case lease.Freeze:
			if l.freeze(a.Group) {
				done.Frozen = append(done.Frozen, a.Group.Name)
			}
		case lease.Thaw:
			err := sys.Cgroup(a.Group.Cgroup).Thaw()
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				l.log.Error("a guest cannot be thawed", "guest", a.Group.Name, "err", err)
				l.thawFailed = append(l.thawFailed, a.Group.Name)
			}
		case lease.Kill:
			if l.kill(a.Group) {
				done.Dead = append(done.Dead, a.Group.Name)
			}
		case lease.Reset:
			l.log.Error("resetting the machine", "reason", a.Reason)
			if err := l.cfg.Reset(); err != nil {
				l.log.Error("the machine cannot be reset from here; the watchdog, if any, is not fed any more", "err", err)
			}
		case lease.Feed:
			err := l.dog.feed()
			done.Fed = err == nil
			if err != nil && !l.dog.isOpen() && len(l.state.Groups()) == 0 && !l.dog.retry() {
				l.fatal = err
			} else if err != nil {
				l.log.Error("the watchdog is not fed", "err", err)
			}
		}
	}
	return done, done.Fed || len(done.Frozen)+len(done.Dead) > 0
}

// freeze orders a group to freeze and says whether that is confirmed. A cgroup that does not exist runs nothing.
func (l *loop) freeze(g lease.Group) bool {
	c := sys.Cgroup(g.Cgroup)
	if err := c.Freeze(); errors.Is(err, fs.ErrNotExist) {
		return true
	} else if err != nil {
		l.log.Error("a guest cannot be frozen", "guest", g.Name, "err", err)
		return false
	}
	frozen, err := c.Frozen()
	return frozen || errors.Is(err, fs.ErrNotExist)
}

// kill kills a group and says whether it is dead: its processes gone and its cgroup
// removed, so that none can enter any more. It is frozen first, so that one that enters meanwhile does not run.
func (l *loop) kill(g lease.Group) bool {
	c := sys.Cgroup(g.Cgroup)
	_ = c.Freeze()
	if err := c.Kill(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.log.Error("a guest cannot be killed", "guest", g.Name, "err", err)
		return false
	}
	if populated, err := c.Populated(); populated || (err != nil && !errors.Is(err, fs.ErrNotExist)) {
		return false
	}
	return c.Remove() == nil
}

// report logs what changed since before.
func (l *loop) report(before lease.Guard) {
	was := map[string]lease.GroupState{}
	for _, g := range before.Groups() {
		was[g.Name] = g.State
	}
	for _, g := range l.state.Groups() {
		if was[g.Name] != g.State {
			l.log.Info("guest is now "+string(g.State), "guest", g.Name, "epoch", g.Epoch)
		}
		delete(was, g.Name)
	}
	for name, state := range was {
		if state == lease.Killing {
			l.log.Info("guest is dead", "guest", name)
		} else {
			l.log.Info("guest is not protected any more", "guest", name)
		}
	}
}

func (l *loop) answerFences() {
	waiting := l.fences[:0]
	for _, f := range l.fences {
		if l.state.Clean(f.epoch) {
			f.reply <- response{OK: true}
		} else {
			waiting = append(waiting, f)
		}
	}
	l.fences = waiting
}

// handle carries out one request.
func (l *loop) handle(c call) {
	if c.req.NotAfterNS != 0 && int64(l.cfg.now()) > c.req.NotAfterNS {
		c.reply <- refuse(model.Errorf(model.ErrUnavailable, "the request came too late: its caller has given up"))
		return
	}
	var err error
	switch c.req.Op {
	case "renew":
		err = l.step(lease.Renewal{Epoch: c.req.Epoch, Deadline: c.req.deadline()})
	case "protect":
		err = l.protect(*c.req.Group)
	case "unprotect":
		err = l.unprotect(c.req.Name)
	case "fence":
		l.log.Info("told that this node was fenced", "epoch", c.req.Epoch)
		_ = l.step(lease.FenceOrder{Epoch: c.req.Epoch})
		l.fences = append(l.fences, fence{epoch: c.req.Epoch, reply: c.reply})
		return
	case "status":
		s := l.status()
		c.reply <- response{OK: true, Status: &s}
		return
	}
	if err != nil {
		c.reply <- refuse(err)
		return
	}
	c.reply <- response{OK: true}
}

// groupName is what a group, and so the directory of a cgroup, may be called.
var groupName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (l *loop) protect(g lease.Group) error {
	if l.stopping {
		return model.Errorf(model.ErrUnavailable, "guest %s cannot be protected: the guard is stopping", g.Name)
	}
	if !groupName.MatchString(g.Name) {
		return model.Invalidf("name", "%q cannot name a group: use letters, digits, '.', '_' and '-'", g.Name)
	}
	want := filepath.Join(GuestsDir(l.cfg.CgroupRoot), g.Name)
	if g.Cgroup == "" {
		g.Cgroup = want
	}
	if g.Cgroup != want {
		return model.Invalidf("cgroup", "guest %s must be in %s, not in %s", g.Name, want, g.Cgroup)
	}
	ev := lease.ProtectGroup{Group: g}
	if _, _, err := l.state.Step(l.cfg.now(), ev); err != nil { // asked first, done below
		return err
	}
	if err := l.markGroup(g); err != nil {
		return err
	}
	return l.step(ev)
}

// markGroup makes the group's cgroup and leaves the mark for a later guard. The mark
// comes before the protection: a mark too many costs a pause, one too few a guest that nobody freezes.
func (l *loop) markGroup(g lease.Group) error {
	value, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("mark cgroup %s: %w", g.Cgroup, err)
	}
	if err := sys.Cgroup(g.Cgroup).Create(); err != nil {
		return err
	}
	return sys.Cgroup(g.Cgroup).SetMark(mark, value)
}

func (l *loop) unprotect(name string) error {
	if !groupName.MatchString(name) {
		return model.Invalidf("name", "%q cannot name a group", name)
	}
	if err := l.step(lease.UnprotectGroup{Name: name}); err != nil {
		return err
	}
	return sys.Cgroup(filepath.Join(GuestsDir(l.cfg.CgroupRoot), name)).ClearMark(mark)
}

func (l *loop) status() Status {
	s := Status{
		PID: os.Getpid(), Epoch: l.state.Epoch(), Groups: l.state.Groups(),
		Watchdog: l.cfg.Watchdog, Weak: slices.Concat(l.cfg.weak, l.dog.weak()),
		Stopping: l.stopping, Resetting: l.state.Resetting(),
	}
	if _, deadline, ok := l.state.Lease(); ok {
		s.Leased, s.LeftMS = true, (deadline - l.cfg.now()).Milliseconds()
	}
	l.dog.describe(&s)
	return s
}
