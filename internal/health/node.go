package health

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	core "sauh.dev/sauh/internal/core/health"
)

// Prober asks a storage for a sign of life.
type Prober interface {
	// Probe returns nil when the storage is well. It may last for ever, and must return soon once ctx is done.
	Probe(ctx context.Context) error
	// Close gives up what Probe needs, after the last Probe has returned.
	io.Closer
}

// Target is a storage to probe.
type Target struct {
	Name string
	// Command is what probes it, program first; see [Serve]. A target whose command changes is begun anew.
	Command []string
	// Lost: it is on record as lost. Who begins to probe it takes it for lost until it is proved to be back.
	Lost bool
}

// Finding is something that is lost, and why: a part of a sentence.
type Finding struct{ Name, Reason string }

// State is a node's health. The zero value is well.
type State struct {
	Storages []Finding // lost ones, by name
	Networks []Finding // bridges without a way out, by name
}

// Config is what a Node needs.
type Config struct {
	Params core.Params
	// Open makes the prober of a target; [NewChild] with a lock file of the target's name is the real one.
	Open func(Target) Prober
	// Look looks at bridges; [Bridges] is the real one.
	Look func(names []string) (map[string]core.Bridge, error)
	// Changed is told each new state: when something is lost or back, not when only a reason is another. It is never called twice at a time,
	// and what it must not do is wait for the Node.
	Changed func(State)
	Log     *slog.Logger
}

// Node watches one node. Make it with [New], and Run it. Its methods are safe for concurrent use.
type Node struct {
	c    Config
	wake chan struct{}

	mu       sync.Mutex
	storages map[string]*storage
	links    map[string]*core.Link
	state    State
}

// storage is a target and what is thought of it.
type storage struct {
	target  Target
	machine *core.Storage // guarded by Node.mu
	hurry   chan struct{} // a guest had an error: probe now
	begun   bool
	cancel  context.CancelFunc
	after   <-chan struct{} // the end of the probes by an earlier command, nil if there were none
	done    chan struct{}   // the end of these
}

// New watches nothing yet.
func New(c Config) *Node {
	return &Node{c: c, wake: make(chan struct{}, 1), storages: map[string]*storage{}, links: map[string]*core.Link{}}
}

// Set says what is to be watched from now on, storages and bridges. What is not named any more counts as well. It is idempotent.
func (n *Node) Set(targets []Target, bridges []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	keep := map[string]bool{}
	for _, t := range targets {
		keep[t.Name] = true
		old := n.storages[t.Name]
		if old != nil && slices.Equal(old.target.Command, t.Command) {
			continue
		}
		machine := core.NewStorage(n.c.Params)
		if t.Lost {
			machine = core.LostStorage(n.c.Params)
		}
		next := &storage{target: t, machine: machine, hurry: make(chan struct{}, 1), done: make(chan struct{})}
		if old != nil && old.begun {
			next.after = old.done
			old.stop()
		}
		n.storages[t.Name] = next
	}
	for name, s := range n.storages {
		if !keep[name] {
			delete(n.storages, name)
			s.stop()
		}
	}
	links := map[string]*core.Link{}
	for _, b := range bridges {
		if links[b] = n.links[b]; links[b] == nil {
			links[b] = core.NewLink(n.c.Params)
		}
	}
	n.links = links
	n.poke()
}

// stop ends the probes, if they were begun; Node.mu is held.
func (s *storage) stop() {
	if s.cancel != nil {
		s.cancel()
	}
}

func (n *Node) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// GuestError counts an I/O error of a guest against its storage, and has that probed at once. An error for want of space must not be told.
func (n *Node) GuestError(name, guest, reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.storages[name]
	if s == nil {
		return
	}
	s.machine.GuestError(guest, reason)
	select {
	case s.hurry <- struct{}{}:
	default:
	}
	n.poke()
}

