// Package load turns readings of counters into what a node and its guests use, and says when that is worth telling the
// others, and how long what was told counts.
//
// It is pure: it reads no counter, no clock and no store (internal/agent does), and compares no nodes: that is package place.
//
// Invariants: ages are differences on one node's own clock, never of two clocks; a record of an earlier boot, of a node that
// was cut off, or one that is too old says nothing; a guest counts on exactly one node, that which owns it by now, so what a
// moved guest uses moves with it at once. Start reading with [Meter], then [Record] and [Assign].
package load

import (
	"math"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

const (
	// Pace is how often counters are read.
	Pace = 5 * time.Second
	// smooth is the time after which a change of the use of processors is believed to 63 %: longer than a boot, as long as the
	// balancer waits before it believes an imbalance.
	smooth = time.Minute
	// tellAgain is the least time between two records of a node, retell the time after which it tells what did not change.
	tellAgain = 10 * time.Second
	retell    = 2 * time.Minute
	// stale is the age, by the node's renewals, at which its record says nothing any more: two retellings were missed.
	stale = 5 * time.Minute
	// A change is worth telling if it is more than so many processors or MiB, and more than this part of what was told.
	tellCPU       = 0.1
	tellMemoryMiB = 64
	tellPart      = 0.1
)

// Use is what is used at the moment.
type Use struct {
	CPU       float64 `json:"cpu"` // processors: 1.5 is one and a half
	MemoryMiB int64   `json:"mem"`
}

// Record is the JSON under ha/load/<node>: what the node measured last.
type Record struct {
	BootID string `json:"boot_id"`
	// At is when it was measured, in microseconds of the node's boot clock, as model.Live.Seq.
	At uint64 `json:"at"`
	// Rest is what the node uses besides Guests.
	Rest   Use                `json:"rest"`
	Guests map[model.VMID]Use `json:"guests,omitempty"`
}

// Worth says whether is had better be written over said, the node's record in the store.
func (said Record) Worth(is Record) bool {
	age := micros(is.At) - micros(said.At)
	switch {
	case said.BootID != is.BootID || age < 0:
		return true
	case age < tellAgain:
		return false
	case age >= retell || len(said.Guests) != len(is.Guests) || differs(said.Rest, is.Rest):
		return true
	}
	for id, u := range is.Guests {
		if was, ok := said.Guests[id]; !ok || differs(was, u) {
			return true
		}
	}
	return false
}

// Counts says whether the record is still true, by the live record of its node.
func (said Record) Counts(l model.Live) bool {
	return said.BootID != "" && said.BootID == l.BootID && !l.Fenced && micros(l.Seq)-micros(said.At) < stale
}

func micros(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }

func differs(a, b Use) bool {
	return beyond(a.CPU, b.CPU, tellCPU) || beyond(float64(a.MemoryMiB), float64(b.MemoryMiB), tellMemoryMiB)
}

func beyond(was, is, least float64) bool { return math.Abs(is-was) > max(least, tellPart*was) }

// Known is what is known of the whole cluster: of the nodes whose records count, and of their guests. Who is missing was not measured.
type Known struct {
	Nodes  map[string]Use
	Guests map[model.VMID]Use
}

// Assign adds up the records that count, by the nodes that own the guests by now. A guest that its owner has not measured
// yet uses what the node that it came from measured.
func Assign(records map[string]Record, owner map[model.VMID]string) Known {
	k := Known{Nodes: make(map[string]Use, len(records)), Guests: map[model.VMID]Use{}}
	from := map[model.VMID]string{}
	for node, r := range records {
		k.Nodes[node] = r.Rest
		for id, u := range r.Guests {
			if last, ok := from[id]; !ok || last != owner[id] && (node == owner[id] || node < last) {
				from[id], k.Guests[id] = node, u
			}
		}
	}
	for id, u := range k.Guests {
		if at, ok := k.Nodes[owner[id]]; ok {
			k.Nodes[owner[id]] = Use{at.CPU + u.CPU, at.MemoryMiB + u.MemoryMiB}
		}
	}
	for node, u := range k.Nodes {
		k.Nodes[node] = Use{hundredths(u.CPU), u.MemoryMiB} // the sum depends on no order
	}
	return k
}
