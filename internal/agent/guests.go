package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

// guests is all that can be done with guests; it implements api.Guests.
type guests struct {
	*inventory
	*operations
	*departures
}

// operations are what a person asks of this node's guests. Each takes the guest's lock, most as a task.
type operations struct {
	node      string
	paths     Paths
	boot      string // boot id
	log       *slog.Logger
	st        store.Store
	quorate   func() bool
	files     guestFiles
	resources *resources
	procs     *procs
	tasks     guestTasks
	starter   *starter
	creation  *creation
	// awaits says whether a guest starts by HA's word alone.
	awaits func(model.VMID) bool
}

// SetConfig implements api.Guests.
func (o *operations) SetConfig(ctx context.Context, id model.VMID, set map[string]string, del []string, digest string) error {
	if _, err := o.files.own(id); err != nil {
		return err
	}
	unlock, err := o.tasks.locks.tryLock(id, "changing its configuration")
	if err != nil {
		return err
	}
	defer unlock()
	return editFile(ctx, o.st, "change guest "+id.String(), model.GuestConfigKey(o.node, id), func(old []byte) ([]byte, error) {
		if digest != "" && digest != pveconf.Digest(old) {
			return nil, model.Errorf(model.ErrConflict, "detected modified configuration - file changed by other user? Try again.")
		}
		if len(old) == 0 {
			return nil, noGuest(id)
		}
		conf, err := pveconf.ParseGuest(old)
		if err != nil {
			return nil, err
		}
		next, err := editConfig(conf, set, del)
		if err == nil {
			err = refuseValues(ctx, conf, set)
		}
		return next, err
	})
}

// Start implements api.Guests.
func (o *operations) Start(ctx context.Context, id model.VMID) (string, error) {
	if err := o.refuse(id); err != nil {
		return "", err
	}
	if p := o.procs.get(id); p != nil {
		return "", model.Errorf(model.ErrBusy, "VM %s already running", id)
	}
	if err := o.resources.notFrozen(o.node, id); err != nil {
		return "", err
	}
	return o.tasks.start("qmstart", id, "start", func(ctx context.Context, t *task.Task) error {
		if err := o.requestState(ctx, id, pveconf.HAStopped, pveconf.HAStarted); err != nil {
			return err
		}
		if !o.awaits(id) {
			return o.starter.start(ctx, startRequest{id: id, log: t.Logf})
		}
		t.Logf("rules or a limit may speak against it, or for another node: HA starts it, and 'sauh ha explain %s' says how far that is", id.SID())
		return nil
	})
}

// refuse says why nothing that needs a quorum can be done with a guest here.
func (o *operations) refuse(id model.VMID) error {
	if _, err := o.files.readable(id); err != nil {
		return err
	}
	if !o.quorate() {
		return writeError("guest "+id.String(), store.ErrNoQuorum)
	}
	return nil
}

// guestTasks are tasks that hold the lock of the guest they work on.
type guestTasks struct {
	locks *guestLocks
	list  *task.List
}

// start runs f as a task that holds the guest's lock.
func (g guestTasks) start(typ string, id model.VMID, what string, f func(context.Context, *task.Task) error) (string, error) {
	unlock, err := g.locks.tryLock(id, what)
	if err != nil {
		return "", err
	}
	upid, err := g.list.Start(typ, id.String(), func(ctx context.Context, t *task.Task) error {
		defer unlock()
		return f(ctx, t)
	})
	if err != nil {
		unlock()
	}
	return upid, err
}

// requestState changes what is asked of an HA resource, if it is from at present.
func (o *operations) requestState(ctx context.Context, id model.VMID, from, to pveconf.HAState) error {
	if o.resources.states()[id] != from {
		return nil
	}
	return o.resources.edit(ctx, "ask that vm:"+id.String()+" be "+string(to), func(all []pveconf.HAResource) ([]pveconf.HAResource, error) {
		if i := findResource(all, id); i >= 0 && all[i].State == from {
			all[i].State = to
		}
		return all, nil
	})
}

// Stop implements api.Guests.
func (o *operations) Stop(ctx context.Context, id model.VMID) (string, error) {
	return o.end(ctx, "qmstop", id, func(ctx context.Context, p *proc, _ *task.Task) error { return p.endNow(ctx) })
}

// Shutdown implements api.Guests.
func (o *operations) Shutdown(ctx context.Context, id model.VMID, timeout time.Duration, force bool) (string, error) {
	return o.end(ctx, "qmshutdown", id, func(ctx context.Context, p *proc, t *task.Task) error {
		err := p.shutdown(ctx, timeout)
		if err != nil && force && ctx.Err() == nil {
			t.Logf("%v: stopping it", err)
			return p.endNow(ctx)
		}
		return err
	})
}

