package guard

import (
	"io"
	"os"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/lease"
)

// pillPace is how often each pill is read while a group is frozen.
const pillPace = 250 * time.Millisecond

// pills reads pill files beside the loop: a read may hang for as long as a
// storage does, so each path has at most one reader, and nobody waits for it.
type pills struct {
	epochs chan<- uint64 // buffered by the loop's select; see read
	done   <-chan struct{}

	mu   sync.Mutex
	busy map[string]bool
	last map[string]time.Time
}

func newPills(epochs chan<- uint64, done <-chan struct{}) *pills {
	return &pills{epochs: epochs, done: done, busy: map[string]bool{}, last: map[string]time.Time{}}
}

// poll starts a reader for each path whose last one has ended and which is due.
func (p *pills) poll(paths []string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, path := range paths {
		if p.busy[path] || now.Sub(p.last[path]) < pillPace {
			continue
		}
		p.busy[path], p.last[path] = true, now
		// Not waited for at the guard's end, which is the process's end: a read of a
		// dead storage returns when the storage does.
		go p.read(path)
	}
}

func (p *pills) read(path string) {
	epoch, ok := readPill(path)
	p.mu.Lock()
	p.busy[path] = false
	p.mu.Unlock()
	if !ok {
		return
	}
	select {
	case p.epochs <- epoch:
	case <-p.done:
	}
}

// readPill reads a pill; one that is missing, unreadable or half written says nothing.
func readPill(path string) (epoch uint64, ok bool) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, lease.MaxPill))
	if err != nil {
		return 0, false
	}
	return lease.ParsePill(b)
}
