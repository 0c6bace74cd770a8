package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
)

// haStatus is how guests and nodes are. With haResources it implements api.HA.
type haStatus struct {
	sight
	mirror     *mirror.Mirror
	roster     roster
	live       observer
	quorate    func() bool
	beacons    *beacons
	configured *haResources
	// methods are those by which a node can be fenced.
	methods func(node string) ([]api.HAFenceMethod, error)
}

// HAStatus implements api.HA. It answers without quorum, and with files that cannot be read.
func (h *haStatus) HAStatus(ctx context.Context) (api.HAStatus, error) {
	snap, view := h.mirror.Snapshot(), h.view()
	manager, _ := mirror.Get[model.Manager](snap, model.ManagerKey) // what cannot be read is not shown
	out := api.HAStatus{Alarms: []api.HAAlarm{}, Services: []api.HAResource{}, Manager: manager.Value.Node, Quorate: h.quorate(), Problems: problems(snap)}
	if out.Disarm = string(view.Mode.At(view.Unix)); out.Disarm != "" {
		out.Until = view.Mode.Until
	}
	for _, d := range view.Rules.Dropped() {
		out.Problems = append(out.Problems, fmt.Sprintf("rule %s has no effect: %s", d.Rule, d.Reason))
	}
	out.Problems = append(out.Problems, h.beacons.problems(h.live.Online)...)
	p := h.of(view)
	for _, n := range h.roster.nodes() {
		out.Nodes = append(out.Nodes, h.nodeStatus(p, view, n))
	}
	services, err := h.configured.HAResources(ctx)
	if err != nil {
		return out, nil //nolint:nilerr // it is among the problems, and without the resources nobody can say what may fail
	}
	owners := ownersIn(snap)
	for _, s := range services {
		out.Services = append(out.Services, h.serviceStatus(snap, owners, s))
	}
	out.Tolerance = h.tolerance(p, view)
	return out, nil
}

// problems are the files by which nothing is decided, because they cannot be read.
func problems(s mirror.Snapshot) []string {
	var out []string
	note := func(err error) {
		if err != nil {
			out = append(out, strings.TrimPrefix(err.Error(), model.ConfigPrefix)+": what it said before stays in force; mend it")
		}
	}
	_, err := mirror.Decode(s, haResourcesKey, pveconf.ParseHAResources)
	note(err)
	_, err = mirror.Decode(s, haRulesKey, pveconf.ParseHARules)
	note(err)
	_, err = mirror.Decode(s, haGroupsKey, pveconf.ParseHAGroups)
	note(err)
	_, err = policyIn(s)
	note(err)
	_, err = mirror.Decode(s, storageCfgKey, pveconf.ParseStorages)
	note(err)
	_, err = mirror.Decode(s, fenceCfgKey, pveconf.ParseFence)
	note(err)
	return out
}

func ownersIn(s mirror.Snapshot) map[model.VMID]string {
	out := map[model.VMID]string{}
	for kv := range s.All(model.ConfigPrefix + "nodes/") {
		if node, id, ok := model.ParseGuestConfigKey(kv.Key); ok {
			out[id] = node
		}
	}
	return out
}

func (h *haStatus) nodeStatus(p ha.Picture, view ha.View, n model.Node) api.HANodeStatus {
	s := nodeState(h.live, n.Name)
	s.Rack, s.Site = n.Rack, n.Site
	np := p.Node(n.Name)
	i := slices.IndexFunc(view.Members, func(m ha.Member) bool { return m.Name == n.Name })
	if i >= 0 {
		m := view.Members[i]
		s.Mode, s.Lost = string(np.Ends), lost(m.Health)
		if m.Request.Maintenance {
			s.Mode = "maintenance"
		}
		if s.Disarm = string(m.Request.DisarmAt(view.Unix)); s.Disarm != "" {
			s.Until = m.Request.Until
		}
		if view.Policy.Placing == place.Dynamic && s.State == "online" {
			s.Load = &api.HALoad{
				Measured: m.Load != ha.Load{}, CPU: m.Load.CPU, CPUs: m.CPUs, MemoryMiB: m.Load.MemoryMiB, MaxMemoryMiB: m.MemoryMiB,
			}
		}
	}
	if np.Quarantined {
		s.Quarantine = "it was silent too often of late: no guest is placed there while another node is possible"
	}
	s.Fencing, _ = h.methods(n.Name) // what cannot be read is among the problems
	return s
}

