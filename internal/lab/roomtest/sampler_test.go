//go:build room

package roomtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/sys"
)

// samplePace is how often the sampler looks at every node.
const samplePace = 50 * time.Millisecond

// vcpuBusy is the CPU time within one sample from which on a virtual CPU counts as
// running. A stopped one uses none; the monitor's questions cost microseconds.
const vcpuBusy = 2 * time.Millisecond

// process is a QEMU process that the sampler saw.
type process struct {
	node     string
	vmid     model.VMID
	pid      int // as the host numbers it
	incoming bool
	started  time.Time // by the kernel
	first    time.Time // seen alive
	last     time.Time // seen alive
	frozen   bool      // at the last sample
	// frozenAt is when it was last seen to freeze, thawedAt when it was last seen
	// running after that; both may be zero.
	frozenAt, thawedAt time.Time
	cpu                time.Duration // of its virtual CPUs at the last sample
	busy               int           // samples in a row in which they ran
}

func (p *process) String() string {
	const format = "15:04:05.000"
	s := fmt.Sprintf("%d on %s pid %d: started %s, seen %s to %s", p.vmid, p.node, p.pid, p.started.Format(format), p.first.Format(format), p.last.Format(format))
	if !p.frozenAt.IsZero() {
		s += ", frozen " + p.frozenAt.Format(format)
	}
	if !p.thawedAt.IsZero() {
		s += ", thawed " + p.thawedAt.Format(format)
	}
	return s
}

// violation is a moment at which the rule was broken.
type violation struct {
	at   time.Time
	text string
}

// sampler looks at the guests' cgroups of all nodes, from outside, every 50 ms. It proves that no two QEMU
// processes of one guest run at the same time: of two that are there, one is frozen, or one waits for a
// migration and only one has virtual CPUs that use CPU time.
type sampler struct {
	room   *lab.Room
	nodes  []string
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	all     []*process          // in the order of their appearance; guarded by mu
	live    map[string]*process // by node, guest and pid; guarded by mu
	broken  []violation         // guarded by mu
	samples int                 // guarded by mu
	longest time.Duration       // between two samples; guarded by mu
}

func newSampler(r *lab.Room, nodes int) *sampler {
	ctx, cancel := context.WithCancel(context.Background())
	s := &sampler{room: r, cancel: cancel, done: make(chan struct{}), live: map[string]*process{}}
	for i := range nodes {
		s.nodes = append(s.nodes, lab.NodeName(i+1))
	}
	go s.run(ctx)
	return s
}

func (s *sampler) stop() {
	s.cancel()
	<-s.done
}

func (s *sampler) run(ctx context.Context) {
	defer close(s.done)
	tick := time.NewTicker(samplePace)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.sample()
		s.mu.Lock()
		s.samples++
		s.longest = max(s.longest, time.Since(last))
		s.mu.Unlock()
		last = time.Now()
	}
}

// sample looks at every node once.
func (s *sampler) sample() {
	seen := map[string]bool{}
	byGuest := map[model.VMID][]*process{}
	for _, node := range s.nodes {
		guests := s.guests(node)
		entries, _ := os.ReadDir(guests) // a node that is off has none
		for _, e := range entries {
			id, err := model.ParseVMID(e.Name())
			if err != nil {
				continue
			}
			for _, p := range s.look(node, id, sys.Cgroup(filepath.Join(guests, e.Name()))) {
				seen[p.key()] = true
				byGuest[id] = append(byGuest[id], p)
			}
		}
	}
	s.mu.Lock()
	for k := range s.live {
		if !seen[k] {
			delete(s.live, k)
		}
	}
	s.mu.Unlock()
	for _, ps := range byGuest {
		s.judge(ps)
	}
}

func (s *sampler) guests(node string) string {
	return filepath.Join(s.room.Cgroup(node), "sauh", "guests")
}

func (p *process) key() string { return fmt.Sprintf("%s/%d/%d", p.node, p.vmid, p.pid) }

// look notes the QEMU processes of one cgroup.
func (s *sampler) look(node string, id model.VMID, c sys.Cgroup) []*process {
	pids, err := c.Procs()
	if err != nil {
		return nil
	}
	var out []*process
	for _, pid := range pids {
		if !isQEMU(pid) {
			continue
		}
		frozen, err := c.Frozen()
		if err != nil {
			continue
		}
		if p := s.note(node, id, pid, frozen); p != nil {
			out = append(out, p)
		}
	}
	return out
}

