package sim

import (
	"math/bits"
	"time"
)

// process is something that can die and stand still: an agent, a guard, a QEMU, a machine's store member.
type process struct {
	up      bool
	life    uint32 // counts its lives; events of an earlier one are dropped
	stopped int    // how many reasons there are for it to stand still
	waiting []func()
}

// runs reports whether the process would carry out an event now.
func (p *process) runs() bool { return p.up && p.stopped == 0 }

func (p *process) begin() {
	p.up, p.stopped, p.waiting = true, 0, nil
	p.life++
}

func (p *process) end() {
	p.up, p.waiting = false, nil
	p.life++
}

// event is something that happens at a time, to a process or (nil) to the world.
type event struct {
	at   time.Duration
	seq  uint64
	p    *process
	life uint32
	do   func()
}

func (e *event) before(o *event) bool {
	return e.at < o.at || e.at == o.at && e.seq < o.seq
}

// queue is a binary heap: events of the same time keep their order.
type queue struct {
	heap []event
	seq  uint64
}

func (q *queue) push(e event) {
	q.seq++
	e.seq = q.seq
	q.heap = append(q.heap, e)
	i := len(q.heap) - 1
	for i > 0 {
		up := (i - 1) / 4
		if q.heap[up].before(&e) {
			break
		}
		q.heap[i] = q.heap[up]
		i = up
	}
	q.heap[i] = e
}

func (q *queue) pop() event {
	top := q.heap[0]
	last := len(q.heap) - 1
	e := q.heap[last]
	q.heap[last] = event{}
	q.heap = q.heap[:last]
	if last > 0 {
		q.sink(e)
	}
	return top
}

// sink puts e in from the top. The heap has four children a node: half as deep as with two.
func (q *queue) sink(e event) {
	h, i := q.heap, 0
	for {
		first := 4*i + 1
		if first >= len(h) {
			break
		}
		least := first
		for c := first + 1; c < min(first+4, len(h)); c++ {
			if h[c].before(&h[least]) {
				least = c
			}
		}
		if e.before(&h[least]) {
			break
		}
		h[i] = h[least]
		i = least
	}
	h[i] = e
}

// engine is the world's clock and its queue of events.
type engine struct {
	now    time.Duration
	queue  queue
	events int
	rng    rng
}

// at has do happen to p at a time; p nil is the world.
func (e *engine) at(t time.Duration, p *process, do func()) {
	ev := event{at: max(t, e.now), p: p, do: do}
	if p != nil {
		ev.life = p.life
	}
	e.queue.push(ev)
}

func (e *engine) after(d time.Duration, p *process, do func()) { e.at(e.now+d, p, do) }

// step carries out the next event and reports false when there is none before end.
func (e *engine) step(end time.Duration) bool {
	if len(e.queue.heap) == 0 || e.queue.heap[0].at > end {
		return false
	}
	ev := e.queue.pop()
	e.now = ev.at
	e.events++
	if p := ev.p; p != nil {
		if !p.up || p.life != ev.life {
			return true
		}
		if p.stopped > 0 {
			p.waiting = append(p.waiting, ev.do)
			return true
		}
	}
	ev.do()
	return true
}

// stop has a process stand still until it was resumed as often.
func (e *engine) stop(p *process) { p.stopped++ }

// resume lets it go on: what happened to it meanwhile happens now, in order.
func (e *engine) resume(p *process) {
	if p.stopped == 0 {
		return
	}
	p.stopped--
	if p.stopped > 0 {
		return
	}
	waiting := p.waiting
	p.waiting = nil
	for _, do := range waiting {
		e.at(e.now, p, do)
	}
}

// rng is a splitmix64: small, fast, and the same everywhere.
type rng struct{ state uint64 }

func newRNG(seed uint64) rng { return rng{state: seed*0x9e3779b97f4a7c15 + 0x1234567} }

func (r *rng) next() uint64 {
	r.state += 0x9e3779b97f4a7c15
	z := r.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// n returns 0 ≤ x < n.
func (r *rng) n(n int) int {
	if n <= 1 {
		return 0
	}
	hi, _ := bits.Mul64(r.next(), uint64(n))
	return int(hi)
}

// between returns lo ≤ d < hi.
func (r *rng) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(r.n(int(hi-lo)))
}

// chance is true in percent of all cases.
func (r *rng) chance(percent int) bool { return r.n(100) < percent }

// clock is a node's CLOCK_BOOTTIME: it starts at boot and runs faster than true time by ppm.
type clock struct {
	boot time.Duration
	ppm  int64
}

func (c clock) read(now time.Duration) time.Duration {
	d := now - c.boot
	return d + time.Duration(int64(d)/1000*c.ppm/1000)
}

// when is the true time at which the clock shows local, or the moment after.
func (c clock) when(local time.Duration) time.Duration {
	d := time.Duration(int64(local) / (1_000_000 + c.ppm) * 1_000_000)
	d += time.Duration(int64(local) % (1_000_000 + c.ppm) * 1_000_000 / (1_000_000 + c.ppm))
	return c.boot + d + time.Microsecond
}
