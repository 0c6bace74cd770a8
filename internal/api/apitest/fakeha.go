package apitest

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
)

// digest is that of every file of the fake.
const digest = "5ba93c9db0cff93f52b521d7420e43f6eda2784f"

// haStatus is a cluster with all that a status can have but an alarm.
func haStatus() api.HAStatus {
	return api.HAStatus{
		Alarms: []api.HAAlarm{}, Manager: "n1", Quorate: true,
		Nodes: []api.HANodeStatus{
			{Node: "n1", State: "online", Epoch: 1, SilenceMS: 400, Rack: "r1"},
			{
				Node: "n2", State: "online", Epoch: 4, SilenceMS: 900, Mode: "maintenance", Rack: "r2",
				Fencing: []api.HAFenceMethod{
					{Method: "redfish: n2-bmc", Node: "n2", Grade: "rehearsed", Tried: Start, Switched: true, TookMS: 2100},
					{
						Method: "ipmi: n2-old", Node: "n2", Grade: "worthless", Tried: Start, Failed: "it did not answer in time",
						Reason: "the method is not rehearsed: the last rehearsal failed: it did not answer in time: repair it and rehearse it again",
					},
				},
			},
			{Node: "n3", State: "fenced", Epoch: 2, SilenceMS: 12000, Quarantine: "it was silent too often of late", Lost: "storage nas"},
		},
		Services: []api.HAResource{
			{
				SID: "vm:100", State: "started", Node: "n1", Status: "started", Reason: "runs as requested",
				MaxRestart: 3, MaxRelocate: 1, Failback: true, Rebalance: true,
			},
			{SID: "vm:101", State: "started", Node: "n1", Status: "migrate", Target: "n2", Reason: "n1 is in maintenance", MaxRestart: 1, MaxRelocate: 1},
		},
		Tolerance: &api.HATolerance{
			Nodes: 1, Exact: true, Failed: []string{"n1", "n2"}, Wanted: 2,
			Lost: []api.HAPlacement{{SID: "vm:101", From: "n1", Reason: "no node can take it: n3 is fenced"}},
		},
	}
}

func haRules() api.Sections {
	return api.Sections{Digest: digest, List: []api.Section{
		{Type: "node-affinity", ID: "shop-near", Values: map[string]string{"resources": "vm:100", "nodes": "n1:2,n2", "strict": "1", "comment": "the fast ones"}},
		{Type: "resource-affinity", ID: "two-shops", Values: map[string]string{
			"resources": "vm:100 vm:101", "affinity": "negative", "domain": "rack", "strict": "0", "weight": "50",
		}},
	}}
}

func explained() map[string]api.HAExplanation {
	return map[string]api.HAExplanation{"vm:100": {
		HAResource: haStatus().Services[0], Since: Start, Protected: true, MoveFailures: 2, Away: "n3", Command: "migrate to n2",
		Rules: []string{"shop-near: vm:100 must run on n1 (priority 2), n2"},
		Nodes: []api.HAVerdict{
			{Node: "n2", OK: true, Chosen: true, Reason: "n2 has 1 other guest and would have 25 % of its memory configured"},
			{Node: "n1", Reason: "n1 is excluded: it is its node now"},
			{Node: "n3", Reason: "n3 is fenced"},
		},
		Log: []api.HADecision{
			{Unix: Start, By: "n1", State: "starting", Node: "n1", Reason: "n3 is lost"},
			{Unix: Start + 60, By: "n1", State: "migrate", Node: "n1", Target: "n2", Reason: "a person asked for it"},
		},
	}}
}

func plan() api.HAPlan {
	return api.HAPlan{
		Moves: []api.HAPlacement{
			{SID: "vm:100", From: "n2", To: "n1", Reason: "n1 has 0 other guests and would have 12 % of its memory configured, the best of those possible"},
			{SID: "vm:101", From: "n2", Reason: "no node can take it: n1 has no storage slow; n3 is fenced"},
		},
		Down: []api.HAPlacement{{SID: "vm:102", From: "n2", Reason: "it is no HA resource: it waits for n2"}}, Quorate: true,
	}
}