// note brings what is known of a process up to date; nil if it has just ended or has no virtual CPU.
func (s *sampler) note(node string, id model.VMID, pid int, frozen bool) *process {
	cpu, ok := vcpuTime(pid)
	if !ok {
		return nil
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := &process{node: node, vmid: id, pid: pid}
	p := s.live[fresh.key()]
	if p == nil {
		p = fresh
		if p.started, p.incoming, ok = origin(pid); !ok {
			return nil
		}
		p.first, p.cpu = now, cpu
		s.live[p.key()] = p
		s.all = append(s.all, p)
	}
	p.last = now
	switch {
	case frozen && !p.frozen:
		p.frozenAt = now
	case !frozen && p.frozen:
		p.thawedAt = now
	}
	p.frozen = frozen
	if cpu-p.cpu >= vcpuBusy {
		p.busy++
	} else {
		p.busy = 0
	}
	p.cpu = cpu
	return p
}

// judge applies the rule to the processes of one guest in one sample. They were looked at one after the other, so each
// is looked at once more: one that was running before and after was running between.
func (s *sampler) judge(ps []*process) {
	running := slices.DeleteFunc(slices.Clone(ps), func(p *process) bool {
		if p.frozen || !isQEMU(p.pid) {
			return true
		}
		frozen, err := sys.Cgroup(filepath.Join(s.guests(p.node), p.vmid.String())).Frozen()
		return err != nil || frozen
	})
	if len(running) < 2 {
		return
	}
	// Who was started to wait for a migration keeps that in its command line for ever, so only the youngest can be waiting.
	youngest := slices.MaxFunc(running, func(a, b *process) int { return a.started.Compare(b.started) })
	busy := 0
	for _, p := range running {
		// One sample may hold the end of the one and the beginning of the other, two in a row cannot.
		if p.busy >= 2 {
			busy++
		}
	}
	if youngest.incoming && len(running) == 2 && busy < 2 {
		return
	}
	var names []string
	for _, p := range running {
		names = append(names, p.String())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = append(s.broken, violation{time.Now(), strings.Join(names, " AND ")})
}

// processes are all QEMU processes of a guest that were seen since the moment given, in the order of their appearance.
func (s *sampler) processes(id model.VMID, since time.Time) []process {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []process
	for _, p := range s.all {
		if p.vmid == id && !p.last.Before(since) {
			out = append(out, *p)
		}
	}
	return out
}

// alive are those that were there at the last sample.
func (s *sampler) alive(id model.VMID) []process {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []process
	for _, p := range s.live {
		if p.vmid == id {
			out = append(out, *p)
		}
	}
	return out
}

func (s *sampler) violations() []string { return s.violationsSince(time.Time{}) }

func (s *sampler) violationsSince(since time.Time) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, v := range s.broken {
		if v.at.After(since) {
			out = append(out, v.at.Format("15:04:05.000 ")+v.text)
		}
	}
	return out
}

func (s *sampler) summary() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("sampler: %d samples, at most %v apart, %d QEMU processes seen, rule broken %d times",
		s.samples, s.longest.Round(time.Millisecond), len(s.all), len(s.broken))
}

// isQEMU tells QEMU from the shell that becomes it.
func isQEMU(pid int) bool {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return err == nil && strings.HasPrefix(string(comm), "qemu-system")
}

// origin says when a process was started, and whether it waits for a migration.
func origin(pid int) (started time.Time, incoming, ok bool) {
	ticks, err := sys.ProcessStart(pid)
	if err != nil {
		return time.Time{}, false, false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return time.Time{}, false, false
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux
	return wall(time.Duration(ticks) * tick), slices.Contains(strings.Split(string(line), "\x00"), "-incoming"), true
}

// vcpuTime is the CPU time that the virtual CPUs of a QEMU have used; its threads have names. It is not ok for a
// process that has no virtual CPU, or none yet: one that starts, and the one that leaves it in the background.
func vcpuTime(pid int) (sum time.Duration, ok bool) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return 0, false
	}
	for _, t := range tasks {
		comm, err := os.ReadFile(filepath.Join(dir, t.Name(), "comm"))
		if err != nil || !strings.HasPrefix(string(comm), "CPU ") {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(dir, t.Name(), "schedstat"))
		if err != nil {
			continue
		}
		ns, _, _ := strings.Cut(string(stat), " ")
		n, _ := strconv.ParseInt(ns, 10, 64) // 0 without scheduler statistics
		sum, ok = sum+time.Duration(n), true
	}
	return sum, ok
}