func lost(h ha.NodeHealth) string {
	var parts []string
	for _, name := range h.Lost {
		parts = append(parts, "storage "+name)
	}
	if h.NetworkDown != "" {
		parts = append(parts, "the guests' network "+h.NetworkDown)
	}
	return strings.Join(parts, ", ")
}

// serviceStatus adds to a resource what is.
func (h *haStatus) serviceStatus(s mirror.Snapshot, owners map[model.VMID]string, r api.HAResource) api.HAResource {
	if rec, err := mirror.Get[ha.Status](s, model.HAStatusPrefix+r.SID); err == nil && rec.Revision != 0 {
		r.Status, r.Reason, r.Target = string(rec.Value.State), rec.Value.Reason, rec.Value.Target
		if r.Reason == "" {
			r.Reason = rec.Value.Hold
		}
	}
	if id, err := pveconf.ParseSID(r.SID); err == nil {
		r.Node = owners[id]
	}
	if r.Status == "" && r.Node == "" {
		r.Reason = "there is no such guest"
	}
	return r
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

// statusBudget bounds the plans behind a status: a fifth of a second at 256 nodes.
const statusBudget = place.DefaultBudget / 5

// tolerance is how many node failures the cluster can take: its guests must find places, and those who are left must be a majority.
func (h *haStatus) tolerance(p ha.Picture, view ha.View) *api.HATolerance {
	t := place.FailuresToTolerate(p.Cluster(), statusBudget)
	out := &api.HATolerance{Nodes: t.Nodes, Exact: t.Exact, Failed: t.Failed, Wanted: view.Policy.Tolerate, Warn: view.Policy.WarnOnly}
	for _, pl := range t.Unplaced {
		out.Lost = append(out.Lost, placement(pl))
	}
	online, quorum := h.votes(nil)
	if spare := max(online-quorum, 0); spare < out.Nodes || !out.Exact && spare == out.Nodes {
		out.Nodes, out.Exact, out.Quorum, out.Failed, out.Lost = spare, true, true, nil, nil
	}
	return out
}

// votes are those of the nodes that are heard of, without some, and how many are a majority.
func (h *haStatus) votes(without []string) (online, quorum int) {
	all := 0
	for _, n := range h.roster.nodes() {
		all += n.Votes
		if (n.Name == h.node || h.live.Online(n.Name)) && !slices.Contains(without, n.Name) {
			online += n.Votes
		}
	}
	return online, all/2 + 1
}

func placement(pl place.Placement) api.HAPlacement {
	return api.HAPlacement{SID: pl.Request.Name(), From: pl.Request.Node, To: pl.Node, Reason: place.Explain(pl.Verdicts)}
}

// HAWhatIf implements api.HA.
func (h *haStatus) HAWhatIf(_ context.Context, nodes []string) (api.HAPlan, error) {
	if len(nodes) == 0 {
		return api.HAPlan{}, model.Invalidf("nodes", "name the nodes that would be lost, such as n2,n3")
	}
	for _, n := range nodes {
		if _, err := h.roster.node(n); err != nil {
			return api.HAPlan{}, err
		}
	}
	nodes = slices.Compact(slices.Sorted(slices.Values(nodes))) // a node is lost once
	view := h.view()
	cluster := h.of(view).Cluster()
	out := api.HAPlan{Lost: nodes, Moves: []api.HAPlacement{}, Down: []api.HAPlacement{}}
	planned := map[string]bool{}
	for _, pl := range place.WhatIf(cluster, nodes...) {
		planned[pl.Request.Name()] = true
		out.Moves = append(out.Moves, placement(pl))
	}
	for _, g := range view.Guests {
		if slices.Contains(nodes, g.Node) && !planned[g.SID()] {
			out.Down = append(out.Down, api.HAPlacement{SID: g.SID(), From: g.Node, Reason: whyDown(view, g)})
		}
	}
	online, quorum := h.votes(nodes)
	out.Quorate = online >= quorum
	return out, nil
}

// whyDown says why nobody would bring a guest back.
func whyDown(v ha.View, g ha.Guest) string {
	state, isHA := v.Resources[g.VMID]
	st := v.Statuses[g.VMID]
	switch {
	case !isHA || state == pveconf.HAIgnored:
		return "it is no HA resource: it waits for " + g.Node
	case g.Local != "":
		return "only " + g.Node + " has " + g.Local
	case st.State == ha.StatusError:
		return "it is in error: " + st.Reason
	case state != pveconf.HAStarted:
		return "it is not to run (" + string(state) + ")"
	}
	return "HA is disarmed for it"
}

// HAExplain implements api.HA.
func (h *haStatus) HAExplain(ctx context.Context, sid string) (api.HAExplanation, error) {
	id, err := h.configured.resource(sid)
	if err != nil {
		return api.HAExplanation{}, err
	}
	all, err := h.configured.HAResources(ctx)
	if err != nil {
		return api.HAExplanation{}, err
	}
	snap, view := h.mirror.Snapshot(), h.view()
	i := slices.IndexFunc(all, func(r api.HAResource) bool { return r.SID == id.SID() })
	if i < 0 {
		return api.HAExplanation{}, noResource(id)
	}
	st := view.Statuses[id].Status
	out := api.HAExplanation{
		HAResource: h.serviceStatus(snap, ownersIn(snap), all[i]), Since: st.Since, Hold: st.Hold, Failures: st.Failures, Tried: st.Tried,
		MoveFailures: st.MoveFailures, Away: st.Away, Command: commandOf(snap, id.SID()), Rules: rulesAbout(snap, id.SID()),
		Nodes: []api.HAVerdict{}, Log: []api.HADecision{},
	}
	out.Protected = out.Node != "" && view.Protected[id].Node == out.Node
	_, verdicts := h.of(view).Elsewhere(id)
	for _, v := range verdicts {
		out.Nodes = append(out.Nodes, api.HAVerdict{Node: v.Node, OK: v.OK, Chosen: v.Chosen, Reason: v.Reason})
	}
	for _, d := range st.Log {
		out.Log = append(out.Log, api.HADecision{
			Unix: d.Unix, By: d.By, State: string(d.State), Node: d.Node, Target: d.Target, Reason: d.Reason,
		})
	}
	return out, nil
}

// rulesAbout are the rules that name a resource, as sentences.
func rulesAbout(s mirror.Snapshot, sid string) []string {
	all, err := mirror.Decode(s, haRulesKey, pveconf.ParseHARules)
	if err != nil {
		return nil
	}
	var out []string
	for _, r := range all.Value {
		if slices.Contains(r.Resources, sid) && !r.Disabled {
			out = append(out, ruleSentence(r))
		}
	}
	return out
}

func ruleSentence(r pveconf.HARule) string {
	must := "should"
	if r.Strict {
		must = "must"
	}
	if r.Type == pveconf.NodeAffinity {
		var names []string
		for _, n := range r.Nodes {
			name := n.Name
			if n.Priority > 0 {
				name += fmt.Sprintf(" (priority %d)", n.Priority)
			}
			names = append(names, name)
		}
		return fmt.Sprintf("%s: %s %s run on %s", r.ID, strings.Join(r.Resources, ", "), must, strings.Join(names, ", "))
	}
	how := "share a " + string(r.Domain)
	if r.Affinity == pveconf.Negative {
		how = "not " + how
	}
	weight := ""
	if !r.Strict {
		weight = fmt.Sprintf(" (weight %d)", r.Weight)
	}
	return fmt.Sprintf("%s: %s %s %s%s", r.ID, strings.Join(r.Resources, ", "), must, how, weight)
}
