package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/store"
)

// guestsAPI is the agent in its role as api.Guests.
type guestsAPI Agent

func (g *guestsAPI) member() (*member, error) { return (*Agent)(g).member() }

// List implements api.Guests. Nodes that do not answer within a second leave their guests "unknown".
func (g *guestsAPI) List(ctx context.Context) ([]model.Guest, error) {
	m, err := g.member()
	if err != nil {
		return nil, err
	}
	rows := m.guestRows()
	status := m.askStatuses(ctx)
	for i := range rows {
		r := &rows[i]
		if s, ok := status[r.VMID]; ok && s.Node == r.Node {
			s.HA = r.HA
			*r = s
		}
	}
	return rows, nil
}

// guestRows lists all guests from their files alone.
func (m *member) guestRows() []model.Guest {
	states := m.haStates()
	var rows []model.Guest
	for _, f := range m.guestFiles() {
		row := rowOf(f)
		row.HA = string(states[f.id])
		rows = append(rows, row)
	}
	return rows
}

func rowOf(f guestFile) model.Guest {
	return model.Guest{
		VMID: f.id, Node: f.node, Name: f.conf.Name(), Status: "unknown", Lock: f.conf.Lock(),
		MemoryMiB: f.conf.MemoryMiB(), CPUs: f.conf.Cores() * f.conf.Sockets(),
	}
}

