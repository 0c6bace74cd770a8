package agent

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/store"
)

// resources are the HA resources, as they are configured and as they are; it implements api.HA.
type resources struct {
	log      *slog.Logger
	st       store.Store
	mirror   *mirror.Mirror
	roster   roster
	files    guestFiles
	storages *storages
	live     observer
	quorate  func() bool
}

// observer knows what was heard of the other nodes.
type observer interface {
	Online(node string) bool
	Verdict(node string) (v lease.Verdict, silence time.Duration)
}

const haResourcesKey = model.ConfigPrefix + "ha/resources.cfg"

// known is ha/resources.cfg as the mirror has it.
func (h *resources) known() ([]pveconf.HAResource, error) {
	r, err := mirror.Decode(h.mirror.Snapshot(), haResourcesKey, pveconf.ParseHAResources)
	return r.Value, err
}

// states maps each guest that is an HA resource to the state asked for; those ignored are none.
func (h *resources) states() map[model.VMID]pveconf.HAState {
	all, _ := h.known() // what cannot be read is in the log, and HA decides nothing by it
	return statesOf(all)
}

func statesOf(all []pveconf.HAResource) map[model.VMID]pveconf.HAState {
	out := map[model.VMID]pveconf.HAState{}
	for _, r := range all {
		if r.Unsupported == "" && r.State != pveconf.HAIgnored {
			out[r.VMID] = r.State
		}
	}
	return out
}

// HAResources implements api.HA.
func (h *resources) HAResources(context.Context) ([]api.HAResource, error) {
	all, err := h.known()
	if err != nil {
		return nil, err
	}
	out := make([]api.HAResource, 0, len(all))
	for _, r := range all {
		out = append(out, api.HAResource{SID: r.SID(), State: string(r.State), Comment: r.Comment})
	}
	return out, nil
}

// HAAdd implements api.HA.
func (h *resources) HAAdd(ctx context.Context, r api.HAResource) error {
	id, err := pveconf.ParseSID(r.SID)
	if err != nil {
		return err
	}
	f, err := h.files.owner(id)
	if err == nil {
		err = f.err
	}
	if err != nil {
		return err
	}
	set, err := h.storages.known()
	if err != nil {
		return err
	}
	if why := set.localReason(f.conf.Disks()); why != "" {
		return model.Invalidf("sid", "vm:%s cannot be protected: %s, and no other node could start it", id, why)
	}
	state, err := requestedState(r.State)
	if err != nil {
		return err
	}
	h.log.Info("HA resource added", "vmid", id, "node", f.node)
	return h.edit(ctx, "add "+r.SID, func(all []pveconf.HAResource) ([]pveconf.HAResource, error) {
		if findResource(all, id) >= 0 {
			return nil, model.Errorf(model.ErrExists, "resource ID 'vm:%s' already defined: change it with `sauh ha set`", id)
		}
		add := pveconf.NewHAResource(id, state)
		add.Comment = r.Comment
		return append(all, add), nil
	})
}

func requestedState(s string) (pveconf.HAState, error) {
	switch st := pveconf.HAState(s); st {
	case "", "enabled":
		return pveconf.HAStarted, nil
	case pveconf.HAStarted, pveconf.HAStopped, pveconf.HADisabled, pveconf.HAIgnored:
		return st, nil
	}
	return "", model.Invalidf("state", "%q is not a state: use started, stopped, disabled or ignored", s)
}

func findResource(all []pveconf.HAResource, id model.VMID) int {
	return slices.IndexFunc(all, func(r pveconf.HAResource) bool { return r.Type == "vm" && r.VMID == id })
}

func (h *resources) edit(ctx context.Context, what string, f func([]pveconf.HAResource) ([]pveconf.HAResource, error)) error {
	return editFile(ctx, h.st, what, haResourcesKey, func(old []byte) ([]byte, error) {
		all, err := pveconf.ParseHAResources(old)
		if err != nil {
			return nil, err
		}
		if all, err = f(all); err != nil {
			return nil, err
		}
		return pveconf.PrintHAResources(all)
	})
}

// HASet implements api.HA.
func (h *resources) HASet(ctx context.Context, r api.HAResource) error {
	id, err := pveconf.ParseSID(r.SID)
	if err != nil {
		return err
	}
	return h.edit(ctx, "change "+r.SID, func(all []pveconf.HAResource) ([]pveconf.HAResource, error) {
		i := findResource(all, id)
		if i < 0 {
			return nil, noResource(id)
		}
		if r.State != "" {
			if all[i].State, err = requestedState(r.State); err != nil {
				return nil, err
			}
		}
		all[i].Comment = r.Comment
		return all, nil
	})
}

func noResource(id model.VMID) error {
	return model.Errorf(model.ErrNotFound, "no such resource 'vm:%s'", id)
}

// HARemove implements api.HA. The guest runs on, unprotected.
func (h *resources) HARemove(ctx context.Context, sid string) error {
	id, err := pveconf.ParseSID(sid)
	if err != nil {
		return err
	}
	err = h.edit(ctx, "remove "+sid, func(all []pveconf.HAResource) ([]pveconf.HAResource, error) {
		i := findResource(all, id)
		if i < 0 {
			return nil, noResource(id)
		}
		return slices.Delete(all, i, i+1), nil
	})
	if err != nil {
		return err
	}
	h.forgetStatus(ctx, id)
	return nil
}

// forgetStatus deletes what HA last said of a guest; left behind it would only mislead.
func (h *resources) forgetStatus(ctx context.Context, id model.VMID) {
	key := model.HAStatusPrefix + id.SID()
	kv, err := h.st.Get(ctx, key, store.Linearizable)
	if err != nil {
		return // there is none, or no quorum
	}
	_, err = h.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: key, Revision: kv.ModRevision}}, Then: []store.Op{store.Delete(key)}})
	if err != nil {
		h.log.Info("HA status left behind", "vmid", id, "err", err)
	}
}

// HAStatus implements api.HA.
func (h *resources) HAStatus(ctx context.Context) (api.HAStatus, error) {
	snap := h.mirror.Snapshot()
	manager, _ := mirror.Get[model.Manager](snap, model.ManagerKey) // what cannot be read is not shown
	out := api.HAStatus{Manager: manager.Value.Node, Quorate: h.quorate()}
	for _, n := range h.roster.nodes() {
		out.Nodes = append(out.Nodes, nodeState(h.live, n.Name))
	}
	var err error
	out.Services, err = h.HAResources(ctx)
	owners := map[model.VMID]string{}
	for _, f := range guestFilesIn(snap) {
		owners[f.id] = f.node
	}
	for i := range out.Services {
		s := &out.Services[i]
		rec, err := mirror.Get[ha.Status](snap, model.HAStatusPrefix+s.SID)
		if err == nil && rec.Revision != 0 {
			s.Status, s.Reason = string(rec.Value.State), rec.Value.Reason
		}
		if id, err := pveconf.ParseSID(s.SID); err == nil {
			s.Node = owners[id]
		}
	}
	return out, err
}

func nodeState(l observer, node string) api.HANodeStatus {
	v, silence := l.Verdict(node)
	s := api.HANodeStatus{Node: node, State: "online", Epoch: v.Live.Epoch, SilenceMS: silence.Milliseconds()}
	switch {
	case v.Live.Fenced:
		s.State = "fenced"
	case v.Live.Left:
		s.State = "left"
	case !l.Online(node):
		s.State = "suspect"
	}
	return s
}
