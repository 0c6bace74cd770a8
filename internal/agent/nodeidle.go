package agent

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/store"
)

// nodeIdle tells the manager in ha/idle/<node> which of this node's guests do not run, so that their memory keeps no HA guest away. HA resources
// are not among them: ha/service says more of those.
type nodeIdle struct {
	node, boot string
	log        *slog.Logger
	st         store.Store
	mirror     *mirror.Mirror
	procs      *procs
	locks      *guestLocks
}

// idlePace is how often it is looked who runs: a guest that is started counts again no later.
const idlePace = time.Second

// start tells until ctx is done.
func (i *nodeIdle) start(ctx context.Context) {
	for ctx.Err() == nil {
		i.look(ctx)
		sleep(ctx, idlePace)
	}
}

// look has the record say what is so.
func (i *nodeIdle) look(ctx context.Context) {
	snap := i.mirror.Snapshot()
	resources, err := inForce(snap, haResourcesKey, pveconf.ParseHAResources)
	if err != nil {
		return // who is an HA resource is not known, so the record stays
	}
	key := model.HAIdlePrefix + i.node
	said, err := mirror.Get[ha.NodeIdle](snap, key)
	is := ha.NodeIdle{BootID: i.boot, Guests: i.idle(snap, statesOf(resources.Value))}
	if err == nil && said.Value.BootID == is.BootID && slices.Equal(said.Value.Guests, is.Guests) || len(is.Guests) == 0 && said.Revision == 0 {
		return
	}
	op := store.Put(key, mustJSON(is))
	if len(is.Guests) == 0 {
		op = store.Delete(key)
	}
	// What fails is told at the next look.
	_, err = i.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: key, Revision: said.Revision}}, Then: []store.Op{op}})
	i.log.Debug("guests that do not run told", "idle", is, "err", err)
}

// idle lists the guests outside HA that surely do not run: no process of theirs is here or may be, and nothing is being done with them.
func (i *nodeIdle) idle(snap mirror.Snapshot, resources map[model.VMID]pveconf.HAState) []model.VMID {
	busy := i.locks.holders()
	var out []model.VMID
	for kv := range snap.All(model.ConfigPrefix + "nodes/" + i.node + "/") {
		_, id, ok := model.ParseGuestConfigKey(kv.Key)
		if !ok || busy[id] != "" || i.procs.get(id) != nil || i.procs.unadopted(id) != nil {
			continue
		}
		if _, isHA := resources[id]; !isHA {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// idle lists, by node, the guests that do not run as their node says. What a node says counts while it is there, in the boot in which it said it.
func (m *haManager) idle(snap mirror.Snapshot, c clusterRecords) map[string][]model.VMID {
	told, _ := mirror.List[ha.NodeIdle](snap, model.HAIdlePrefix) // of what cannot be read all guests may run
	out := map[string][]model.VMID{}
	for node, r := range told {
		live := c.live[node].Value
		if r.Value.BootID != "" && r.Value.BootID == live.BootID && !live.Fenced && !live.Left && (node == m.node || m.live.Online(node)) {
			out[node] = r.Value.Guests
		}
	}
	return out
}

// rest fills in which guests do not run.
func rest(guests []ha.Guest, idle map[string][]model.VMID) {
	for i := range guests {
		g := &guests[i]
		g.Idle = g.Idle || slices.Contains(idle[g.Node], g.VMID)
	}
}
