package agent

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/qemu"
)

// inventory shows the guests: what their files say, and what the nodes that own them see.
type inventory struct {
	node      string
	paths     Paths
	log       *slog.Logger
	files     guestFiles
	resources *resources
	roster    roster
	live      observer
	procs     *procs
	peers     *peers
}

// List implements api.Guests. Nodes that do not answer within a second leave their guests "unknown".
func (v *inventory) List(ctx context.Context) ([]model.Guest, error) {
	rows := v.guestRows()
	status := v.askStatuses(ctx)
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
func (v *inventory) guestRows() []model.Guest {
	states := v.resources.states()
	var rows []model.Guest
	for _, f := range v.files.list() {
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
func (v *inventory) askStatuses(ctx context.Context) map[model.VMID]model.Guest {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[model.VMID]model.Guest{}
	for _, n := range v.roster.nodes() {
		if n.Name != v.node && !v.live.Online(n.Name) {
			continue
		}
		wg.Go(func() {
			rows, err := v.statusesOf(ctx, n.Name)
			if err != nil {
				v.log.Debug("guests of a node not known", "node", n.Name, "err", err)
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

func (v *inventory) statusesOf(ctx context.Context, node string) ([]model.Guest, error) {
	if node == v.node {
		return v.localGuests(ctx), nil
	}
	return callPeer[[]model.Guest](ctx, v.peers, node, "guests", struct{}{})
}

// ListLocal implements api.Guests.
func (v *inventory) ListLocal(ctx context.Context) ([]model.Guest, error) {
	return v.localGuests(ctx), nil
}

func (v *inventory) localGuests(ctx context.Context) []model.Guest {
	states := v.resources.states()
	rows := []model.Guest{}
	for _, f := range v.files.list() {
		if f.node == v.node {
			row := v.statusOf(ctx, f)
			row.HA = string(states[f.id])
			rows = append(rows, row)
		}
	}
	return rows
}

// statusOf asks the guest's QEMU, if there is one here.
func (v *inventory) statusOf(ctx context.Context, f guestFile) model.Guest {
	row := rowOf(f)
	row.Status = "stopped"
	p := v.procs.get(f.id)
	if p == nil {
		if err := v.procs.unadopted(f.id); err != nil {
			row.Status, row.Reason = "unknown", err.Error()
		}
		return row
	}
	row.Status, row.PID = "running", p.PID()
	if s := p.Spec(); s.MemoryMiB > 0 { // what runs, which the file may not say any more
		row.MemoryMiB, row.CPUs = s.MemoryMiB, s.Cores*s.Sockets
	}
	row.Uptime = int64(time.Since(p.Facts().Started).Seconds())
	row.Frozen = v.procs.frozen(f.id)
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
func (v *inventory) Owner(_ context.Context, id model.VMID) (string, error) {
	f, err := v.files.owner(id)
	return f.node, err
}

// NextID implements api.Guests.
func (v *inventory) NextID(context.Context) (model.VMID, error) {
	next := model.MinVMID
	for _, f := range v.files.list() {
		if f.id == next {
			next++
		}
	}
	return next, nil
}

// Get implements api.Guests.
func (v *inventory) Get(ctx context.Context, id model.VMID) (model.Guest, error) {
	f, err := v.files.own(id)
	if err != nil {
		return model.Guest{}, err
	}
	row := v.statusOf(ctx, f)
	row.HA = string(v.resources.states()[id])
	return row, nil
}

// Config implements api.Guests.
func (v *inventory) Config(_ context.Context, id model.VMID) (api.GuestConfig, error) {
	f, err := v.files.owner(id)
	if err != nil {
		return api.GuestConfig{}, err
	}
	if f.err != nil {
		return api.GuestConfig{}, f.err
	}
	return api.GuestConfig{Values: f.conf.Values(), Keys: f.conf.Keys(), Digest: pveconf.Digest(f.raw), Node: f.node}, nil
}

// Console implements api.Guests.
func (v *inventory) Console(ctx context.Context, id model.VMID) (io.ReadWriteCloser, error) {
	if _, err := v.files.own(id); err != nil {
		return nil, err
	}
	if v.procs.get(id) == nil && v.procs.unadopted(id) == nil {
		return nil, model.Errorf(model.ErrNotFound, "guest %s is stopped and has no console: start it with `sauh vm start %s`", id, id)
	}
	return qemu.Console(ctx, v.paths.qemuRun(), id)
}
