package ha_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// The dialogue tests talk to one state machine: they change the world, say what happens, and
// compare the actions, written as lines such as
//
//	move vm:100 n3→n1 [live 30 conf 100 prot 200 node 1]
//
// Reasons are left out, except where a test asks for them.

// step is what both machines have.
type step func(now time.Duration, ev ha.Event) []ha.Action

// dialogue is a conversation with one machine.
type dialogue struct {
	t    *testing.T
	now  time.Duration
	step step
	last []ha.Action // of the last event, and those before that were not answered
}

// says feeds ev and compares the actions.
func (d *dialogue) says(ev ha.Event, want ...string) {
	d.t.Helper()
	actions := d.step(d.now, ev)
	var got []string
	for _, a := range actions {
		got = append(got, line(a))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		d.t.Fatalf("at %s, after %T: actions differ (-want +got):\n%s", d.now, ev, diff)
	}
	d.last = append(d.last, actions...)
}

// given finds the action given out whose line begins with prefix, and forgets it.
func (d *dialogue) given(prefix string) ha.Action {
	d.t.Helper()
	for i, a := range d.last {
		if strings.HasPrefix(line(a), prefix) {
			d.last = slices.Delete(d.last, i, i+1)
			return a
		}
	}
	d.t.Fatalf("at %s: no action %q was given out", d.now, prefix)
	return nil
}

func (d *dialogue) done(prefix string, revision int64, want ...string) {
	d.t.Helper()
	d.says(ha.ActionDone{Action: d.given(prefix), Revision: revision}, want...)
}

func (d *dialogue) failed(prefix string, kind ha.FailKind, reason string, want ...string) {
	d.t.Helper()
	d.says(ha.ActionFailed{Action: d.given(prefix), Kind: kind, Reason: reason}, want...)
}

// reason compares the sentence of an action that was given out.
func (d *dialogue) reason(prefix, want string) {
	d.t.Helper()
	for _, a := range d.last {
		if strings.HasPrefix(line(a), prefix) {
			if diff := cmp.Diff(want, a.Why()); diff != "" {
				d.t.Errorf("reason of %q differs (-want +got):\n%s", prefix, diff)
			}
			return
		}
	}
	d.t.Errorf("no action %q was given out", prefix)
}

// line writes an action without its reason.
func line(a ha.Action) string {
	switch a := a.(type) {
	case ha.TakeManager:
		return fmt.Sprintf("take manager as %s term %d [manager %d]", a.Manager.Node, a.Manager.Term, a.IfRevision)
	case ha.Cut:
		return fmt.Sprintf("cut %s epoch %d by %s [live %d]", a.Node, a.NewLive.Epoch, a.NewLive.By, a.LiveRevision)
	case ha.Move:
		return fmt.Sprintf("move %s %s→%s [live %d conf %d prot %d node %d]", a.VMID.SID(), a.From, a.To, a.LiveRevision, a.ConfigRevision, a.ProtectedRevision, a.ToRevision)
	case ha.ClearIntent:
		return fmt.Sprintf("clear intent %s [intent %d]", a.VMID.SID(), a.Revision)
	case ha.SetStatus:
		return fmt.Sprintf("status %s %s on %s", a.VMID.SID(), a.Status.State, a.Status.Node)
	case ha.Acknowledge:
		return fmt.Sprintf("acknowledge %s [prot %d conf %d] written %v", a.VMID.SID(), a.Revision, a.ConfigRevision, a.Written)
	case ha.Unacknowledge:
		return fmt.Sprintf("unacknowledge %s [prot %d]", a.VMID.SID(), a.Revision)
	case ha.Start:
		return strings.TrimSpace(fmt.Sprintf("start %s attempt %d %s", a.VMID.SID(), a.Attempt, pills(a.Pills)))
	case ha.Stop:
		return "stop " + a.VMID.SID()
	case ha.Discard:
		return fmt.Sprintf("discard %s incoming %v", a.VMID.SID(), a.Incoming)
	case ha.AskFence:
		return "ask " + a.Node + " " + a.Method
	case ha.Shoot:
		return "shoot " + a.Node + " " + a.Method
	case ha.DropCommand:
		return fmt.Sprintf("refuse command %s [command %d]", a.VMID.SID(), a.Revision)
	case ha.Migrate:
		return fmt.Sprintf("migrate %s to %s", a.VMID.SID(), a.Target)
	case ha.Handover:
		return fmt.Sprintf("hand over %s to %s", a.VMID.SID(), a.To)
	case ha.Wake:
		return "wake " + a.At.String()
	default:
		return fmt.Sprintf("%#v", a)
	}
}