// end runs f on a guest that is running; an HA resource is asked to stay stopped first.
// Ending a guest changes nothing in the store, so an unprotected one can be ended without a quorum.
func (o *operations) end(_ context.Context, typ string, id model.VMID, f func(context.Context, *proc, *task.Task) error) (string, error) {
	if _, err := o.files.own(id); err != nil {
		return "", err
	}
	if err := o.procs.unadopted(id); err != nil {
		return "", err
	}
	p := o.procs.get(id)
	wanted := o.resources.states()[id] == pveconf.HAStarted
	if p == nil && !wanted {
		return "", model.Errorf(model.ErrBusy, "VM %s not running", id)
	}
	if err := o.resources.notFrozen(o.node, id); err != nil {
		return "", err
	}
	if wanted && !o.quorate() {
		return "", writeError("ask that "+id.SID()+" be stopped", store.ErrNoQuorum)
	}
	return o.tasks.start(typ, id, "stop", func(ctx context.Context, t *task.Task) error {
		if err := o.requestState(ctx, id, pveconf.HAStarted, pveconf.HAStopped); err != nil {
			return err
		}
		if p == nil {
			return nil
		}
		if err := f(ctx, p, t); err != nil {
			return err
		}
		return p.waitCleaned(ctx)
	})
}

// waitCleaned returns when the ended guest's network, group and files are gone.
func (p *proc) waitCleaned(ctx context.Context) error {
	select {
	case <-p.cleaned:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// endNow quits QEMU, and kills it when that does not help.
func (p *proc) endNow(ctx context.Context) error {
	qctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := p.Quit(qctx); err == nil {
		return nil
	}
	return p.Kill(ctx)
}

// shutdown asks the guest to end and waits for that; 0 is shutdownPatience.
func (p *proc) shutdown(ctx context.Context, timeout time.Duration) error {
	if timeout <= 0 {
		timeout = shutdownPatience
	}
	if err := p.Powerdown(ctx); err != nil {
		return err
	}
	wctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := p.Wait(wctx); err != nil {
		return fmt.Errorf("the guest did not shut down within %s: it may not listen to its power button", timeout)
	}
	return nil
}

// Destroy implements api.Guests.
func (o *operations) Destroy(ctx context.Context, id model.VMID) (string, error) {
	if err := o.refuse(id); err != nil {
		return "", err
	}
	if _, _, err := o.creation.mayDestroy(ctx, id); err != nil {
		return "", err
	}
	return o.tasks.start("qmdestroy", id, "destroy", func(ctx context.Context, t *task.Task) error {
		return o.creation.destroy(ctx, id, t)
	})
}

// Create implements api.Guests: everything that can be refused is refused
// before a volume is made, and the volumes go again when the rest fails.
func (o *operations) Create(ctx context.Context, r api.CreateGuestRequest) (string, error) {
	if r.VMID < model.MinVMID || r.VMID > model.MaxVMID {
		return "", model.Invalidf("vmid", "%s is not a guest id: use a number from %d to %d", r.VMID, model.MinVMID, model.MaxVMID)
	}
	if f, err := o.files.owner(r.VMID); err == nil {
		return "", model.Errorf(model.ErrExists, "unable to create VM %s - VM %s already exists on node '%s'", r.VMID, r.VMID, f.node)
	}
	if !o.quorate() {
		return "", writeError("create guest "+r.VMID.String(), store.ErrNoQuorum)
	}
	plan, err := o.creation.planGuest(ctx, r)
	if err != nil {
		return "", err
	}
	return o.tasks.start("qmcreate", r.VMID, "create", func(ctx context.Context, t *task.Task) error {
		if err := o.creation.create(ctx, r.VMID, plan, t); err != nil {
			return err
		}
		if !r.Start {
			return nil
		}
		if err := o.starter.start(ctx, startRequest{id: r.VMID, log: t.Logf}); err != nil {
			return fmt.Errorf("it was created and stays, but does not start: %w", err)
		}
		return nil
	})
}

// startOnBoot starts this node's guests with onboot 1 once after each boot of the machine, as soon as there is a
// quorum. HA resources are the worker's.
func (o *operations) startOnBoot(ctx context.Context) {
	mark := filepath.Join(o.paths.Run, "booted") // a boot empties the directory
	if _, err := os.Stat(mark); err == nil {
		return
	}
	all, err := o.resources.known()
	for !o.quorate() || err != nil { // without its file HA resources would look like any guest
		if sleep(ctx, time.Second); ctx.Err() != nil {
			return
		}
		all, err = o.resources.known()
	}
	states := statesOf(all)
	for _, f := range o.files.list() {
		_, ha := states[f.id]
		if f.node != o.node || ha || !f.conf.OnBoot() || f.conf.Template() || o.procs.get(f.id) != nil {
			continue
		}
		_, err := o.tasks.start("qmstart", f.id, "start at boot", func(ctx context.Context, t *task.Task) error {
			return o.starter.start(ctx, startRequest{id: f.id, log: t.Logf})
		})
		if err != nil {
			o.log.Warn("guest not started at boot", "vmid", f.id, "err", err)
		}
	}
	if err := sys.WriteFile(mark, []byte(o.boot+"\n")); err != nil {
		o.log.Warn("start at boot not noted", "err", err)
	}
}
