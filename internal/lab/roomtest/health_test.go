//go:build room

package roomtest

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/sys"
)

// In a room of its own, as nodes that were in trouble three times are in quarantine.
func TestGuestsAreHelpedWhenTheyOrTheirNodeAreIll(t *testing.T) {
	inRoomOfItsOwn(t, "ill", []course{
		{"a guest that panicked is reset by policy", func(r *room) { panicked(r) }},
		{"a guest whose network is lost moves live", func(r *room) { guestLinkDown(r) }},
		{"a guest is started elsewhere when its node has lost the storage", func(r *room) {
			if took := storageFails(r); took > 30*time.Second {
				r.t.Errorf("it took %v", took)
			}
		}},
		{"nobody is moved when all have lost the storage", nobodyHasTheStorage},
	})
}

// nobodyHasTheStorage for long enough that each node tells it. The guests' files are open, so they run on.
func nobodyHasTheStorage(r *room) {
	type before struct {
		g    *guest
		qemu process
		l    *ledger
	}
	var guests []before
	for i, node := range r.names[:2] {
		g := r.Guest(model.VMID(100 + i)).On(node).Protected()
		guests = append(guests, before{g, g.QEMU(), g.Ledger()})
	}
	r.waitOut(tellsLoss)
	var back []func()
	for _, n := range r.names {
		back = append(back, r.loseStorage(n, fails))
	}
	r.waitOut(40 * time.Second)
	for _, f := range back {
		f()
	}
	r.AllWell()
	for _, b := range guests {
		if p := b.g.QEMU(); p.pid != b.qemu.pid {
			r.t.Errorf("guest %d was restarted: %v, before %v", b.g.id, &p, &b.qemu)
		}
		b.l.MustGoOn(patience)
		b.l.MustBeWhole()
	}
}

// tellsLoss is longer than a node's lease must have been valid until it tells what it lost.
const tellsLoss = 20 * time.Second

// guestLinkDown is the time from the loss of the cable that guests use until the guest runs elsewhere, with its memory.
func guestLinkDown(r *room) time.Duration {
	g := r.Guest(100).On("n2").Protected()
	r.waitOut(tellsLoss)
	boot, l := g.MustAnswer(patience).BootID, g.Ledger()
	since := r.CutNetwork("n2", lab.Mgmt)
	var took time.Duration
	r.Eventually("guest 100 has left n2", patience, func() error {
		st, err := g.HA()
		if err == nil && (st.Node == "n2" || st.Status != "started") {
			err = fmt.Errorf("%s on %s: %s", st.Status, st.Node, st.Reason)
		}
		took = time.Since(since)
		return err
	})
	if now := g.MustAnswer(patience).BootID; now != boot {
		r.t.Error("the guest was restarted")
	}
	l.MustGoOn(patience)
	l.MustBeWhole()
	return took
}

func storageFails(r *room) time.Duration { return storageLost(r, fails) }

// storageLost is the time from the loss of guest 100's storage on n2 until the guest's QEMU is started elsewhere.
func storageLost(r *room, how loss) time.Duration {
	g := r.Guest(100).On("n2").Protected()
	r.waitOut(tellsLoss)
	l := g.Ledger()
	since := time.Now()
	defer r.loseStorage("n2", how)()
	took := g.StartedAgain(since)
	g.MustAnswer(patience)
	l.MustGoOn(patience)
	l.MustBeWhole()
	return took
}

// loss is what comes of opening a file on a storage that is lost.
type loss bool

const (
	hangs loss = false
	fails loss = true
)

// loseStorage puts a file system of which nobody answers over the directory of the storage on a node: what is opened there hangs, or
// fails once nobody could answer any more. Files that are open stay so. The function that it returns gives the storage back; the end of the test does too.
func (r *room) loseStorage(node string, how loss) (back func()) {
	const dir = "/srv/nas"
	r.t.Helper()
	var f *os.File
	r.insideOf(node, func() (err error) {
		if f, err = os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
			return err
		}
		return unix.Mount("lost", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", f.Fd()))
	})
	back = sync.OnceFunc(func() {
		_ = f.Close()
		r.insideOf(node, func() error { return unix.Unmount(dir, unix.MNT_DETACH) })
	})
	r.t.Cleanup(back)
	if how == fails {
		_ = f.Close()
	}
	return back
}

// insideOf runs f on a thread that sees the files of a node.
func (r *room) insideOf(node string, f func() error) {
	r.t.Helper()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", r.initOf(node)))
	if err != nil {
		r.t.Fatal(err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() { // its thread ends with it
		err := sys.EnterNamespaces([]*os.File{ns})
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		r.t.Fatalf("inside of %s: %v", node, err)
	}
}

// sick is a guest with a guest agent and the policy to reset it.
func (r *room) sick() *guest {
	r.t.Helper()
	g := r.Guest(103)
	g.params = map[string]string{"agent": "1"}
	g.On("n2").Protected()
	if err := r.API("n1").HASet(r.ctx(5*time.Second), g.id.SID(), api.Edit{Set: map[string]string{"reset-on": "panicked,silent"}}); err != nil {
		r.t.Fatal(err)
	}
	return g
}

// fallIll asks the guest for an illness and returns how long after the worker has reset it.
func (g *guest) fallIll(request string) time.Duration {
	r := g.r
	boot := g.MustAnswer(patience).BootID
	since := time.Now()
	if err := g.get(request, new(any)); err != nil {
		r.t.Logf("%s: %v", request, err) // the answer is no JSON, or does not come any more
	}
	took := r.Logged("n2", agentUnit, since, "reset "+g.id.SID()).Sub(since)
	r.Eventually("the guest has booted again", patience, func() error {
		st, err := g.Stats()
		if err == nil && st.BootID == boot {
			err = errors.New("it has not")
		}
		return err
	})
	return took
}

func panicked(r *room) time.Duration {
	return r.sick().fallIll("/panic")
}

// StartedAgain waits for a QEMU of the guest that was started after a fault and runs, and returns how long after.
func (g *guest) StartedAgain(fault time.Time) time.Duration {
	g.r.t.Helper()
	var found process
	g.r.Eventually(fmt.Sprintf("guest %d is started again", g.id), patience, func() error {
		for _, p := range g.r.sampler.alive(g.id) {
			if !p.frozen && p.started.After(fault) {
				found = p
				return nil
			}
		}
		return fmt.Errorf("%v", g.Processes(fault))
	})
	took := found.started.Sub(fault)
	g.r.t.Logf("QEMU of guest %d started on %s %v after the fault", g.id, found.node, took.Round(time.Millisecond))
	return took
}

// waitOut lets time pass that a fault needs, or needs before it.
func (r *room) waitOut(d time.Duration) { r.Throughout(d, "", nil) }