func checkDigest(d string) error {
	if d != "" && d != digest {
		return model.Errorf(model.ErrConflict, "detected modified configuration - file changed by other user? Try again.")
	}
	return nil
}

// edit prints a change.
func edit(e api.Edit) string { return sorted(e.Set) + " delete " + strings.Join(e.Delete, ",") }

// member refuses what is no node.
func (f *Fake) member(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.ContainsFunc(f.Cluster.Nodes, func(n api.NodeStatus) bool { return n.Name == name }) {
		return model.Errorf(model.ErrNotFound, "node '%s' does not exist", name)
	}
	return nil
}

type haRole struct{ f *Fake }

func (r haRole) HAResources(context.Context) ([]api.HAResource, error) {
	return read(r.f, "HA.HAResources", func() []api.HAResource { return slices.Clone(r.f.Resources) })
}

// resource refuses what is no HA resource.
func (f *Fake) resource(sid string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.ContainsFunc(f.Resources, func(r api.HAResource) bool { return r.SID == sid }) {
		return model.Errorf(model.ErrNotFound, "no such resource '%s'", sid)
	}
	return nil
}

func (r haRole) HAAdd(_ context.Context, q api.HAResource) error {
	if r.f.resource(q.SID) == nil {
		return model.Errorf(model.ErrExists, "resource ID '%s' already defined", q.SID)
	}
	if err := r.f.call("HA.HAAdd", "%s %s %q %s", q.SID, q.State, q.Comment, sorted(q.Values)); err != nil {
		return err
	}
	r.f.Change(func() { r.f.Resources = append(r.f.Resources, q) })
	return nil
}

func (r haRole) HASet(_ context.Context, sid string, e api.Edit) error {
	if err := r.f.resource(sid); err != nil {
		return err
	}
	if err := checkDigest(e.Digest); err != nil {
		return err
	}
	return r.f.call("HA.HASet", "%s %s", sid, edit(e))
}

func (r haRole) HARemove(_ context.Context, sid string, purge bool) error {
	if err := r.f.resource(sid); err != nil {
		return err
	}
	if err := r.f.call("HA.HARemove", "%s purge %t", sid, purge); err != nil {
		return err
	}
	r.f.Change(func() {
		r.f.Resources = slices.DeleteFunc(r.f.Resources, func(h api.HAResource) bool { return h.SID == sid })
	})
	return nil
}

func (r haRole) HAStatus(context.Context) (api.HAStatus, error) {
	return read(r.f, "HA.HAStatus", func() api.HAStatus { return r.f.HA })
}

func (r haRole) HAExplain(_ context.Context, sid string) (api.HAExplanation, error) {
	if err := r.f.resource(sid); err != nil {
		return api.HAExplanation{}, err
	}
	return read(r.f, "HA.HAExplain", func() api.HAExplanation { return r.f.Explained[sid] })
}

func (r haRole) HAWhatIf(_ context.Context, nodes []string) (api.HAPlan, error) {
	for _, n := range nodes {
		if err := r.f.member(n); err != nil {
			return api.HAPlan{}, err
		}
	}
	return read(r.f, "HA.HAWhatIf", func() api.HAPlan {
		p := r.f.Plan
		p.Lost = nodes
		return p
	})
}

type alarmsRole struct{ f *Fake }

func (r alarmsRole) Alarms(context.Context) ([]api.HAAlarm, error) {
	return read(r.f, "Alarms.Alarms", func() []api.HAAlarm { return slices.Clone(r.f.Alarms) })
}

func (r alarmsRole) AcknowledgeAlarms(_ context.Context, sid string) error {
	about := func(a api.HAAlarm) bool { return a.SID == sid }
	if all, _ := r.Alarms(context.Background()); !slices.ContainsFunc(all, about) {
		return model.Errorf(model.ErrNotFound, "n1 has no alarm about %s", sid)
	}
	if err := r.f.call("Alarms.AcknowledgeAlarms", "%s", sid); err != nil {
		return err
	}
	r.f.Change(func() { r.f.Alarms = slices.DeleteFunc(slices.Clone(r.f.Alarms), about) })
	return nil
}