// askStatuses asks every online node for its guests, at the same time.
func (m *member) askStatuses(ctx context.Context) map[model.VMID]model.Guest {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[model.VMID]model.Guest{}
	for _, n := range m.nodes() {
		if n.Name != m.name && !m.live.Online(n.Name) {
			continue
		}
		wg.Go(func() {
			rows, err := m.statusesOf(ctx, n.Name)
			if err != nil {
				m.log.Debug("guests of a node not known", "node", n.Name, "err", err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, r := range rows {
				out[r.VMID] = r
			}
		})
	}
	wg.Wait()
	return out
}

func (m *member) statusesOf(ctx context.Context, node string) ([]model.Guest, error) {
	if node == m.name {
		return m.localGuests(ctx), nil
	}
	return callPeer[[]model.Guest](ctx, m, node, "guests", struct{}{})
}

// ListLocal implements api.Guests.
func (g *guestsAPI) ListLocal(ctx context.Context) ([]model.Guest, error) {
	m, err := g.member()
	if err != nil {
		return nil, err
	}
	return m.localGuests(ctx), nil
}

func (m *member) localGuests(ctx context.Context) []model.Guest {
	states := m.haStates()
	rows := []model.Guest{}
	for _, f := range m.guestFiles() {
		if f.node == m.name {
			row := m.statusOf(ctx, f)
			row.HA = string(states[f.id])
			rows = append(rows, row)
		}
	}
	return rows
}

// statusOf asks the guest's QEMU, if there is one here.
func (m *member) statusOf(ctx context.Context, f guestFile) model.Guest {
	row := rowOf(f)
	row.Status = "stopped"
	p := m.procs.get(f.id)
	if p == nil {
		return row
	}
	row.Status, row.PID = "running", p.PID()
	row.Uptime = int64(time.Since(p.Facts().Started).Seconds())
	row.Frozen = m.frozen(f.id)
	if row.Frozen {
		row.QMPStatus = "frozen"
		return row
	}
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if s, err := p.Status(ctx); err == nil {
		row.QMPStatus = s.Status
	}
	return row
}

// Owner implements api.Guests.
func (g *guestsAPI) Owner(_ context.Context, id model.VMID) (string, error) {
	m, err := g.member()
	if err != nil {
		return "", err
	}
	f, err := m.owner(id)
	return f.node, err
}

// NextID implements api.Guests.
func (g *guestsAPI) NextID(context.Context) (model.VMID, error) {
	m, err := g.member()
	if err != nil {
		return 0, err
	}
	next := model.MinVMID
	for _, f := range m.guestFiles() {
		if f.id == next {
			next++
		}
	}
	return next, nil
}

// Get implements api.Guests.
func (g *guestsAPI) Get(ctx context.Context, id model.VMID) (model.Guest, error) {
	m, err := g.member()
	if err != nil {
		return model.Guest{}, err
	}
	f, err := m.ownGuestFile(id)
	if f.conf == nil {
		return model.Guest{}, err
	}
	row := m.statusOf(ctx, f)
	row.HA = string(m.haStates()[id])
	return row, nil
}

// Config implements api.Guests.
func (g *guestsAPI) Config(_ context.Context, id model.VMID) (api.GuestConfig, error) {
	m, err := g.member()
	if err != nil {
		return api.GuestConfig{}, err
	}
	f, err := m.owner(id)
	if err != nil {
		return api.GuestConfig{}, err
	}
	conf, err := pveconf.ParseGuest(f.raw)
	if err != nil {
		return api.GuestConfig{}, fmt.Errorf("%s: %w", model.GuestConfigPath(f.node, id), err)
	}
	return api.GuestConfig{Values: conf.Values(), Keys: conf.Keys(), Digest: pveconf.Digest(f.raw), Node: f.node}, nil
}

// SetConfig implements api.Guests.
func (g *guestsAPI) SetConfig(ctx context.Context, id model.VMID, set map[string]string, del []string, digest string) error {
	m, err := g.member()
	if err != nil {
		return err
	}
	if _, err := m.ownGuestFile(id); err != nil {
		return err
	}
	unlock, err := m.locks.tryLock(id, "changing its configuration")
	if err != nil {
		return err
	}
	defer unlock()
	return editFile(ctx, m.st, "change guest "+id.String(), model.GuestConfigKey(m.name, id), func(old []byte) ([]byte, error) {
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
		return editConfig(conf, set, del)
	})
}

func editConfig(conf *pveconf.Guest, set map[string]string, del []string) ([]byte, error) {
	for _, key := range del {
		if !pveconf.Known(key) {
			return nil, model.Invalidf(key, "no such option")
		}
		if err := detach(conf, key); err != nil {
			return nil, err
		}
	}
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		v := set[k]
		if err := refuseNewVolume(k, v); err != nil {
			return nil, err
		}
		if strings.HasPrefix(k, "net") {
			var err error
			if v, err = withMAC(k, v); err != nil {
				return nil, err
			}
		}
		if err := conf.Set(k, v); err != nil {
			return nil, err
		}
	}
	return conf.Bytes(), nil
}

// detach deletes a key. A disk's volume is kept as the first free unused[n], so that nothing is lost.
func detach(conf *pveconf.Guest, key string) error {
	for _, d := range conf.Disks() {
		if _, isVolume := volumeStorage(d.Volume); d.Key != key || !isVolume || d.CDROM {
			continue
		}
		for n := 0; ; n++ {
			unused := "unused" + strconv.Itoa(n)
			if _, taken := conf.Get(unused); !taken {
				if err := conf.Set(unused, d.Volume); err != nil {
					return err
				}
				break
			}
		}
	}
	conf.Delete(key)
	return nil
}

// refuseNewVolume refuses what only the creation of a guest can do.
func refuseNewVolume(key, value string) error {
	family, _, indexed := pveconf.SplitIndex(key)
	if !indexed || family != "virtio" && family != "scsi" {
		return nil
	}
	d, err := pveconf.ParseDisk(key, value)
	if err != nil {
		return err
	}
	name, isVolume := volumeStorage(d.Volume)
	_, err = strconv.ParseFloat(strings.TrimPrefix(d.Volume, name+":"), 64)
	if isVolume && err == nil || d.ImportFrom != "" {
		return model.Invalidf(key, "a guest that exists cannot be given a new volume this way yet: make it with `sauh storage alloc %s` and name the volume that it prints", name)
	}
	return nil
}

// withMAC gives a network card without an address one of the range that Proxmox VE uses.
func withMAC(key, value string) (string, error) {
	n, err := pveconf.ParseNet(key, value)
	if err != nil || n.MAC != "" {
		return value, err
	}
	var b [3]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails on Linux
	card := pveconf.Prop{Key: n.Model, Value: fmt.Sprintf("BC:24:11:%02X:%02X:%02X", b[0], b[1], b[2])}
	props := append(pveconf.Props{card}, n.Props.Without("model")...) // first, as Proxmox VE writes it
	return props.Print(pveconf.NetFormat()), nil
}

// Start implements api.Guests.
func (g *guestsAPI) Start(ctx context.Context, id model.VMID) (string, error) {
	m, _, err := g.own(ctx, id)
	if err != nil {
		return "", err
	}
	if p := m.procs.get(id); p != nil {
		return "", model.Errorf(model.ErrBusy, "VM %s already running", id)
	}
	return m.guestTask("qmstart", id, "start", func(ctx context.Context, t *task.Task) error {
		if err := m.requestState(ctx, id, pveconf.HAStopped, pveconf.HAStarted); err != nil {
			return err
		}
		return m.startGuest(ctx, startRequest{id: id, log: t.Logf})
	})
}

// own finds the guest and refuses what needs a quorum when there is none.
func (g *guestsAPI) own(_ context.Context, id model.VMID) (*member, guestFile, error) {
	m, err := g.member()
	if err != nil {
		return nil, guestFile{}, err
	}
	f, err := m.ownGuestFile(id)
	if err != nil {
		return nil, f, err
	}
	if !m.st.Quorate() {
		return nil, f, writeError("guest "+id.String(), store.ErrNoQuorum)
	}
	return m, f, nil
}

// guestTask runs f as a task that holds the guest's lock.
func (m *member) guestTask(typ string, id model.VMID, what string, f func(context.Context, *task.Task) error) (string, error) {
	unlock, err := m.locks.tryLock(id, what)
	if err != nil {
		return "", err
	}
	upid, err := m.agent.tasks.Start(typ, id.String(), func(ctx context.Context, t *task.Task) error {
		defer unlock()
		return f(ctx, t)
	})
	if err != nil {
		unlock()
	}
	return upid, err
}

// requestState changes what is asked of an HA resource, if it is from at present.
func (m *member) requestState(ctx context.Context, id model.VMID, from, to pveconf.HAState) error {
	if m.haStates()[id] != from {
		return nil
	}
	return m.editResources(ctx, "ask that vm:"+id.String()+" be "+string(to), func(all []pveconf.HAResource) ([]pveconf.HAResource, error) {
		if i := findResource(all, id); i >= 0 && all[i].State == from {
			all[i].State = to
		}
		return all, nil
	})
}

// Stop implements api.Guests.
func (g *guestsAPI) Stop(ctx context.Context, id model.VMID) (string, error) {
	return g.end(ctx, "qmstop", id, func(ctx context.Context, p *proc, _ *task.Task) error { return p.endNow(ctx) })
}

// Shutdown implements api.Guests.
func (g *guestsAPI) Shutdown(ctx context.Context, id model.VMID, timeout time.Duration, force bool) (string, error) {
	return g.end(ctx, "qmshutdown", id, func(ctx context.Context, p *proc, t *task.Task) error {
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
func (g *guestsAPI) end(_ context.Context, typ string, id model.VMID, f func(context.Context, *proc, *task.Task) error) (string, error) {
	m, err := g.member()
	if err != nil {
		return "", err
	}
	if _, err := m.ownGuestFile(id); err != nil {
		return "", err
	}
	p := m.procs.get(id)
	wanted := m.haStates()[id] == pveconf.HAStarted
	if p == nil && !wanted {
		return "", model.Errorf(model.ErrBusy, "VM %s not running", id)
	}
	if wanted && !m.st.Quorate() {
		return "", writeError("ask that "+id.SID()+" be stopped", store.ErrNoQuorum)
	}
	return m.guestTask(typ, id, "stop", func(ctx context.Context, t *task.Task) error {
		if err := m.requestState(ctx, id, pveconf.HAStarted, pveconf.HAStopped); err != nil {
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

func (p *proc) shutdown(ctx context.Context, timeout time.Duration) error {
	if timeout <= 0 {
		timeout = time.Minute
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

// Console implements api.Guests.
func (g *guestsAPI) Console(ctx context.Context, id model.VMID) (io.ReadWriteCloser, error) {
	m, err := g.member()
	if err != nil {
		return nil, err
	}
	if _, err := m.ownGuestFile(id); err != nil {
		return nil, err
	}
	return qemu.Console(ctx, m.agent.opts.Paths.qemuRun(), id)
}

// Destroy implements api.Guests.
func (g *guestsAPI) Destroy(ctx context.Context, id model.VMID) (string, error) {
	m, _, err := g.own(ctx, id)
	if err != nil {
		return "", err
	}
	if _, _, err := m.mayDestroy(ctx, id); err != nil {
		return "", err
	}
	return m.guestTask("qmdestroy", id, "destroy", func(ctx context.Context, t *task.Task) error {
		return m.destroy(ctx, id, t)
	})
}

// mayDestroy refuses to destroy a guest that runs, is an HA resource, or is protected from it.
func (m *member) mayDestroy(ctx context.Context, id model.VMID) (ownership, *pveconf.Guest, error) {
	if m.procs.get(id) != nil {
		return ownership{}, nil, model.Errorf(model.ErrBusy, "VM %s is running - destroy failed: stop it first", id)
	}
	o, err := m.readOwnership(ctx, id, m.name)
	if err != nil {
		return o, nil, err
	}
	if o.state != "" {
		return o, nil, model.Errorf(model.ErrBusy, "guest %s is an HA resource: run `sauh ha remove vm:%s` first", id, id)
	}
	conf, err := pveconf.ParseGuest(o.conf.Value)
	if err != nil {
		return o, nil, err
	}
	if conf.Protection() {
		return o, nil, model.Errorf(model.ErrBusy, "can't remove VM %s - protection mode enabled", id)
	}
	return o, conf, nil
}

// destroy deletes the file first, so that nobody starts the guest any more, then its volumes. The caller holds the guest's lock.
func (m *member) destroy(ctx context.Context, id model.VMID, t *task.Task) error {
	o, conf, err := m.mayDestroy(ctx, id)
	if err != nil {
		return err
	}
	txn := store.Txn{
		If: []store.Cond{
			{Key: o.conf.Key, Revision: o.conf.ModRevision},
			{Key: model.IntentPrefix + id.String()},
			{Key: model.ProtectedPrefix + id.String(), Revision: o.protected.Revision},
		},
		Then: []store.Op{store.Delete(o.conf.Key)},
	}
	if o.protected.Revision != 0 {
		txn.Then = append(txn.Then, store.Delete(model.ProtectedPrefix+id.String()))
	}
	for _, key := range []string{reservationKey(id), model.HAStatusPrefix + id.SID()} {
		if kv, err := m.st.Get(ctx, key, store.Linearizable); err == nil {
			txn.If = append(txn.If, store.Cond{Key: key, Revision: kv.ModRevision})
			txn.Then = append(txn.Then, store.Delete(key))
		}
	}
	if _, err := m.st.Txn(ctx, txn); err != nil {
		return writeError("destroy guest "+id.String(), err)
	}
	var errs []error
	for _, volume := range ownVolumes(id, conf) {
		t.Logf("delete volume %s", volume)
		name, _ := volumeStorage(volume)
		drv, err := m.driver(name)
		if err == nil {
			dctx, cancel := context.WithTimeout(ctx, storageDeadline)
			err = drv.Delete(dctx, volume)
			cancel()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ownVolumes lists the volumes in a configuration, detached ones included, that were made for the guest itself.
func ownVolumes(id model.VMID, conf *pveconf.Guest) []string {
	var all, own []string
	for _, d := range conf.Disks() {
		all = append(all, d.Volume)
	}
	for _, key := range conf.Keys() {
		if family, _, ok := pveconf.SplitIndex(key); ok && family == "unused" {
			v, _ := conf.Get(key)
			all = append(all, v)
		}
	}
	for _, volume := range all {
		_, isVolume := volumeStorage(volume)
		_, name, _ := strings.Cut(volume, ":")
		if isVolume && strings.HasPrefix(path.Base(name), "vm-"+id.String()+"-") && !slices.Contains(own, volume) {
			own = append(own, volume)
		}
	}
	return own
}

// reservationKey is taken by the guest that has the id, so that no two nodes create it at once.
func reservationKey(id model.VMID) string { return "vmid/" + id.String() }
