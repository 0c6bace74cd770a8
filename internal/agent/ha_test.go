package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/qmp/qmptest"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

// script is a machine whose step does what the test says.
type script struct {
	machine
	mu     sync.Mutex
	events []ha.Event // as they were fed
	steps  []time.Duration
	views  int
	slow   time.Duration // what a view takes
	cancel context.CancelFunc
	ended  chan struct{}
}

// play runs a machine in a bubble. next answers event number i.
func play(t *testing.T, next func(i int, ev ha.Event) []ha.Action, do func(context.Context, ha.Action) (int64, error), changes ...<-chan struct{}) *script {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &script{cancel: cancel, ended: make(chan struct{})}
	s.machine = machine{
		step: func(now time.Duration, ev ha.Event) []ha.Action {
			s.mu.Lock()
			s.events, s.steps = append(s.events, ev), append(s.steps, now)
			i := len(s.events) - 1
			s.mu.Unlock()
			return next(i, ev)
		},
		view: func() ha.Event {
			s.mu.Lock()
			s.views++
			view, slow := ha.View{Revision: int64(s.views)}, s.slow
			s.mu.Unlock()
			time.Sleep(slow)
			return view
		},
		do: do, log: func(ha.Action, error) {},
	}
	go func() { s.run(ctx, changes...); close(s.ended) }()
	return s
}

func (s *script) seen() []ha.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]ha.Event(nil), s.events...)
}

func TestEveryActionGetsExactlyOneAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const actions = 100 // more than the loop buffers
		outcome := func(id model.VMID) error {
			return []error{
				nil, store.ErrConflict, fmt.Errorf("start: %w", &lockedError{storage.ErrInUse}),
				model.Errorf(model.ErrBusy, "busy"), errors.New("it burns"),
			}[id%5]
		}
		s := play(t, func(i int, _ ha.Event) (out []ha.Action) {
			for id := model.VMID(0); i == 0 && id < actions; id++ {
				out = append(out, ha.Start{VMID: id})
			}
			return out
		}, func(_ context.Context, a ha.Action) (int64, error) {
			id := a.(ha.Start).VMID
			time.Sleep(time.Duration(id%7) * time.Second)
			return int64(id) + 1000, outcome(id)
		})
		time.Sleep(time.Minute)
		s.cancel()
		<-s.ended
		got := map[model.VMID][]ha.Event{}
		for _, ev := range s.seen() {
			switch ev := ev.(type) {
			case ha.ActionDone:
				got[ev.Action.(ha.Start).VMID] = append(got[ev.Action.(ha.Start).VMID], ev)
			case ha.ActionFailed:
				got[ev.Action.(ha.Start).VMID] = append(got[ev.Action.(ha.Start).VMID], ev)
			}
		}
		want := map[model.VMID][]ha.Event{}
		for id := model.VMID(0); id < actions; id++ {
			kind := []ha.FailKind{0, ha.FailConflict, ha.FailLocked, ha.FailConflict, ha.FailOther}[id%5]
			var ev ha.Event = ha.ActionDone{Action: ha.Start{VMID: id}, Revision: int64(id) + 1000}
			if err := outcome(id); err != nil {
				ev = ha.ActionFailed{Action: ha.Start{VMID: id}, Kind: kind, Reason: err.Error()}
			}
			want[id] = []ha.Event{ev}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

// A view of a large cluster takes longer than a transaction.
func TestAnswersThatComeInTogetherAreFollowedByOneView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const actions = 500
		s := play(t, func(i int, _ ha.Event) (out []ha.Action) {
			for id := model.VMID(0); i == 0 && id < actions; id++ {
				out = append(out, ha.Stop{VMID: id})
			}
			return out
		}, func(context.Context, ha.Action) (int64, error) {
			time.Sleep(time.Second)
			return 0, nil
		})
		s.mu.Lock()
		s.slow = 50 * time.Millisecond
		s.mu.Unlock()
		time.Sleep(time.Minute)
		s.cancel()
		<-s.ended
		answers, last := 0, ""
		for _, ev := range s.seen() {
			if last = fmt.Sprintf("%T", ev); last == "ha.ActionDone" {
				answers++
			}
		}
		if answers != actions || last != "ha.View" || s.views > 4 {
			t.Errorf("%d answers, %d views, %s is the last event", answers, s.views, last)
		}
	})
}

func TestAViewFollowsEachAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t, func(i int, _ ha.Event) []ha.Action {
			if i == 0 {
				return []ha.Action{ha.Stop{VMID: 100}, ha.Stop{VMID: 101}, ha.Stop{VMID: 102}}
			}
			return nil
		}, func(_ context.Context, a ha.Action) (int64, error) {
			time.Sleep(time.Duration(a.(ha.Stop).VMID) * time.Second)
			return 0, nil
		})
		time.Sleep(time.Hour)
		s.cancel()
		<-s.ended
		var kinds []string
		for _, ev := range s.seen() {
			kinds = append(kinds, fmt.Sprintf("%T", ev))
		}
		want := []string{"ha.View", "ha.ActionDone", "ha.View", "ha.ActionDone", "ha.View", "ha.ActionDone", "ha.View"}
		if diff := cmp.Diff(want, kinds); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAWakeFiresAndTheNextListReplacesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var at []time.Duration
		s := play(t, func(i int, _ ha.Event) []ha.Action {
			at = append(at, time.Since(start).Round(time.Second))
			switch i {
			case 0, 1:
				return []ha.Action{ha.Wake{At: sys.BootTime() + 10*time.Second}}
			case 2: // answered after 5 s, which comes before the wake and cancels it
				return []ha.Action{ha.Stop{VMID: 100}, ha.Wake{At: sys.BootTime() + time.Minute}}
			}
			return nil
		}, func(context.Context, ha.Action) (int64, error) { time.Sleep(5 * time.Second); return 0, nil })
		time.Sleep(time.Hour)
		s.cancel()
		<-s.ended
		want := []time.Duration{0, 10 * time.Second, 20 * time.Second, 25 * time.Second, 25 * time.Second}
		if diff := cmp.Diff(want, at); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAWakeThatIsDueDoesNotSpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t, func(int, ha.Event) []ha.Action { return []ha.Action{ha.Wake{At: 0}} }, nil)
		time.Sleep(time.Second)
		s.cancel()
		<-s.ended
		if n := len(s.seen()); n < 900 || n > 1100 {
			t.Errorf("in a second the machine was asked %d times", n)
		}
	})
}

func TestAChangeAsksForAView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := make(chan struct{}, 1), make(chan struct{}, 1)
		s := play(t, func(int, ha.Event) []ha.Action { return nil }, nil, one, two)
		for i, c := range []chan struct{}{one, two, one} {
			synctest.Wait()
			if n := len(s.seen()); n != i+1 {
				t.Errorf("%d views before change %d", n, i+1)
			}
			c <- struct{}{}
		}
		synctest.Wait()
		if n := len(s.seen()); n != 4 {
			t.Errorf("%d views after three changes", n)
		}
		s.cancel()
		<-s.ended
	})
}

func TestAMachineWaitsForWhatItHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := false
		s := play(t, func(i int, _ ha.Event) []ha.Action {
			if i == 0 {
				return []ha.Action{ha.Stop{VMID: 100}}
			}
			return nil
		}, func(ctx context.Context, _ ha.Action) (int64, error) {
			<-ctx.Done()
			time.Sleep(time.Minute) // the clean-up
			over = true
			return 0, ctx.Err()
		})
		synctest.Wait()
		s.cancel()
		<-s.ended
		if !over {
			t.Error("the loop ended before its action")
		}
	})
}

// haNode is a node with a shared storage, an HA resource of its own and one of n2's.
func haNode(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	n.storage("nas", "\tshared 1\n")
	n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2, Votes: 1, MemoryMiB: 4096})))
	n.put(model.GuestConfigKey("n1", 100), "memory: 256\nvirtio0: nas:100/vm-100-disk-0.raw\n")
	n.put(model.GuestConfigKey("n2", 200), "memory: 512\nvirtio0: nas:200/vm-200-disk-0.raw\n")
	n.put(haResourcesKey, "vm: 100\n\tstate started\n\nvm: 200\n\tstate stopped\n\nvm: 300\n\tstate ignored\n\nct: 400\n\tstate started\n")
	return n
}

// plainConfig is what haNode's resources say: nothing.
func plainConfig() map[model.VMID]ha.Resource {
	return map[model.VMID]ha.Resource{100: {MaxRestart: 1, MaxRelocate: 1}, 200: {MaxRestart: 1, MaxRelocate: 1}}
}