// State is what was last thought.
func (n *Node) State() State {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

// Doubts names the storages that are not known to be well, in order: lost ones, those whose last probe failed or hangs, those that have not answered
// yet. It is right from [Node.Set] on.
func (n *Node) Doubts() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for name, s := range n.storages {
		if s.machine.Doubtful() {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Run watches until ctx is done. Nothing of it is left running then, but for a child that hangs on its storage. It is called once.
func (n *Node) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	tick := time.NewTicker(n.c.Params.Tick)
	defer tick.Stop()
	for {
		n.begin(ctx, &wg)
		n.look()
		select {
		case <-tick.C:
		case <-n.wake:
		case <-ctx.Done():
			return
		}
	}
}

// begin starts the probes of storages that nobody probes yet.
func (n *Node) begin(ctx context.Context, wg *sync.WaitGroup) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.storages {
		if s.begun {
			continue
		}
		own, cancel := context.WithCancel(ctx)
		s.begun, s.cancel = true, cancel
		wg.Go(func() {
			defer cancel()
			n.probe(own, s)
		})
	}
}

// probe probes one storage until ctx is done.
func (n *Node) probe(ctx context.Context, s *storage) {
	defer close(s.done)
	if s.after != nil {
		<-s.after
	}
	prober := n.c.Open(s.target)
	defer n.end(s.target, prober)
	for ctx.Err() == nil {
		n.note(s.machine.Asked)
		err := prober.Probe(ctx)
		if ctx.Err() != nil {
			return
		}
		failure := ""
		if err != nil {
			failure = err.Error()
			n.c.Log.Warn("storage fails its probe", "storage", s.target.Name, "err", err)
		}
		n.note(func() { s.machine.Answered(failure) })
		// A guest's error hastens the next probe, but many at once are not many probes: one blip is one failure.
		wait(ctx, n.c.Params.Tick, nil)
		wait(ctx, n.c.Params.ProbeEvery-n.c.Params.Tick, s.hurry)
	}
}

// wait lasts d, or until wake has something or ctx is done.
func wait(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
	}
}

// end closes a prober that is not needed any more. One that hangs is left to its storage: the lock that it holds keeps
// a second one from joining it.
func (n *Node) end(t Target, p Prober) {
	if err := p.Close(); err != nil {
		n.c.Log.Warn("the probe of a storage is left behind", "storage", t.Name, "err", err)
	}
}

// note changes a machine and has the verdict looked at.
func (n *Node) note(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	n.poke()
}

// look brings the state up to date and tells of a change. Only Run calls it.
func (n *Node) look() {
	n.mu.Lock()
	var bridges []string
	for name := range n.links {
		bridges = append(bridges, name)
	}
	n.mu.Unlock()
	seen, err := n.c.Look(bridges)
	if err != nil {
		n.c.Log.Warn("the links of the guests' networks cannot be seen", "err", err) // and stay what they were
	}
	now := time.Now()
	n.mu.Lock()
	next := State{}
	for name, s := range n.storages {
		if v := s.machine.Look(now); v.Lost {
			next.Storages = append(next.Storages, Finding{name, v.Reason})
		}
	}
	for name, l := range n.links {
		b, ok := seen[name]
		if !ok {
			if i := slices.IndexFunc(n.state.Networks, func(f Finding) bool { return f.Name == name }); i >= 0 {
				next.Networks = append(next.Networks, n.state.Networks[i])
			}
			continue
		}
		if v := l.Look(now, b); v.Lost {
			next.Networks = append(next.Networks, Finding{name, v.Reason})
		}
	}
	sortFindings(next.Storages)
	sortFindings(next.Networks)
	changed := !slices.EqualFunc(next.Storages, n.state.Storages, sameName) || !slices.EqualFunc(next.Networks, n.state.Networks, sameName)
	n.state = next
	n.mu.Unlock()
	if changed {
		n.c.Changed(next)
	}
}

func sameName(a, b Finding) bool { return a.Name == b.Name }

func sortFindings(all []Finding) {
	slices.SortFunc(all, func(a, b Finding) int { return cmp.Compare(a.Name, b.Name) })
}