type rulesRole struct{ f *Fake }

func (r rulesRole) Rules(context.Context) (api.Sections, error) {
	return read(r.f, "Rules.Rules", func() api.Sections {
		return api.Sections{List: slices.Clone(r.f.Rules.List), Digest: r.f.Rules.Digest, Dropped: r.f.Rules.Dropped}
	})
}

func (r rulesRole) Groups(context.Context) (api.Sections, error) {
	return read(r.f, "Rules.Groups", func() api.Sections { return r.f.Groups })
}

func (r rulesRole) find(id string) int {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	return slices.IndexFunc(r.f.Rules.List, func(s api.Section) bool { return s.ID == id })
}

func (r rulesRole) AddRule(_ context.Context, s api.Section) error {
	if r.find(s.ID) >= 0 {
		return model.Errorf(model.ErrExists, "HA rule '%s' already defined", s.ID)
	}
	if err := r.f.call("Rules.AddRule", "%s %s %s", s.Type, s.ID, sorted(s.Values)); err != nil {
		return err
	}
	r.f.Change(func() { r.f.Rules.List = append(r.f.Rules.List, s) })
	return nil
}

func (r rulesRole) SetRule(_ context.Context, id string, e api.Edit) error {
	i := r.find(id)
	if i < 0 {
		return model.Errorf(model.ErrNotFound, "no such ha rule '%s'", id)
	}
	if err := checkDigest(e.Digest); err != nil {
		return err
	}
	if err := r.f.call("Rules.SetRule", "%s %s", id, edit(e)); err != nil {
		return err
	}
	r.f.Change(func() {
		v := maps.Clone(r.f.Rules.List[i].Values)
		maps.Copy(v, e.Set)
		for _, k := range e.Delete {
			delete(v, k)
		}
		r.f.Rules.List[i].Values = v
	})
	return nil
}

func (r rulesRole) RemoveRule(_ context.Context, id string) error {
	i := r.find(id)
	if i < 0 {
		return model.Errorf(model.ErrNotFound, "no such ha rule '%s'", id)
	}
	if err := r.f.call("Rules.RemoveRule", "%s", id); err != nil {
		return err
	}
	r.f.Change(func() { r.f.Rules.List = slices.Delete(slices.Clone(r.f.Rules.List), i, i+1) })
	return nil
}

type controlRole struct{ f *Fake }

func (r controlRole) Move(_ context.Context, sid, kind, node string) (api.HAMove, error) {
	if err := r.f.resource(sid); err != nil {
		return api.HAMove{}, err
	}
	if err := r.f.member(node); err != nil {
		return api.HAMove{}, err
	}
	if err := r.f.call("Control.Move", "%s %s %s", sid, kind, node); err != nil {
		return api.HAMove{}, err
	}
	m, err := read(r.f, "Control.Move", func() api.HAMove { return r.f.Moved })
	m.SID, m.Node = sid, node
	return m, err
}

func (r controlRole) StopService(_ context.Context, sid string, timeout time.Duration) error {
	if err := r.f.resource(sid); err != nil {
		return err
	}
	return r.f.call("Control.StopService", "%s %s", sid, timeout)
}

// ofNode notes a change that concerns a node, or with "" the cluster.
func (r controlRole) ofNode(node, method, format string, args ...any) error {
	if node != "" {
		if err := r.f.member(node); err != nil {
			return err
		}
	}
	return r.f.call(method, format, args...)
}

func (r controlRole) Maintenance(_ context.Context, node string, on bool) error {
	if err := r.ofNode(node, "Control.Maintenance", "%s %t", node, on); err != nil {
		return err
	}
	r.f.Change(func() {
		nodes := slices.Clone(r.f.HA.Nodes)
		for i := range nodes {
			if nodes[i].Node == node {
				nodes[i].Mode = map[bool]string{true: "maintenance"}[on]
			}
		}
		r.f.HA.Nodes = nodes
	})
	return nil
}