// defaultPolicy is that of a cluster without datacenter.cfg.
func defaultPolicy() ha.Policy {
	return ha.Policy{Shutdown: ha.ShutdownConditional, Balance: place.DefaultBalanceParams()}
}

func TestTheManagersViewShowsTheStoreAsOfOneRevision(t *testing.T) {
	n := haNode(t)
	n.put(model.ManagerKey, `{"node":"n2","term":4}`)
	n.put(model.LivePrefix+"n2", `{"boot_id":"b","epoch":3,"seq":1}`)
	n.put(model.ProtectedPrefix+"100", `{"node":"n1"}`)
	n.put(model.IntentPrefix+"200", `{"vmid":200,"source":"n2","target":"n1"}`)
	n.put(model.HAStatusPrefix+"vm:100", `{"state":"started","node":"n1"}`)
	v := n.m.manager.view()
	rev := func(key string) int64 { kv, _ := n.m.mirror.Snapshot().Get(key); return kv.ModRevision }
	members := map[string]ha.Member{}
	for _, m := range v.Members {
		m.Silence, m.Why, m.Wait, m.Heard = 0, "", 0, 0
		members[m.Name] = m
	}
	v.Members, v.Unix = nil, 0
	want := ha.View{
		Revision: n.cluster.Revision(), Quorate: true, Manager: model.Manager{Node: "n2", Term: 4}, ManagerRevision: rev(model.ManagerKey),
		Resources: map[model.VMID]pveconf.HAState{100: pveconf.HAStarted, 200: pveconf.HAStopped},
		Guests: []ha.Guest{
			{VMID: 100, Node: "n1", Revision: rev(model.GuestConfigKey("n1", 100)), MemoryMiB: 256, CPUs: 1, Storages: []string{"nas"}},
			{VMID: 200, Node: "n2", Revision: rev(model.GuestConfigKey("n2", 200)), MemoryMiB: 512, CPUs: 1, Storages: []string{"nas"}},
		},
		Config: plainConfig(), Commands: map[model.VMID]ha.CommandRecord{}, Policy: defaultPolicy(),
		Protected: map[model.VMID]ha.Protected{100: {Protected: model.Protected{Node: "n1"}, Revision: rev(model.ProtectedPrefix + "100")}},
		Intents:   map[model.VMID]ha.Intent{200: {Intent: model.Intent{VMID: 200, Source: "n2", Target: "n1"}, Revision: rev(model.IntentPrefix + "200")}},
		Statuses:  map[model.VMID]ha.StatusRecord{100: {Status: ha.Status{State: ha.StatusStarted, Node: "n1"}, Revision: rev(model.HAStatusPrefix + "vm:100")}},
	}
	if diff := cmp.Diff(want, v); diff != "" {
		t.Error(diff)
	}
	n2 := ha.Member{
		Name: "n2", Revision: rev(model.NodePrefix + "n2"), MemoryMiB: 4096, Storages: []string{"nas"},
		Live: model.Live{BootID: "b", Epoch: 3, Seq: 1}, LiveRevision: rev(model.LivePrefix + "n2"),
	}
	if diff := cmp.Diff(n2, members["n2"]); diff != "" || len(members) != 2 {
		t.Error(diff)
	}
}

func TestAGuestThatOnlyItsNodeCanRunSaysWhy(t *testing.T) {
	n := haNode(t)
	n.storage("local", "")
	for disks, want := range map[string]string{
		"virtio0: nas:100/a.raw\nscsi1: none,media=cdrom\n":  "",
		"virtio0: nas:100/a.raw\nvirtio1: local:100/b.raw\n": "virtio1 is on storage local, which is not shared",
		"virtio0: /dev/sdb\n":                                "virtio0 is the file /dev/sdb",
	} {
		conf, err := pveconf.ParseGuest([]byte(disks))
		must(t, err)
		set, err := n.m.starter.storages.known()
		must(t, err)
		if got := set.localReason(conf.Disks()); got != want {
			t.Errorf("%q: %q, want %q", disks, got, want)
		}
	}
}

