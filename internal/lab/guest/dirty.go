package guest

import (
	"context"
	"sync"
	"time"
)

// dirtyTick is how often pages are written; a rate is kept on average over it.
const dirtyTick = 10 * time.Millisecond

const pageSize = 4096

// Dirtier writes to memory at a given rate, so that a live migration has something to copy.
// It takes no processor time while the rate is 0.
type Dirtier struct {
	changed chan struct{} // holds one token after each Set

	mu   sync.Mutex
	rate int // MiB a second
	mem  []byte
	next int // offset of the page to write next
	debt int // bytes that should have been written and were not, less than a page
}

// NewDirtier returns one with rate 0.
func NewDirtier() *Dirtier { return &Dirtier{changed: make(chan struct{}, 1)} }

// Set starts to write rate MiB a second, round and round in an area of size MiB. Rate 0 stops and frees the area.
func (d *Dirtier) Set(rate, size int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rate, d.next, d.debt = rate, 0, 0
	if rate == 0 {
		d.mem = nil
	} else if len(d.mem) != size<<20 {
		d.mem = make([]byte, size<<20)
	}
	select {
	case d.changed <- struct{}{}:
	default: // the token of an earlier Set is still there
	}
}

// Rate returns the rate and the size of the area in MiB.
func (d *Dirtier) Rate() (rate, size int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rate, len(d.mem) >> 20
}

// Run writes until ctx is done.
func (d *Dirtier) Run(ctx context.Context) {
	tick := time.NewTicker(dirtyTick)
	defer tick.Stop()
	tick.Stop() // until a rate is set
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.changed:
			last = time.Now()
			if rate, _ := d.Rate(); rate == 0 {
				tick.Stop()
			} else {
				tick.Reset(dirtyTick)
			}
		case now := <-tick.C:
			d.step(now.Sub(last))
			last = now
		}
	}
}

// step writes what the rate demands for the time gone by, but never more than
// the area once: after a pause there is nothing to catch up with.
func (d *Dirtier) step(gone time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.mem) == 0 {
		return
	}
	want := d.debt + int(float64(d.rate<<20)*gone.Seconds())
	want = min(want, len(d.mem))
	for ; want >= pageSize; want -= pageSize {
		d.mem[d.next]++
		if d.next += pageSize; d.next >= len(d.mem) {
			d.next = 0
		}
	}
	d.debt = want
}