func pills(ps []ha.Pill) string {
	var out []string
	for _, p := range ps {
		out = append(out, fmt.Sprintf("pill %s:%d", p.Node, p.Epoch))
	}
	return strings.Join(out, " ")
}

// managerTalk is a dialogue with n1's manager. Its world has three nodes of 16 GiB with the storage nas,
// of which n1 manages and each renewed its record half a second ago.
type managerTalk struct {
	dialogue
	v ha.View
}

func talkToManager(t *testing.T) *managerTalk {
	m := ha.New("n1", ha.DefaultParams())
	d := &managerTalk{v: ha.View{
		Revision: 1000, Quorate: true, LeaseValid: true,
		Manager: model.Manager{Node: "n1", Term: 1}, ManagerRevision: 5,
		Members: []ha.Member{member("n1", 1, 10), member("n2", 2, 20), member("n3", 3, 30)},
	}}
	d.v.Resources = map[model.VMID]pveconf.HAState{}
	d.v.Protected = map[model.VMID]ha.Protected{}
	d.v.Intents = map[model.VMID]ha.Intent{}
	d.v.Statuses = map[model.VMID]ha.StatusRecord{}
	d.dialogue = dialogue{t: t, step: func(now time.Duration, ev ha.Event) []ha.Action {
		var out []ha.Action
		m, out = m.Step(now, ev)
		return out
	}}
	return d
}

func member(name string, revision, liveRevision int64) ha.Member {
	return ha.Member{
		Name: name, Revision: revision, MemoryMiB: 16384, Storages: []string{"nas"},
		Live: model.Live{BootID: "boot-" + name, Epoch: 4, Seq: 7}, LiveRevision: liveRevision,
		Silence: 500 * time.Millisecond, Why: "it renews", Level: ha.Level,
	}
}

// guest adds an HA resource with 2 GiB on nas, under guard on its node; file at revision id, record at id+100.
func (d *managerTalk) guest(id model.VMID, node string, state pveconf.HAState) {
	d.v.Guests = append(d.v.Guests, ha.Guest{VMID: id, Node: node, Revision: int64(id), MemoryMiB: 2048, Storages: []string{"nas"}})
	d.v.Resources[id] = state
	d.v.Protected[id] = ha.Protected{Protected: model.Protected{Node: node}, Revision: int64(id) + 100}
}

func (d *managerTalk) member(name string) *ha.Member {
	i := slices.IndexFunc(d.v.Members, func(m ha.Member) bool { return m.Name == name })
	return &d.v.Members[i]
}

// silent lets a node be silent for so long; from 11 s on it may be taken.
func (d *managerTalk) silent(name string, silence time.Duration) {
	m := d.member(name)
	m.Silence = silence
	m.MayTake = silence >= 11*time.Second
	m.Why = fmt.Sprintf("%s is silent", name)
	if m.MayTake {
		m.Why = fmt.Sprintf("%s was silent for a whole lease", name)
	}
}

// fenced makes the cut visible at a revision.
func (d *managerTalk) fenced(name string, revision int64) {
	m := d.member(name)
	m.Live.Epoch++
	m.Live.Fenced, m.Live.By, m.LiveRevision = true, "n1", revision
	d.v.Revision = max(d.v.Revision, revision)
}

// moved makes a move visible.
func (d *managerTalk) moved(id model.VMID, to string, revision int64) {
	for i := range d.v.Guests {
		if d.v.Guests[i].VMID == id {
			d.v.Guests[i].Node, d.v.Guests[i].Revision = to, revision
		}
	}
	d.v.Protected[id] = ha.Protected{Protected: model.Protected{Node: to}, Revision: revision}
	d.v.Revision = max(d.v.Revision, revision)
}

// view feeds a copy of the world, so that later changes do not reach the machine.
func (d *managerTalk) view(want ...string) {
	d.t.Helper()
	v := d.v
	v.Members = slices.Clone(v.Members)
	v.Guests = slices.Clone(v.Guests)
	v.Protected, v.Intents, v.Statuses = clone(v.Protected), clone(v.Intents), clone(v.Statuses)
	v.Resources = clone(v.Resources)
	d.says(v, want...)
}

func clone[K comparable, V any](m map[K]V) map[K]V {
	out := make(map[K]V, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}
