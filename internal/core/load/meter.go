package load

import (
	"math"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Counter is one reading: the processor time used since some beginning, and the memory used now.
type Counter struct {
	CPU       time.Duration
	MemoryMiB int64
}

// Reading is what was read of a node at one time.
type Reading struct {
	Node   Counter // all that the machine uses, the guests included
	Guests map[model.VMID]Counter
	// Before is what guests that are new here used where they came from. Such a guest does not begin anew.
	Before map[model.VMID]Use
}

// Meter makes a node's record of its readings. The zero value is ready. It is not safe for concurrent use.
type Meter struct {
	last   Reading
	at     time.Duration // of last, 0 if there is none
	rest   *float64      // processors, nil until they are known
	guests map[model.VMID]float64
}

// Read takes in a reading at now, on the node's boot clock. A counter that went back begins anew. The maps of r must not change after it.
func (m *Meter) Read(now time.Duration, r Reading) {
	span := now - m.at
	if m.at == 0 || span <= 0 || r.Node.CPU < m.last.Node.CPU {
		m.last, m.at = r, now
		return
	}
	guests := make(map[model.VMID]float64, len(r.Guests))
	rest := r.Node.CPU - m.last.Node.CPU
	for id, c := range r.Guests {
		was, known := m.guests[id]
		if u, moved := r.Before[id]; moved && !known {
			was, known = u.CPU, true
		}
		before, read := m.last.Guests[id]
		switch used := c.CPU - before.CPU; {
		case read && used >= 0:
			rest -= used
			guests[id] = smoothed(was, known, used, span)
		case known:
			guests[id] = was
		}
	}
	was := 0.0
	if m.rest != nil {
		was = *m.rest
	}
	is := smoothed(was, m.rest != nil, max(rest, 0), span)
	m.last, m.at, m.rest, m.guests = r, now, &is, guests
}

// smoothed is the mean use of processors over about the last minute, given that before and what was used since.
func smoothed(was float64, known bool, used, span time.Duration) float64 {
	rate := float64(used) / float64(span)
	if !known {
		return rate
	}
	return was + (rate-was)*(1-math.Exp(-float64(span)/float64(smooth)))
}

// Record is what the node has to tell after the last reading; ok is false while nothing is known. A guest that was read once alone is
// not in it yet.
func (m *Meter) Record(bootID string) (r Record, ok bool) {
	if m.rest == nil {
		return Record{}, false
	}
	r = Record{BootID: bootID, At: uint64(m.at / time.Microsecond), Guests: make(map[model.VMID]Use, len(m.guests))}
	r.Rest.CPU = hundredths(*m.rest)
	r.Rest.MemoryMiB = m.last.Node.MemoryMiB
	for id, cpu := range m.guests {
		c := m.last.Guests[id]
		r.Guests[id] = Use{hundredths(cpu), c.MemoryMiB}
		r.Rest.MemoryMiB -= c.MemoryMiB
	}
	r.Rest.MemoryMiB = max(r.Rest.MemoryMiB, 0)
	return r, true
}

// hundredths keeps records short; more is noise.
func hundredths(cpus float64) float64 { return math.Round(100*cpus) / 100 }
