package beacon

import (
	"cmp"
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// steadyRoom is the part of a datagram that is kept for runs that did not change lately, so that they have their turn however
// much changes.
const steadyRoom = claimRoom / 4

// Recorder turns looks at a node's guests into claims. It is not safe for concurrent use; the zero value has seen nothing.
type Recorder struct {
	sampled time.Duration // the last look; 0 before the first
	runs    []*ownRun
	beat    uint64
}

type ownRun struct {
	Claim
	given time.Duration // Since as the caller said it
	told  uint64        // the last beat that told it
}

// Sample takes in which guests run. at is when the question was asked, on the node's clock, not when the answer came: a
// node that sleeps in between must not claim what it did after it. A guest whose Since is later waits for the next look.
// A Since from before the last look at which the guest did not run is not believed.
func (r *Recorder) Sample(at time.Duration, running []Guest) {
	at = at.Truncate(time.Millisecond)
	floor := r.sampled
	if r.sampled == 0 || at-r.sampled > Gap {
		floor = at // nobody looked before
		r.endAll()
	}
	seen := make(map[model.VMID]Guest, len(running))
	for _, g := range running {
		if g.Since <= at {
			seen[g.VMID] = g
		}
	}
	for _, run := range r.runs {
		if run.Ended {
			continue
		}
		g, ok := seen[run.VMID]
		if !ok || g.Epoch != run.Epoch || g.Revision != run.Revision || g.Since != run.given {
			run.Ended = true
			continue
		}
		run.Until = at
		delete(seen, run.VMID)
	}
	for _, g := range seen {
		r.runs = append(r.runs, newRun(g, at, floor))
	}
	r.runs = slices.DeleteFunc(r.runs, func(run *ownRun) bool { return run.Ended && at-run.Until > Keep })
	r.sampled = at
}

func newRun(g Guest, at, floor time.Duration) *ownRun {
	since := max(g.Since, floor)
	if g.Since == 0 {
		since = at
	}
	since = (since + time.Millisecond - 1).Truncate(time.Millisecond) // never earlier than it was
	return &ownRun{Claim: Claim{VMID: g.VMID, Epoch: g.Epoch, Revision: g.Revision, Since: since, Until: at}, given: g.Since}
}

func (r *Recorder) endAll() {
	for _, run := range r.runs {
		run.Ended = true
	}
}

// Sampled is when Sample was last called.
func (r *Recorder) Sampled() time.Duration { return r.sampled }

// All returns every claim, ended ones too, in no order.
func (r *Recorder) All() []Claim {
	claims := make([]Claim, len(r.runs))
	for i, run := range r.runs {
		claims[i] = run.Claim
	}
	return claims
}

// Beat returns the claims for the next message to everybody, as many as fit into a datagram: first the runs that began or
// ended within Keep, then the others, of each those that waited longest.
func (r *Recorder) Beat() []Claim {
	r.beat++
	slices.SortFunc(r.runs, func(a, b *ownRun) int {
		return cmp.Or(cmp.Compare(a.told, b.told), cmp.Compare(a.VMID, b.VMID), cmp.Compare(a.Since, b.Since))
	})
	var claims []Claim
	room := claimRoom
	tell := func(changed bool, leave int) {
		for _, run := range r.runs {
			size := claimSize(run.Claim, r.sampled)
			if run.told == r.beat || r.changed(run) != changed || room-size < leave {
				continue
			}
			room -= size
			claims = append(claims, run.Claim)
			run.told = r.beat
		}
	}
	tell(true, steadyRoom)
	tell(false, 0)
	tell(true, 0)
	return claims
}

func (r *Recorder) changed(run *ownRun) bool { return run.Ended || r.sampled-run.Since <= Keep }
