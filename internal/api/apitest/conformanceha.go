package apitest

import (
	"slices"
	"testing"
	"time"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
)

// stale is the digest of no file.
const stale = "0123456789012345678901234567890123456789"

// protect makes the own guest an HA resource, whether or not it is one.
func protect(t *testing.T, w World) string {
	t.Helper()
	sid := w.Own.SID()
	if _, err := find(t, w, sid); err != nil {
		noError(t, "HAAdd", w.Backend.HA.HAAdd(t.Context(), api.HAResource{SID: sid, State: "started"}))
		w.settle()
	}
	return sid
}

func (w World) settle() {
	if w.Settle != nil {
		w.Settle()
	}
}

func find(t *testing.T, w World, sid string) (api.HAResource, error) {
	t.Helper()
	all, err := w.Backend.HA.HAResources(t.Context())
	noError(t, "HAResources", err)
	i := slices.IndexFunc(all, func(r api.HAResource) bool { return r.SID == sid })
	if i < 0 {
		return api.HAResource{}, model.ErrNotFound
	}
	return all[i], nil
}

func testResources(t *testing.T, w World) {
	sid := protect(t, w)
	r, err := find(t, w, sid)
	noError(t, "what was added", err)
	if r.State != "started" || len(r.Digest) != 40 {
		t.Errorf("%+v", r)
	}
	h := w.Backend.HA
	kindIs(t, "HAAdd again", h.HAAdd(t.Context(), api.HAResource{SID: sid, State: "started"}), model.ErrExists)
	kindIs(t, "HASet of another file", h.HASet(t.Context(), sid, api.Edit{Set: map[string]string{"state": "stopped"}, Digest: stale}), model.ErrConflict)
	noError(t, "HASet", h.HASet(t.Context(), sid, api.Edit{Set: map[string]string{"max_restart": "2"}, Digest: r.Digest}))
	noError(t, "HARemove", h.HARemove(t.Context(), sid, true))
	w.settle()
	if _, err := find(t, w, sid); err == nil {
		t.Errorf("%s is still there", sid)
	}
}

func testNoResource(t *testing.T, w World) {
	sid := w.Free.SID()
	b, ctx := w.Backend, t.Context()
	kindIs(t, "HASet", b.HA.HASet(ctx, sid, api.Edit{Set: map[string]string{"state": "stopped"}}), model.ErrNotFound)
	kindIs(t, "HARemove", b.HA.HARemove(ctx, sid, false), model.ErrNotFound)
	_, err := b.HA.HAExplain(ctx, sid)
	kindIs(t, "HAExplain", err, model.ErrNotFound)
	_, err = b.Services.Move(ctx, sid, "migrate", w.Member)
	kindIs(t, "Move", err, model.ErrNotFound)
	kindIs(t, "StopService", b.Services.StopService(ctx, sid, time.Second), model.ErrNotFound)
	kindIs(t, "AcknowledgeAlarms", ignoreUnavailable(b.Alarms.AcknowledgeAlarms(ctx, sid)), model.ErrNotFound)
}

// ignoreUnavailable: a detector that does not run knows no guest either.
func ignoreUnavailable(err error) error {
	if model.KindOf(err) == "unavailable" {
		return model.Errorf(model.ErrNotFound, "%v", err)
	}
	return err
}

func testRules(t *testing.T, w World) {
	sid := protect(t, w)
	b, ctx := w.Backend.Rules, t.Context()
	before, err := b.Rules(ctx)
	noError(t, "Rules", err)
	rule := api.Section{Type: "node-affinity", ID: "conformance", Values: map[string]string{"resources": sid, "nodes": w.Member + ":2"}}
	noError(t, "AddRule", b.AddRule(ctx, rule))
	w.settle()
	kindIs(t, "AddRule again", b.AddRule(ctx, rule), model.ErrExists)
	after, err := b.Rules(ctx)
	noError(t, "Rules", err)
	if len(after.List) != len(before.List)+1 || len(after.Digest) != 40 {
		t.Fatalf("before %+v, after %+v", before, after)
	}
	got := after.List[len(after.List)-1]
	if got.ID != rule.ID || got.Type != rule.Type || got.Values["resources"] != sid || got.Values["nodes"] != w.Member+":2" {
		t.Errorf("%+v", got)
	}
	kindIs(t, "SetRule of another file", b.SetRule(ctx, rule.ID, api.Edit{Set: map[string]string{"strict": "1"}, Digest: stale}), model.ErrConflict)
	noError(t, "SetRule", b.SetRule(ctx, rule.ID, api.Edit{Set: map[string]string{"strict": "1"}, Digest: after.Digest}))
	noError(t, "RemoveRule", b.RemoveRule(ctx, rule.ID))
	w.settle()
	kindIs(t, "RemoveRule again", b.RemoveRule(ctx, rule.ID), model.ErrNotFound)
	kindIs(t, "SetRule of none", b.SetRule(ctx, rule.ID, api.Edit{Set: map[string]string{"strict": "1"}}), model.ErrNotFound)
	_, err = b.Groups(ctx)
	noError(t, "Groups", err)
}

