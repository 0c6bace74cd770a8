package demo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/lab/report"
)

// pollEvery is how often each living node is asked whether it is quorate, and its load measured.
const pollEvery = time.Second

// pollTimeout: a node that does not answer for a second is no part of a stable cluster.
const pollTimeout = time.Second

// watchQuorum asks each node that has power, each second.
func (d *demo) watchQuorum(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		for _, n := range d.run.Nodes {
			wg.Go(func() { d.pollNode(ctx, n) })
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (d *demo) pollNode(ctx context.Context, node string) {
	if d.isOff(node) {
		return
	}
	p := report.Poll{Node: node, At: d.clock.now()}
	asked, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	st, err := d.machines.on(node).ClusterStatus(asked)
	end := d.clock.now()
	switch {
	case ctx.Err() != nil:
		return
	case err != nil && asked.Err() != nil:
		p.Reason = "no answer within " + pollTimeout.String()
	case err != nil:
		p.Reason = err.Error()
	case !st.Quorate:
		p.Reason = "not quorate"
	default:
		p.Quorate = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p.InFault = d.inFault(p.At, end)
	d.run.Polls = append(d.run.Polls, p)
}

// inFault says whether a time overlaps a window. mu is held.
func (d *demo) inFault(from, to time.Duration) bool {
	for _, w := range d.run.Windows {
		if from <= w.To && to >= w.From {
			return true
		}
	}
	return d.window != nil && to >= d.window.From
}

// openWindow begins a fault.
func (d *demo) openWindow(label string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.window = &report.Window{From: d.clock.now(), Label: label}
}

// closeWindow ends it.
func (d *demo) closeWindow() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.window != nil {
		d.window.To = d.clock.now()
		d.run.Windows = append(d.run.Windows, *d.window)
		d.window = nil
	}
}

func (d *demo) isOff(node string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.off[node]
}

func (d *demo) setOff(node string, off bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off[node] = off
}

// watchLoad adds up what the processes of each node use.
func (d *demo) watchLoad(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	meters := map[string]*meter{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		st, err := d.room.Status(ctx)
		if err != nil {
			continue // it is drawn as a hole
		}
		for _, n := range st.Nodes {
			if meters[n.Node] == nil {
				meters[n.Node] = &meter{}
			}
			if s, ok := meters[n.Node].measure(d.clock.now(), n); ok {
				d.addLoad(n.Node, s)
			}
		}
	}
}

func (d *demo) addLoad(node string, s report.LoadSample) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.run.Load {
		if l := &d.run.Load[i]; l.Node == node {
			l.Samples = append(l.Samples, s)
			return
		}
	}
	d.run.Load = append(d.run.Load, report.NodeLoad{Node: node, Samples: []report.LoadSample{s}})
}

// ticksPerSecond is the unit of /proc/PID/stat, 100 on every Linux that Go runs on.
const ticksPerSecond = 100

// meter remembers a node's processes from one look to the next.
type meter struct {
	at    time.Duration
	ticks map[int]uint64 // CPU time by process
}

// measure is false at the first look, which has nothing to compare with. What a process
// used after the last look and before its end is not seen.
func (m *meter) measure(now time.Duration, n lab.NodeStatus) (report.LoadSample, bool) {
	s := report.LoadSample{At: now}
	ticks := map[int]uint64{}
	var sauh, guests uint64
	for _, pid := range n.PIDs {
		p, err := readProcess(pid)
		if err != nil {
			continue // it has ended
		}
		ticks[pid] = p.ticks
		used := p.ticks - min(m.ticks[pid], p.ticks)
		if strings.HasPrefix(p.name, "qemu-system") {
			guests += used
			s.GuestBytes += p.rss
		} else {
			sauh += used
			s.SauhBytes += p.rss
		}
	}
	span := (now - m.at).Seconds() * ticksPerSecond
	first := m.ticks == nil
	m.at, m.ticks = now, ticks
	s.SauhCPU, s.GuestCPU = float64(sauh)/span, float64(guests)/span
	return s, !first
}

// process is what /proc/PID/stat says of a process.
type process struct {
	name  string
	ticks uint64
	rss   int64
}

func readProcess(pid int) (process, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	return parseStat(text)
}

func parseStat(text []byte) (process, error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return process{}, fmt.Errorf("read process: %q", text)
	}
	// The name may hold blanks and parentheses; the fields after it are counted from 3.
	f := strings.Fields(string(text[end+1:]))
	if len(f) < 22 {
		return process{}, fmt.Errorf("read process: %d fields", len(f))
	}
	user, err1 := strconv.ParseUint(f[11], 10, 64)
	system, err2 := strconv.ParseUint(f[12], 10, 64)
	pages, err3 := strconv.ParseInt(f[21], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return process{}, fmt.Errorf("read process: %q", text)
	}
	return process{name: string(text[open+1 : end]), ticks: user + system, rss: pages * int64(os.Getpagesize())}, nil
}