func (r controlRole) Disarm(_ context.Context, d api.HADisarm) error {
	return r.ofNode(d.Node, "Control.Disarm", "%q %s for %s", d.Node, d.Mode, d.For)
}

func (r controlRole) Arm(_ context.Context, node string) error {
	return r.ofNode(node, "Control.Arm", "%q", node)
}

func (r controlRole) Label(_ context.Context, node string, rack, site *string) error {
	word := func(s *string) string {
		if s == nil {
			return "-"
		}
		return "'" + *s + "'"
	}
	return r.ofNode(node, "Control.Label", "%s rack %s site %s", node, word(rack), word(site))
}

func (r controlRole) EndNode(_ context.Context, reboot bool) error {
	return r.f.call("Control.EndNode", "reboot %t", reboot)
}

func (r controlRole) DrainNode(_ context.Context, reboot bool) error {
	return r.f.call("Control.DrainNode", "reboot %t", reboot)
}

type fencingRole struct{ f *Fake }

func (r fencingRole) FenceFile(context.Context) (api.HAFenceFile, error) {
	return read(r.f, "Fencing.FenceFile", func() api.HAFenceFile { return api.HAFenceFile{Text: r.f.FenceText, Digest: digest} })
}

func (r fencingRole) SetFenceFile(_ context.Context, text, d string) error {
	if err := checkDigest(d); err != nil {
		return err
	}
	if err := r.f.call("Fencing.SetFenceFile", "%q", text); err != nil {
		return err
	}
	r.f.Change(func() { r.f.FenceText = text })
	return nil
}

func (r fencingRole) SetFenceMethod(_ context.Context, s api.Section, e api.Edit, secret string) error {
	if err := checkDigest(e.Digest); err != nil {
		return err
	}
	if secret != "" {
		return r.f.call("Fencing.SetFenceMethod", "%s %s %s secret %q", s.Type, s.ID, edit(e), secret)
	}
	return r.f.call("Fencing.SetFenceMethod", "%s %s %s", s.Type, s.ID, edit(e))
}

func (r fencingRole) RemoveFenceMethod(_ context.Context, id string) error {
	if text, _ := read(r.f, "", func() string { return r.f.FenceText }); !strings.Contains(text, ": "+id+"\n") {
		return model.Errorf(model.ErrNotFound, "no such fencing method '%s'", id)
	}
	return r.f.call("Fencing.RemoveFenceMethod", "%s", id)
}

func (r fencingRole) SetFenceSecret(_ context.Context, name, secret string) error {
	return r.f.call("Fencing.SetFenceSecret", "%s %q", name, secret)
}

func (r fencingRole) FenceMethods(context.Context) ([]api.HAFenceMethod, error) {
	return read(r.f, "Fencing.FenceMethods", func() []api.HAFenceMethod { return slices.Clone(r.f.Methods) })
}

func (r fencingRole) FenceTest(ctx context.Context, node string, switching bool) ([]api.HAFenceMethod, error) {
	if err := r.f.member(node); err != nil {
		return nil, err
	}
	if err := r.f.call("Fencing.FenceTest", "%s switch %t", node, switching); err != nil {
		return nil, err
	}
	all, err := r.FenceMethods(ctx)
	return slices.DeleteFunc(all, func(m api.HAFenceMethod) bool { return m.Node != node }), err
}

type optionsRole struct{ f *Fake }

func (r optionsRole) Options(context.Context) (map[string]string, string, error) {
	values, err := read(r.f, "Options.Options", func() map[string]string { return maps.Clone(r.f.Options) })
	return values, digest, err
}

func (r optionsRole) SetOptions(_ context.Context, e api.Edit) error {
	if err := checkDigest(e.Digest); err != nil {
		return err
	}
	if err := r.f.call("Options.SetOptions", "%s", edit(e)); err != nil {
		return err
	}
	r.f.Change(func() {
		r.f.Options = maps.Clone(r.f.Options)
		maps.Copy(r.f.Options, e.Set)
		for _, k := range e.Delete {
			delete(r.f.Options, k)
		}
	})
	return nil
}