// Without these files guests would look unprotected, or tied to their node.
func TestHADecidesNothingWhileItsConfigurationCannotBeRead(t *testing.T) {
	for _, key := range []string{
		haResourcesKey, storageCfgKey, model.ProtectedPrefix + "100", model.IntentPrefix + "100", model.LivePrefix + "n2",
		model.HARequestPrefix + "n2", model.HANodePrefix + "n2", model.HAModeKey,
	} {
		t.Run(key, func(t *testing.T) {
			n := haNode(t)
			for _, record := range []string{
				model.ProtectedPrefix + "100", model.IntentPrefix + "100", model.LivePrefix + "n2",
				model.HARequestPrefix + "n2", model.HANodePrefix + "n2", model.HAModeKey,
			} {
				n.put(record, "{}")
			}
			good := n.get(key)
			n.put(key, "not a section\n")
			if v := n.m.manager.view(); v.Quorate {
				t.Error("the manager decides")
			}
			if v := n.m.worker.view(); v.Quorate {
				t.Error("the worker decides")
			}
			n.put(key, good)
			if !n.m.manager.view().Quorate || !n.m.worker.view().Quorate {
				t.Error("nothing is decided with readable files either")
			}
			n.st.setQuorum(false)
			if n.m.manager.view().Quorate || n.m.worker.view().Quorate {
				t.Error("HA decides without a quorum")
			}
		})
	}
}

func TestTheManagerDecidesNothingWhileWhoIsManagerOrMemberCannotBeRead(t *testing.T) {
	for _, key := range []string{model.ManagerKey, model.NodePrefix + "n2"} {
		n := haNode(t)
		n.put(key, "{")
		if n.m.manager.view().Quorate {
			t.Errorf("without %s the manager decides", key)
		}
	}
}

// Nothing rests on what HA last said, so a damaged status is written over and stops nobody.
func TestADamagedStatusStopsNobody(t *testing.T) {
	n := haNode(t)
	rev := n.put(model.HAStatusPrefix+"vm:100", "{")
	for _, got := range []map[model.VMID]ha.StatusRecord{n.m.manager.view().Statuses, n.m.worker.view().Statuses} {
		if diff := cmp.Diff(map[model.VMID]ha.StatusRecord{100: {Revision: rev}}, got); diff != "" {
			t.Error(diff)
		}
	}
	if !n.m.manager.view().Quorate || !n.m.worker.view().Quorate {
		t.Error("nothing is decided")
	}
}

func TestTheWorkersViewShowsThisNodesGuests(t *testing.T) {
	n := haNode(t)
	g := n.startGuard()
	g.has(lease.GroupStatus{Group: lease.Group{Name: "100"}, State: lease.Running})
	must(t, n.m.live.Refresh(t.Context()))
	n.runs(100)
	n.runs(777)
	n.put(model.LivePrefix+"n2", `{"boot_id":"b","epoch":5,"fenced":true}`)
	n.put(model.LivePrefix+"n3", `{"boot_id":"b","epoch":6}`)
	unlock, err := n.m.worker.locks.tryLock(100, "start")
	must(t, err)
	defer unlock()
	if v := n.m.worker.view(); v.LeaseValid {
		t.Error("the lease is valid without one")
	}
	n.leased(2)
	v := n.m.worker.view()
	v.Unix = 0
	rev := func(key string) int64 { kv, _ := n.m.mirror.Snapshot().Get(key); return kv.ModRevision }
	want := ha.LocalView{
		Revision: n.cluster.Revision(), Quorate: true, LeaseValid: true,
		Guests: []ha.Guest{{VMID: 100, Node: "n1", Revision: rev(model.GuestConfigKey("n1", 100)), MemoryMiB: 256, CPUs: 1, Storages: []string{"nas"}}},
		Config: plainConfig(), Commands: map[model.VMID]ha.CommandRecord{}, Policy: defaultPolicy(),
		Members:   map[string]int64{"n1": rev(model.NodePrefix + "n1"), "n2": rev(model.NodePrefix + "n2")},
		Resources: map[model.VMID]pveconf.HAState{100: pveconf.HAStarted, 200: pveconf.HAStopped},
		Protected: map[model.VMID]ha.Protected{}, Intents: map[model.VMID]ha.Intent{}, Statuses: map[model.VMID]ha.StatusRecord{},
		Fenced:    map[string]uint64{"n2": 5},
		Processes: map[model.VMID]ha.Process{100: {Guarded: true}, 777: {}},
		Busy:      map[model.VMID]string{100: "start"},
	}
	if diff := cmp.Diff(want, v); diff != "" {
		t.Error(diff)
	}
}