func testControl(t *testing.T, w World) {
	sid := protect(t, w)
	c, ctx := w.Backend.Nodes, t.Context()
	rack := "r1"
	_, err := w.Backend.Services.Move(ctx, sid, "migrate", "stranger")
	kindIs(t, "Move", err, model.ErrNotFound)
	kindIs(t, "Maintenance", c.Maintenance(ctx, "stranger", true), model.ErrNotFound)
	kindIs(t, "Disarm", c.Disarm(ctx, api.HADisarm{Mode: "freeze", Node: "stranger"}), model.ErrNotFound)
	kindIs(t, "Arm", c.Arm(ctx, "stranger"), model.ErrNotFound)
	kindIs(t, "Label", c.Label(ctx, "stranger", &rack, nil), model.ErrNotFound)
	_, err = w.Backend.HA.HAWhatIf(ctx, []string{w.Member, "stranger"})
	kindIs(t, "HAWhatIf", err, model.ErrNotFound)
	_, err = w.Backend.Fencing.FenceTest(ctx, "stranger", false)
	kindIs(t, "FenceTest", err, model.ErrNotFound)
	noError(t, "Maintenance on", c.Maintenance(ctx, w.Member, true))
	noError(t, "Maintenance off", c.Maintenance(ctx, w.Member, false))
	noError(t, "Disarm", c.Disarm(ctx, api.HADisarm{Mode: "ignore", For: time.Minute}))
	noError(t, "Arm", c.Arm(ctx, ""))
	noError(t, "Arm again", c.Arm(ctx, ""))
	noError(t, "Label", c.Label(ctx, w.Member, &rack, nil))
	w.settle() // nothing is stopped while HA is disarmed
	noError(t, "StopService", w.Backend.Services.StopService(ctx, sid, 0))
	plan, err := w.Backend.HA.HAWhatIf(ctx, []string{w.Member})
	noError(t, "HAWhatIf", err)
	if !slices.Equal(plan.Lost, []string{w.Member}) || plan.Moves == nil || plan.Down == nil {
		t.Errorf("%+v", plan)
	}
}

func testFencing(t *testing.T, w World) {
	b, ctx := w.Backend.Fencing, t.Context()
	old, err := b.FenceFile(ctx)
	noError(t, "FenceFile", err)
	text := "ipmi: bmc\n\tnode " + w.Member + "\n\taddress 10.0.9.2\n\tuser sauh\n\tpassword-file priv/fence/bmc\n"
	kindIs(t, "SetFenceFile of another file", b.SetFenceFile(ctx, text, stale), model.ErrConflict)
	noError(t, "SetFenceFile", b.SetFenceFile(ctx, text, old.Digest))
	w.settle()
	got, err := b.FenceFile(ctx)
	noError(t, "FenceFile", err)
	if got.Text != text || len(got.Digest) != 40 {
		t.Errorf("%+v", got)
	}
	noError(t, "SetFenceSecret", b.SetFenceSecret(ctx, "bmc", "hush"))
	noError(t, "SetFenceMethod", b.SetFenceMethod(ctx, api.Section{ID: "bmc"}, api.Edit{Set: map[string]string{"timeout": "20"}}, ""))
	noError(t, "SetFenceMethod with a password", b.SetFenceMethod(ctx, api.Section{ID: "bmc"}, api.Edit{Set: map[string]string{"delay": "1"}}, "hush"))
	kindIs(t, "RemoveFenceMethod", b.RemoveFenceMethod(ctx, "none"), model.ErrNotFound)
	noError(t, "RemoveFenceMethod", b.RemoveFenceMethod(ctx, "bmc"))
	_, err = b.FenceMethods(ctx)
	noError(t, "FenceMethods", err)
}

func testOptions(t *testing.T, w World) {
	b, ctx := w.Backend.Options, t.Context()
	_, digest, err := b.Options(ctx)
	noError(t, "Options", err)
	e := api.Edit{Set: map[string]string{"ha": "shutdown_policy=migrate"}, Digest: stale}
	kindIs(t, "SetOptions of another file", b.SetOptions(ctx, e), model.ErrConflict)
	e.Digest = digest
	noError(t, "SetOptions", b.SetOptions(ctx, e))
	w.settle()
	values, _, err := b.Options(ctx)
	noError(t, "Options", err)
	if values["ha"] != "shutdown_policy=migrate" {
		t.Errorf("%v", values)
	}
}

func testStatus(t *testing.T, w World) {
	sid := protect(t, w)
	st, err := w.Backend.HA.HAStatus(t.Context())
	noError(t, "HAStatus", err)
	for _, name := range []string{w.Backend.Peers.LocalNode(), w.Member} {
		if !slices.ContainsFunc(st.Nodes, func(n api.HANodeStatus) bool { return n.Node == name && n.State != "" }) {
			t.Errorf("%s is not in %+v", name, st.Nodes)
		}
	}
	i := slices.IndexFunc(st.Services, func(r api.HAResource) bool { return r.SID == sid })
	if i < 0 || st.Services[i].Node != w.Backend.Peers.LocalNode() {
		t.Errorf("%s is not in %+v", sid, st.Services)
	}
	if st.Tolerance == nil {
		t.Error("it does not say how many nodes may fail")
	}
	e, err := w.Backend.HA.HAExplain(t.Context(), sid)
	noError(t, "HAExplain", err)
	if e.SID != sid || e.Nodes == nil || e.Log == nil {
		t.Errorf("%+v", e)
	}
	_, err = w.Backend.Alarms.Alarms(t.Context())
	noError(t, "Alarms", err)
}
