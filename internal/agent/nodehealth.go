package agent

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/ha"
	corehealth "sauh.dev/sauh/internal/core/health"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/health"
	"sauh.dev/sauh/internal/qga"
	"sauh.dev/sauh/internal/store"
)

// nodeHealth watches what guests need, and tells the manager in ha/health/<node> what is lost. It also watches
// each guest's QEMU and guest agent, for the worker.
type nodeHealth struct {
	node   string
	log    *slog.Logger
	st     store.Store
	mirror *mirror.Mirror
	live   hearing
	bridge string // that of guests whose configuration names none
	run    string // directory of the probes' locks
	// command probes the storage in the directory that is added to it; nil probes none.
	command []string
	// mark tells this node's probes from those of others on the same storage.
	mark   string
	held   func(model.VMID) string
	kick   func()
	watch  *health.Node
	notes  panicNotes
	state  func() health.State // watch's
	doubts func() []string     // likewise
	clock  func() time.Duration
	alone  time.Duration // when it was last seen that this node could not reach the cluster, on clock
}

const (
	// healthPace is how often it is looked what is to be watched, and whether the record says what is so.
	healthPace = time.Second
	// healthAfter is how long the node's renewals must have come through before a loss is told: a node that was cut off sees
	// its own cables as down for ten seconds more after they are back. healthAlone is the age of the last renewal that says that it is
	// cut off; a link counts as down after three seconds.
	healthAfter = 15 * time.Second
	healthAlone = 2 * time.Second
)

func newNodeHealth(h *nodeHealth) *nodeHealth {
	h.watch = health.New(health.Config{
		Params: corehealth.DefaultParams(), Look: health.Bridges, Log: h.log.With("part", "health"), Changed: func(health.State) {},
		Open: func(t health.Target) health.Prober {
			return health.NewChild(t.Command, filepath.Join(h.run, t.Name+".probe"))
		},
	})
	h.state, h.doubts = h.watch.State, h.watch.Doubts
	return h
}

// start watches until ctx is done.
func (h *nodeHealth) start(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { h.watch.Run(ctx) })
	h.alone = h.clock()
	for ctx.Err() == nil {
		if targets, bridges, err := h.wanted(); err == nil {
			h.watch.Set(targets, bridges) // else what was watched is
		}
		h.publish(ctx, h.sure())
		sleep(ctx, healthPace)
	}
}

// sure says whether what is seen as lost is no trace of this node's own absence. It is asked all the time.
func (h *nodeHealth) sure() bool {
	now := h.clock()
	if at, ok := h.live.Renewed(h.node); !ok || now-at > healthAlone {
		h.alone = now
	}
	return now-h.alone >= healthAfter
}

// wanted lists the storages that this node may use and any guest of the cluster does, so that what is lost is known before a guest is sent
// here and after the last one left, and the bridges of this node's guests.
func (h *nodeHealth) wanted() (targets []health.Target, bridges []string, err error) {
	snap := h.mirror.Snapshot()
	cfg, err := mirror.Decode(snap, storageCfgKey, pveconf.ParseStorages)
	if err != nil {
		return nil, nil, err
	}
	said, _ := mirror.Get[ha.NodeHealth](snap, model.HAHealthPrefix+h.node) // what cannot be read has lost nothing
	used := map[string]bool{}
	for _, f := range guestFilesIn(snap) {
		names, _ := volumesOf(f.conf.Disks(), cfg.Value)
		for _, n := range names {
			used[n] = true
		}
		if f.node != h.node {
			continue
		}
		for _, n := range f.conf.Nets() {
			if n.Bridge == "" {
				n.Bridge = h.bridge
			}
			bridges = append(bridges, n.Bridge)
		}
	}
	for _, s := range cfg.Value {
		if h.command != nil && used[s.ID] && s.Path != "" && s.Unsupported == "" && !s.Disable && s.OnNode(h.node) {
			targets = append(targets, health.Target{
				Name: s.ID, Command: append(slices.Clone(h.command), s.Path, h.mark), Lost: slices.Contains(said.Value.Lost, s.ID),
			})
		}
	}
	slices.Sort(bridges)
	return targets, slices.Compact(bridges), nil
}

// publish has the record say what is so. Of a storage a doubt is told at once, and its loss if sure; what is on record as lost stays that until there is no
// doubt of it. A network is told only if sure.
func (h *nodeHealth) publish(ctx context.Context, sure bool) {
	key := model.HAHealthPrefix + h.node
	rec, err := mirror.Get[ha.NodeHealth](h.mirror.Snapshot(), key)
	said := rec.Value
	is, doubts := h.state(), h.doubts()
	want := ha.NodeHealth{}
	for _, s := range is.Storages {
		if sure {
			want.Lost = append(want.Lost, s.Name)
		}
	}
	for _, s := range doubts {
		switch {
		case slices.Contains(want.Lost, s):
		case slices.Contains(said.Lost, s):
			want.Lost = append(want.Lost, s)
		default:
			want.Doubt = append(want.Doubt, s)
		}
	}
	slices.Sort(want.Lost)
	switch {
	case !sure:
		want.NetworkDown = said.NetworkDown
	case len(is.Networks) > 0:
		want.NetworkDown = is.Networks[0].Name
	}
	if err == nil && slices.Equal(said.Lost, want.Lost) && slices.Equal(said.Doubt, want.Doubt) && said.NetworkDown == want.NetworkDown {
		return
	}
	op := store.Put(key, mustJSON(want))
	if len(want.Lost)+len(want.Doubt) == 0 && want.NetworkDown == "" {
		op = store.Delete(key)
	}
	if _, err := h.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: key, Revision: rec.Revision}}, Then: []store.Op{op}}); err != nil {
		return // it is tried again
	}
	if !slices.Equal(said.Lost, want.Lost) || said.NetworkDown != want.NetworkDown {
		h.log.Warn("health of this node", "lost", want.Lost, "network_down", want.NetworkDown, "findings", is)
	}
}

// guest watches one guest until ctx is done or its process ended.
func (h *nodeHealth) guest(ctx context.Context, id model.VMID, p *proc) {
	g := health.Guest{
		Params: corehealth.DefaultParams(), QEMU: remembering{p.Process, h.notes.has(id, p.Facts()), p.panicked}, Held: func() string { return h.held(id) },
		Changed: func(c corehealth.Condition) {
			p.condition.Store(&c)
			if c.Sick != corehealth.Well {
				h.log.Warn("a guest is sick", "vmid", id, "sick", c.Sick, "why", c.Reason)
			}
			if err := h.notes.set(id, p.Facts(), c.Sick == corehealth.SickPanicked); err != nil {
				h.log.Warn("the next agent may not know whether a guest has panicked", "vmid", id, "err", err)
			}
			h.kick()
		},
		IOError: func(i corehealth.Incident) {
			h.log.Warn("a guest's disk has an error", "vmid", id, "disk", i.Disk, "volume", i.Volume, "why", i.Reason, "action", i.Action)
			if name, ok := volumeStorage(i.Volume); ok && !i.NoSpace {
				h.watch.GuestError(name, id.String(), i.Reason)
			}
		},
	}
	if p.Spec().GuestAgent {
		g.Agent = qga.Open(p.Spec().AgentSocket())
	}
	g.Run(ctx)
	if !p.Running() {
		_ = h.notes.set(id, p.Facts(), false) // what stays behind is about a process that is no more
	}
}