// The guard may have let go of a guest, or kept one, without this agent's doing.
func TestTheWorkersViewShowsWhomTheGuardHas(t *testing.T) {
	n := haNode(t)
	g := n.startGuard()
	g.has(lease.GroupStatus{Group: lease.Group{Name: "101"}, State: lease.Running}, lease.GroupStatus{Group: lease.Group{Name: "102"}, State: lease.Killing})
	for id := model.VMID(100); id <= 102; id++ {
		n.runs(id)
	}
	must(t, n.m.live.Protect(t.Context(), lease.Group{Name: "100"}))
	if !n.m.worker.view().Processes[100].Guarded {
		t.Error("what the guard has just confirmed is not shown")
	}
	must(t, n.m.live.Refresh(t.Context()))
	want := map[model.VMID]ha.Process{100: {}, 101: {Guarded: true}, 102: {}}
	if diff := cmp.Diff(want, n.m.worker.view().Processes); diff != "" {
		t.Error(diff)
	}
}

// A machine in trouble has a guard that answers late or never; the worker must go on with what it knows.
func TestAViewDoesNotWaitForAGuardThatHangs(t *testing.T) {
	n := haNode(t)
	g := n.startGuard()
	must(t, n.m.live.Protect(t.Context(), lease.Group{Name: "100"}))
	n.runs(100)
	hang := make(chan struct{})
	g.answers(func(guardCall) error { <-hang; return nil })
	defer close(hang)
	start := time.Now()
	if v := n.m.worker.view(); !v.Processes[100].Guarded || time.Since(start) > 200*time.Millisecond {
		t.Errorf("after %v the worker sees %+v", time.Since(start), v.Processes)
	}
}

