//go:build room

package roomtest

import (
	"fmt"
	"testing"
	"time"
)

func TestASilenceOfEightSecondsMovesAndRestartsNothing(t *testing.T) {
	r := open(t)
	g := r.Guest(100).On("n3").Protected()
	before, boot, epoch := g.QEMU(), g.MustAnswer(patience).BootID, r.epoch("n3")
	l := g.Ledger()
	since := r.Cut("n3")
	r.Throughout(8*time.Second, "", nil)
	plugged := r.Plug("n3")
	r.Eventually("n3 renews its lease and its guest runs", patience, func() error {
		if err := r.wellAt("n1"); err != nil {
			return err
		}
		row, err := g.FindAt("n1")
		if err == nil && (row.Frozen || row.Status != "running") {
			err = fmt.Errorf("%+v", row)
		}
		return err
	})
	st := g.MustAnswer(patience)
	t.Logf("all is well %v after the cables were plugged in", time.Since(plugged).Round(time.Millisecond))
	if st.BootID != boot {
		t.Errorf("the guest booted again")
	}
	if ps := g.Processes(since); len(ps) != 1 || ps[0].pid != before.pid || ps[0].node != "n3" {
		t.Errorf("it had the process %v before, and since then %v", before, ps)
	}
	if now := r.epoch("n3"); now != epoch {
		t.Errorf("n3 was fenced: epoch %d, before %d", now, epoch)
	}
	l.MustGoOn(patience)
	l.MustBeWhole()
}

func TestASilenceOfThirtySecondsRestartsTheGuestElsewhereOnce(t *testing.T) {
	r := open(t)
	g := r.Guest(100).On("n3").Protected()
	before, boot, epoch := g.QEMU(), g.MustAnswer(patience).BootID, r.epoch("n3")
	l := g.Ledger()
	since := r.Cut("n3")
	g.MustRunElsewhere("n3", since)
	after := g.MustAnswer(20*time.Second - time.Since(since))
	t.Logf("the guest answers %v after the cut", time.Since(since).Round(time.Millisecond))
	r.Throughout(30*time.Second-time.Since(since), "", nil)
	plugged := r.Plug("n3")
	r.AllWell()
	t.Logf("all is well %v after the cables were plugged in", time.Since(plugged).Round(time.Millisecond))
	if after.BootID == boot {
		t.Error("the guest answers with the old boot id")
	}
	if now := r.epoch("n3"); now != epoch+1 {
		t.Errorf("n3 has epoch %d, want %d", now, epoch+1)
	}
	g.MustHaveMovedOnce(since, before)
	l.MustBeWhole()
}

// epoch is how often a node was fenced.
func (r *room) epoch(node string) uint64 {
	r.t.Helper()
	for _, n := range r.Cluster("n1").Nodes {
		if n.Name == node {
			return n.Epoch
		}
	}
	r.t.Fatalf("no node %s", node)
	return 0
}
