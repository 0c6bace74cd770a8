package agent

import (
	"context"
	"log/slog"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/load"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

// nodeLoad measures what this node and its guests use, and tells it in ha/load/<node> where the guests are placed by it.
type nodeLoad struct {
	node, boot string
	log        *slog.Logger
	st         store.Store
	mirror     *mirror.Mirror
	procs      *procs
	// machine is the cgroup of all that runs here.
	machine sys.Cgroup
	memory  func() (total, available int64, err error)
	clock   func() time.Duration

	meter  load.Meter
	before map[model.VMID]load.Use // what guests that are on their way to this node use where they are
	failed bool                    // the last reading
}

// start measures until ctx is done.
func (l *nodeLoad) start(ctx context.Context) {
	for ctx.Err() == nil {
		l.look(ctx)
		sleep(ctx, load.Pace)
	}
}

// look reads the counters once, and tells what is worth telling.
func (l *nodeLoad) look(ctx context.Context) {
	snap := l.mirror.Snapshot()
	r, err := l.read(snap)
	if err != nil && !l.failed {
		l.log.Warn("what this node uses cannot be measured: guests are placed by what is configured", "err", err)
	}
	if l.failed = err != nil; l.failed {
		return
	}
	l.meter.Read(l.clock(), r)
	is, known := l.meter.Record(l.boot)
	policy, err := policyIn(snap)
	if !known || err != nil || policy.Placing != place.Dynamic {
		return
	}
	key := model.HALoadPrefix + l.node
	said, _ := mirror.Get[load.Record](snap, key) // one that cannot be read is written over
	if said.Value.Worth(is) {
		// What fails is told at the next look.
		_, err := l.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: key, Revision: said.Revision}}, Then: []store.Op{store.Put(key, mustJSON(is))}})
		l.log.Debug("load of this node told", "load", is, "err", err)
	}
}

// read reads all counters. A guest whose cgroup goes at the moment is left out. The memory of a guest is what its process
// has in RAM: that of the cgroup would count the pages of the images that the kernel keeps and can drop.
func (l *nodeLoad) read(snap mirror.Snapshot) (load.Reading, error) {
	cpu, err := l.machine.CPUTime()
	if err != nil {
		return load.Reading{}, err
	}
	total, available, err := l.memory()
	if err != nil {
		return load.Reading{}, err
	}
	r := load.Reading{Node: load.Counter{CPU: cpu, MemoryMiB: (total - available) >> 20}, Guests: map[model.VMID]load.Counter{}, Before: l.before}
	l.before = map[model.VMID]load.Use{}
	for id, p := range l.procs.list() {
		if p.incoming.Load() {
			if u, ok := used(snap, id); ok {
				l.before[id] = u
			}
			continue
		}
		group := sys.Cgroup(l.procs.paths.cgroupOf(id.String()))
		cpu, err := group.CPUTime()
		pids, perr := group.Procs()
		if err != nil || perr != nil {
			continue
		}
		c := load.Counter{CPU: cpu}
		for _, pid := range pids {
			if bytes, err := sys.ProcessMemory(pid); err == nil {
				c.MemoryMiB += bytes >> 20
			}
		}
		r.Guests[id] = c
	}
	return r, nil
}

// used is what a guest that comes here uses where it is, as told.
func used(snap mirror.Snapshot, id model.VMID) (load.Use, bool) {
	intent, err := mirror.Get[model.Intent](snap, model.IntentPrefix+id.String())
	if err != nil {
		return load.Use{}, false
	}
	there, _ := mirror.Get[load.Record](snap, model.HALoadPrefix+intent.Value.Source) // a guess at most
	u, ok := there.Value.Guests[id]
	return u, ok
}

// measured is what is known of the nodes' loads, if the guests are placed by it. A node that is silent is not known.
func (m *haManager) measured(snap mirror.Snapshot, c clusterRecords, guests []ha.Guest) load.Known {
	if c.policy.Placing != place.Dynamic {
		return load.Known{}
	}
	told, _ := mirror.List[load.Record](snap, model.HALoadPrefix) // what cannot be read was not measured
	records := map[string]load.Record{}
	for node, r := range told {
		if (node == m.node || m.live.Online(node)) && r.Value.Counts(c.live[node].Value) {
			records[node] = r.Value
		}
	}
	owner := make(map[model.VMID]string, len(guests))
	for _, g := range guests {
		owner[g.VMID] = g.Node
	}
	return load.Assign(records, owner)
}

// measure fills in what is known of the guests' loads.
func measure(guests []ha.Guest, k load.Known) {
	for i := range guests {
		g := &guests[i]
		u, known := k.Guests[g.VMID]
		_, told := k.Nodes[g.Node]
		g.Load, g.Unmeasured = ha.Load(u), told && !known
	}
}
