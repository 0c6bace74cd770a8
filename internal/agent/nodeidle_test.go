package agent

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
)

func TestANodeTellsWhichGuestsOutsideHADoNotRun(t *testing.T) {
	n, _, _ := startNode(t)
	tells := func(why string, want ...model.VMID) {
		t.Helper()
		n.m.idle.look(t.Context())
		n.follow()
		got := n.get(model.HAIdlePrefix + "n1")
		if len(want) == 0 && got == "" {
			return
		}
		if diff := cmp.Diff(string(mustJSON(ha.NodeIdle{BootID: n.a.boot, Guests: want})), got); diff != "" {
			t.Errorf("%s: %s", why, diff)
		}
	}
	n.delete(model.GuestConfigKey("n1", 100))
	tells("a node without guests")
	n.put(model.GuestConfigKey("n1", 101), "memory: 256\n")
	n.put(model.GuestConfigKey("n1", 100), "memory: 256\n")
	n.put(model.GuestConfigKey("n2", 102), "memory: 256\n")
	tells("two that do not run, and another node's", 100, 101)

	before := n.cluster.Revision()
	tells("nothing new", 100, 101)
	if after := n.cluster.Revision(); after != before {
		t.Error("what the record says already is written again")
	}

	unlock, err := n.m.operations.tasks.locks.tryLock(101, "start")
	must(t, err)
	tells("one that is being started", 100)
	unlock()
	n.m.procs.lost[101] = model.ErrUnavailable
	tells("one of which it is not known whether it runs", 100)
	delete(n.m.procs.lost, 101)
	n.put(haResourcesKey, "vm: 101\n\tstate stopped\n")
	tells("an HA resource", 100)
	n.put(haResourcesKey, "vm: 101\n\tstate ignored\n")
	tells("an HA resource that is ignored", 100, 101)
	n.runsAs(aRunningGuest())
	tells("one that runs", 101)
	n.delete(model.GuestConfigKey("n1", 101))
	tells("all run")
}

func TestTheManagerBelievesWhoDoesNotRun(t *testing.T) {
	n := haNode(t)
	n.m.manager.live = allOnline{Mirror: n.m.mirror}
	n.put(model.LivePrefix+"n2", `{"boot_id":"b2","epoch":1}`)
	n.put(model.GuestConfigKey("n2", 201), "memory: 256\n")
	n.put(model.GuestConfigKey("n1", 101), "memory: 256\n")
	n.put(model.GuestConfigKey("n1", 102), "memory: 256\ntemplate: 1\n")
	sees := func(why string, want ...model.VMID) {
		t.Helper()
		var got []model.VMID
		for _, g := range n.m.manager.view().Guests {
			if g.Idle {
				got = append(got, g.VMID)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", why, diff)
		}
	}
	sees("nobody has told anything, and a template never runs", 102)
	n.put(model.HAIdlePrefix+"n2", `{"boot_id":"b2","guests":[101,201]}`)
	sees("the owner says it, and of another node's guest it knows nothing", 102, 201)
	n.m.manager.live = allOnline{n.m.mirror, "n2"}
	sees("a silent node", 102)
	n.m.manager.live = allOnline{Mirror: n.m.mirror}
	for why, live := range map[string]string{
		"a node that was booted anew": `{"boot_id":"b3","epoch":1}`,
		"one that was cut off":        `{"boot_id":"b2","epoch":1,"fenced":true}`,
		"one that left":               `{"boot_id":"b2","epoch":1,"left":true}`,
	} {
		n.put(model.LivePrefix+"n2", live)
		sees(why, 102)
	}
}
