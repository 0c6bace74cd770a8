package agent

import (
	"context"
	"slices"

	"sauh.dev/sauh/internal/agent/liveness"
	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/store"
)

// haAPI is the agent in its role as api.HA.
type haAPI Agent

const haResourcesKey = model.ConfigPrefix + "ha/resources.cfg"

func (h *haAPI) member() (*member, error) { return (*Agent)(h).member() }

// resources reads ha/resources.cfg from the mirror.
func (m *member) resources() ([]pveconf.HAResource, error) {
	r, err := mirror.Decode(m.mirror.Snapshot(), haResourcesKey, pveconf.ParseHAResources)
	return r.Value, err
}

// haStates maps each guest that is an HA resource to the state asked for; those ignored are none.
func (m *member) haStates() map[model.VMID]pveconf.HAState {
	all, _ := m.resources() // what cannot be read is in the log, and HA decides nothing by it
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
func (h *haAPI) HAResources(context.Context) ([]api.HAResource, error) {
	m, err := h.member()
	if err != nil {
		return nil, err
	}
	all, err := m.resources()
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
func (h *haAPI) HAAdd(ctx context.Context, r api.HAResource) error {
	m, id, err := h.target(r.SID)
	if err != nil {
		return err
	}
	owner, conf, err := m.guestFile(id)
	if err != nil {
		return err
	}
	if why := m.localReason(conf); why != "" {
		return model.Invalidf("sid", "vm:%s cannot be protected: %s, and no other node could start it", id, why)
	}
	state, err := requestedState(r.State)
	if err != nil {
		return err
	}
	m.log.Info("HA resource added", "sid", r.SID, "owner", owner)
	return m.editResources(ctx, "add "+r.SID, func(all []pveconf.HAResource) ([]pveconf.HAResource, error) {
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

func (h *haAPI) target(sid string) (*member, model.VMID, error) {
	m, err := h.member()
	if err != nil {
		return nil, 0, err
	}
	id, err := pveconf.ParseSID(sid)
	return m, id, err
}

func findResource(all []pveconf.HAResource, id model.VMID) int {
	return slices.IndexFunc(all, func(r pveconf.HAResource) bool { return r.Type == "vm" && r.VMID == id })
}

func (m *member) editResources(ctx context.Context, what string, f func([]pveconf.HAResource) ([]pveconf.HAResource, error)) error {
	return editFile(ctx, m.st, what, haResourcesKey, func(old []byte) ([]byte, error) {
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
func (h *haAPI) HASet(ctx context.Context, r api.HAResource) error {
	m, id, err := h.target(r.SID)
	if err != nil {
		return err
	}
	return m.editResources(ctx, "change "+r.SID, func(all []pveconf.HAResource) ([]pveconf.HAResource, error) {
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
func (h *haAPI) HARemove(ctx context.Context, sid string) error {
	m, id, err := h.target(sid)
	if err != nil {
		return err
	}
	err = m.editResources(ctx, "remove "+sid, func(all []pveconf.HAResource) ([]pveconf.HAResource, error) {
		i := findResource(all, id)
		if i < 0 {
			return nil, noResource(id)
		}
		return slices.Delete(all, i, i+1), nil
	})
	if err != nil {
		return err
	}
	m.forgetStatus(ctx, id)
	return nil
}

// forgetStatus deletes what HA last said of a guest; left behind it would only mislead.
func (m *member) forgetStatus(ctx context.Context, id model.VMID) {
	key := model.HAStatusPrefix + id.SID()
	kv, err := m.st.Get(ctx, key, store.Linearizable)
	if err != nil {
		return // there is none, or no quorum
	}
	_, err = m.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: key, Revision: kv.ModRevision}}, Then: []store.Op{store.Delete(key)}})
	if err != nil {
		m.log.Info("HA status left behind", "sid", id.SID(), "err", err)
	}
}

// HAStatus implements api.HA.
func (h *haAPI) HAStatus(ctx context.Context) (api.HAStatus, error) {
	m, err := h.member()
	if err != nil {
		return api.HAStatus{}, err
	}
	snap := m.mirror.Snapshot()
	manager, _ := mirror.Get[model.Manager](snap, model.ManagerKey) // what cannot be read is not shown
	out := api.HAStatus{Manager: manager.Value.Node, Quorate: m.st.Quorate()}
	for _, n := range m.nodes() {
		out.Nodes = append(out.Nodes, nodeState(m.live, n.Name))
	}
	out.Services, err = h.HAResources(ctx)
	for i := range out.Services {
		s := &out.Services[i]
		rec, err := mirror.Get[ha.Status](snap, model.HAStatusPrefix+s.SID)
		if err == nil && rec.Revision != 0 {
			s.Status, s.Reason = string(rec.Value.State), rec.Value.Reason
		}
		if id, err := pveconf.ParseSID(s.SID); err == nil {
			s.Node, _, _ = m.guestFile(id)
		}
	}
	return out, err
}

func nodeState(l *liveness.Liveness, node string) api.HANodeStatus {
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
