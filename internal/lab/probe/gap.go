package probe

import (
	"cmp"
	"slices"
	"time"
)

// Sample is one echo: when it was sent and when its answer arrived.
type Sample struct {
	Seq  uint64        `json:"seq"`
	Sent time.Duration `json:"sent_ns"`
	Recv time.Duration `json:"recv_ns,omitempty"` // 0: no answer
}

// GapReport is what a window of a series shows.
type GapReport struct {
	// Longest is the longest gap that overlaps the window, and Begin the moment it began.
	Longest time.Duration `json:"longest_ns"`
	Begin   time.Duration `json:"begin_ns"`
	// Open says that no answer ended the gap before the series did.
	Open bool `json:"open,omitempty"`
	Sent int  `json:"sent"` // echoes sent in the window
	Lost int  `json:"lost"` // those of them that were never answered
}

// Gaps measures the window [from, to] of a series.
//
// A gap is the time between two consecutive answers as they arrived at the
// client, minus nothing: a guest that answers everything at once still shows the probe's
// own interval. A gap belongs to the window if any part of it does, and counts with its whole length. Before
// the first answer of the series there is no gap; after its last answer the
// gap goes on to the last moment that the series knows of, and is open.
func Gaps(series []Sample, from, to time.Duration) GapReport {
	var rep GapReport
	var arrivals []time.Duration
	var end time.Duration
	for _, s := range series {
		end = max(end, s.Sent, s.Recv)
		if s.Recv != 0 {
			arrivals = append(arrivals, s.Recv)
		}
		if s.Sent >= from && s.Sent <= to {
			rep.Sent++
			if s.Recv == 0 {
				rep.Lost++
			}
		}
	}
	slices.Sort(arrivals)
	for i, begin := range arrivals {
		next, open := end, true
		if i+1 < len(arrivals) {
			next, open = arrivals[i+1], false
		}
		if begin <= to && next >= from && next-begin > rep.Longest {
			rep.Longest, rep.Begin, rep.Open = next-begin, begin, open
		}
	}
	return rep
}

// FirstAnswer returns the arrival of the first answer after t to an echo sent
// after t, which says when a guest that was gone is back; ok is false without one.
func FirstAnswer(series []Sample, t time.Duration) (at time.Duration, ok bool) {
	for _, s := range series {
		if s.Sent > t && s.Recv != 0 && (!ok || s.Recv < at) {
			at, ok = s.Recv, true
		}
	}
	return at, ok
}

// Quantile returns the q-quantile (0 to 1) of the round trips, 0 without answers.
func Quantile(series []Sample, q float64) time.Duration {
	var trips []time.Duration
	for _, s := range series {
		if s.Recv != 0 {
			trips = append(trips, s.Recv-s.Sent)
		}
	}
	if len(trips) == 0 {
		return 0
	}
	slices.SortFunc(trips, cmp.Compare[time.Duration])
	return trips[int(q*float64(len(trips)-1))]
}