func TestAMoveTakesFileAndProtectionAlong(t *testing.T) {
	n := haNode(t)
	n.put(model.ProtectedPrefix+"200", `{"node":"n2"}`)
	n.put(model.LivePrefix+"n2", `{"boot_id":"b","epoch":5,"fenced":true}`)
	rev := func(key string) int64 { kv, _ := n.m.mirror.Snapshot().Get(key); return kv.ModRevision }
	from, to := model.GuestConfigKey("n2", 200), model.GuestConfigKey("n1", 200)
	file := n.get(from)
	good := ha.Move{
		VMID: 200, From: "n2", To: "n1", LiveRevision: rev(model.LivePrefix + "n2"), ConfigRevision: rev(from),
		ProtectedRevision: rev(model.ProtectedPrefix + "200"), ToRevision: rev(model.NodePrefix + "n1"),
	}
	before := n.dump()
	for name, change := range map[string]func(*ha.Move){
		"the node is back":        func(a *ha.Move) { a.LiveRevision-- },
		"the file changed":        func(a *ha.Move) { a.ConfigRevision-- },
		"the guest is taken":      func(a *ha.Move) { a.ProtectedRevision-- },
		"the target was removed":  func(a *ha.Move) { a.ToRevision-- },
		"the file is not there":   func(a *ha.Move) { a.From = "n3" },
		"the target has one, too": func(a *ha.Move) { a.VMID, a.From = 100, "n1" },
	} {
		a := good
		change(&a)
		if _, err := n.m.manager.do(t.Context(), a); failKind(err) != ha.FailConflict && !errors.Is(err, model.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(before, n.dump()); diff != "" {
			t.Fatalf("%s: %s", name, diff)
		}
	}
	got, err := n.m.manager.do(t.Context(), good)
	must(t, err)
	if got != n.cluster.Revision() {
		t.Errorf("the answer names revision %d", got)
	}
	if n.get(from) != "" || n.get(to) != file || n.get(model.ProtectedPrefix+"200") != `{"node":"n1"}` {
		t.Errorf("after the move: %v", n.dump().Keys)
	}
}

func TestTheRecordGoesBeforeTheGuardIsTold(t *testing.T) {
	n := haNode(t)
	g := n.startGuard()
	rev := n.put(model.ProtectedPrefix+"100", `{"node":"n1"}`)
	g.answers(func(c guardCall) error {
		if c.Op == "unprotect" && n.get(model.ProtectedPrefix+"100") != "" {
			t.Error("the guard lets go of a guest that may still be taken over")
		}
		return nil
	})
	if _, err := n.m.worker.do(t.Context(), ha.Unacknowledge{VMID: 100, Revision: rev - 1}); !errors.Is(err, store.ErrConflict) {
		t.Error(err)
	}
	if calls := g.calls("unprotect"); len(calls) > 0 {
		t.Errorf("the guard was told although the record changed: %v", calls)
	}
	_, err := n.m.worker.do(t.Context(), ha.Unacknowledge{VMID: 100, Revision: rev})
	must(t, err)
	if calls := g.calls("unprotect"); len(calls) != 1 || calls[0].Name != "100" || n.get(model.ProtectedPrefix+"100") != "" {
		t.Errorf("the guard was told %v", calls)
	}
}

func TestAWorkersActionWaitsForNobodysLock(t *testing.T) {
	n := haNode(t)
	unlock, err := n.m.worker.locks.tryLock(100, "migration to n2")
	must(t, err)
	defer unlock()
	for _, a := range []ha.Action{ha.Start{VMID: 100}, ha.Stop{VMID: 100}, ha.Discard{VMID: 100}, ha.Acknowledge{VMID: 100, Node: "n1"}, ha.Unacknowledge{VMID: 100}} {
		if _, err := n.m.worker.do(t.Context(), a); failKind(err) != ha.FailConflict {
			t.Errorf("%T: %v", a, err)
		}
	}
}

// A QEMU that this node comes upon and ends may have run while the guest's owner ran it too.
func TestARunningGuestOfAnotherNodeThatIsEndedRaisesTheAlarm(t *testing.T) {
	for name, c := range map[string]struct {
		status    string
		incoming  bool
		frozen    bool
		protected string
		want      bool
	}{
		"running":                                 {status: "running", want: true},
		"running, and protected there":            {status: "running", protected: "n2", want: true},
		"running, and the owner waits for this":   {status: "running", protected: "n1"},
		"a source whose guest has migrated":       {status: "postmigrate"},
		"a target that waits":                     {status: "inmigrate"},
		"a target that nobody has settled yet":    {status: "running", incoming: true},
		"frozen, whatever QEMU would say of that": {status: "running", frozen: true},
		"paused": {status: "paused"},
	} {
		t.Run(name, func(t *testing.T) {
			n, _, _ := startNode(t)
			n.put(model.GuestConfigKey("n2", 100), n.get(model.GuestConfigKey("n1", 100)))
			n.delete(model.GuestConfigKey("n1", 100))
			if c.protected != "" {
				n.put(model.ProtectedPrefix+"100", string(mustJSON(model.Protected{Node: c.protected})))
			}
			n.runsAs(aRunningGuest())
			p := n.m.procs.get(100)
			p.incoming.Store(c.incoming)
			if c.frozen {
				must(t, os.MkdirAll(n.paths.cgroupOf("100"), 0o700))
				must(t, os.WriteFile(filepath.Join(n.paths.cgroupOf("100"), "cgroup.events"), []byte("populated 1\nfrozen 1\n"), 0o600))
			}
			room := qmptest.NewRoom()
			t.Cleanup(room.Close)
			q := room.Start("n1")
			q.Handle("query-status", func(json.RawMessage) (any, error) {
				return map[string]any{"status": c.status, "running": c.status == "running"}, nil
			})
			must(t, q.Listen(t.Context(), p.Spec().QMPSocket()))
			var alarms []string
			n.m.worker.found = func(id model.VMID, owner string, started time.Time) {
				alarms = append(alarms, fmt.Sprint(id, " of ", owner, " ", started.Equal(p.Facts().Started)))
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*strayLimit)
			defer cancel()
			_, _ = n.m.worker.do(ctx, ha.Discard{VMID: 100}) // there is no cgroup by which it could be killed
			var want []string
			if c.want {
				want = []string{"100 of n2 true"}
			}
			if diff := cmp.Diff(want, alarms); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNothingIsDiscardedThatMayBeEntitled(t *testing.T) {
	n := haNode(t)
	n.runs(100) // this node's own guest
	n.runs(200)
	n.put(model.IntentPrefix+"200", `{"vmid":200,"source":"n2","target":"n1"}`)
	for _, a := range []ha.Discard{{VMID: 100}, {VMID: 100, Incoming: true}, {VMID: 200}} {
		if _, err := n.m.worker.do(t.Context(), a); !errors.Is(err, store.ErrConflict) {
			t.Errorf("%+v: %v", a, err)
		}
	}
}
