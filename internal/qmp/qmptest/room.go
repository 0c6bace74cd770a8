package qmptest

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"sauh.dev/sauh/internal/qmp"
)

// Room is what several fakes share: the network between them, the disk of the one
// guest they run, and the log of everything that happened, in order.
type Room struct {
	wg sync.WaitGroup

	mu         sync.Mutex
	qemus      []*QEMU
	listening  map[string]*QEMU // by address
	nextPort   int
	cut        bool // the network between the fakes
	ticks      int  // of the events' clock
	head       int  // which state of the guest was the last to run
	states     int
	running    int
	log        []string
	violations []string
	hook       func(q *QEMU, point string)
	pace       Pace
}

// Pace is how migrations go.
type Pace struct {
	Round    time.Duration // one pre-copy round
	Rounds   int           // rounds until the rest is small enough, whatever the limit
	Downtime time.Duration // the rest needs this long: no switch-over below such a downtime limit
	Switch   time.Duration // from the source's stop to the last byte
	Load     time.Duration // from the last byte to the first side's noticing completion
	Slack    time.Duration // between the two sides noticing completion; negative: the source first
}

// NewRoom returns an empty room whose migrations take three rounds of 20 ms.
func NewRoom() *Room {
	return &Room{
		listening: map[string]*QEMU{},
		nextPort:  40000,
		pace:      Pace{Round: 20 * time.Millisecond, Rounds: 3, Switch: 5 * time.Millisecond, Load: time.Millisecond, Slack: time.Millisecond},
	}
}

// SetPace changes how migrations go from the next round on.
func (r *Room) SetPace(p Pace) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pace = p
}

// SetHook has f called, without a lock held, at every point of every fake:
// "command NAME" before a command is carried out, "answer NAME" before it is
// answered, and "migrating", "stopped", "received", "target completed", "source completed".
func (r *Room) SetHook(f func(q *QEMU, point string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook = f
}

func (r *Room) at(q *QEMU, point string) {
	r.mu.Lock()
	f := r.hook
	r.mu.Unlock()
	if f != nil {
		f(q, point)
	}
}

// Cut separates the fakes from each other, or joins them again: a migration
// under way fails, a new one cannot connect.
func (r *Room) Cut(cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = cut
}

// Start adds a process whose guest runs.
func (r *Room) Start(name string) *QEMU {
	q := r.add(name)
	r.mu.Lock()
	defer r.mu.Unlock()
	q.locked = true
	q.setLocked("running")
	return q
}

// StartIncoming adds a process started with -S -incoming defer.
func (r *Room) StartIncoming(name string) *QEMU {
	q := r.add(name)
	r.mu.Lock()
	defer r.mu.Unlock()
	q.booted = false
	q.setLocked("inmigrate")
	return q
}

func (r *Room) add(name string) *QEMU {
	q := &QEMU{
		Name: name, room: r, quit: make(chan struct{}), clients: map[*client]bool{}, handlers: map[string]Handler{},
		caps: map[string]bool{}, params: map[string]any{"downtime-limit": 300.0}, booted: true,
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.qemus = append(r.qemus, q)
	return q
}

// Close ends every process and waits for all that serves them.
func (r *Room) Close() {
	r.mu.Lock()
	all := append([]*QEMU(nil), r.qemus...)
	r.mu.Unlock()
	for _, q := range all {
		q.Die()
	}
	r.wg.Wait()
}

// Log returns what happened, one line a change of a run state.
func (r *Room) Log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.log...)
}

// Violations lists every instant at which two guests ran, or one ran with memory
// that is older than its disk. Empty is good.
func (r *Room) Violations() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.violations...)
}

// Running names the processes whose guest runs now.
func (r *Room) Running() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, q := range r.qemus {
		if !q.dead && q.status == "running" {
			names = append(names, q.Name)
		}
	}
	return names
}

// Alive names the processes that exist.
func (r *Room) Alive() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, q := range r.qemus {
		if !q.dead {
			names = append(names, q.Name)
		}
	}
	return names
}

// setLocked changes the run state and checks what must never be.
func (q *QEMU) setLocked(status string) {
	r := q.room
	was := q.status
	if q.dead || was == status {
		return
	}
	q.status = status
	r.log = append(r.log, q.Name+" "+status)
	if was == "running" {
		r.running--
		r.states++
		q.memory, r.head = r.states, r.states
	}
	if status == "running" {
		r.running++
		if r.running > 1 {
			r.violations = append(r.violations, fmt.Sprintf("%s runs while another one does", q.Name))
		}
		if !q.booted && q.memory != r.head {
			r.violations = append(r.violations, fmt.Sprintf("%s runs with memory older than its disk", q.Name))
		}
		q.booted = false
	}
}

// Die ends the process at once, as SIGKILL does.
func (q *QEMU) Die() {
	r := q.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if q.dead {
		return
	}
	q.setLocked("gone")
	q.dead = true
	q.locked = false
	delete(r.listening, q.address)
	for c := range q.clients {
		q.dropLocked(c)
	}
	close(q.quit)
}

func asError(err error) *qmp.Error {
	var e *qmp.Error
	if errors.As(err, &e) {
		return e
	}
	return &qmp.Error{Class: "GenericError", Desc: err.Error()}
}

func refuse(format string, args ...any) error {
	return &qmp.Error{Class: "GenericError", Desc: fmt.Sprintf(format, args...)}
}

func parse(args json.RawMessage, v any) error {
	if len(args) == 0 {
		return nil
	}
	if err := json.Unmarshal(args, v); err != nil {
		return refuse("Invalid parameter type: %v", err)
	}
	return nil
}
