// Package probe measures a probe guest from outside, as its users would feel it: is it
// there ([Echo]), does what it sends go on ([Stream], [Download]), and is everything still
// there that it said it had written ([Ledger], [Verify]).
//
// A probe knows nothing of nodes, migrations or faults. It writes what it sees with times, one JSON
// object a line, and whoever made the faults cuts windows out of that afterwards ([Gaps]).
// Times are CLOCK_BOOTTIME of the machine the probe runs on, so that all probes and
// all nodes of a machine room share one clock; the first line of each file ties it to the date.
//
// Invariant: a probe never makes the result better than it was: nothing is sent
// again, a connection that broke is reported and not replaced (the ledger, which must go
// on, says each time that it did), and no number is smoothed. Start reading with [Echo].
package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since the machine booted, by CLOCK_BOOTTIME.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("CLOCK_BOOTTIME: %v", err)) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}

// Kinds of the lines that probes write.
const (
	KindStart   = "start"   // Header, the first line
	KindSummary = "summary" // the probe's summary, the last line
)

// Header is the first line of every probe's file.
type Header struct {
	Kind   string        `json:"kind"`
	Probe  string        `json:"probe"`
	Target string        `json:"target"`
	Boot   time.Duration `json:"boot_ns"` // the moment by CLOCK_BOOTTIME …
	Unix   int64         `json:"unix_ns"` // … and by the date
}

// recorder writes lines and keeps the first error; it is safe for concurrent use.
type recorder struct {
	mu  sync.Mutex
	enc *json.Encoder
	err error
}

// newRecorder writes the header to w; w may be nil, then nothing is written at all.
func newRecorder(w io.Writer, probe, target string) *recorder {
	r := &recorder{}
	if w != nil {
		r.enc = json.NewEncoder(w)
	}
	r.line(Header{Kind: KindStart, Probe: probe, Target: target, Boot: Now(), Unix: time.Now().UnixNano()})
	return r
}

func (r *recorder) line(v any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.enc == nil || r.err != nil {
		return
	}
	if err := r.enc.Encode(v); err != nil {
		r.err = fmt.Errorf("write probe record: %w", err)
	}
}

func (r *recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Running is a probe that was started.
type Running[S any] struct {
	cancel context.CancelFunc
	done   chan struct{}
	sum    S
	err    error
}

// Start runs a probe's Run method in the background until ctx is done or Stop is called.
func Start[S any](ctx context.Context, run func(context.Context) (S, error)) *Running[S] {
	ctx, cancel := context.WithCancel(ctx)
	r := &Running[S]{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.sum, r.err = run(ctx)
	}()
	return r
}

// Stop ends the probe, waits for it and returns its summary. Idempotent.
func (r *Running[S]) Stop() (S, error) {
	r.cancel()
	<-r.done
	return r.sum, r.err
}

// Done is closed when the probe ended by itself or was stopped.
func (r *Running[S]) Done() <-chan struct{} { return r.done }

// address adds the service's usual port to a target without one.
func address(target string, port int) string {
	if _, _, err := net.SplitHostPort(target); err == nil {
		return target
	}
	return net.JoinHostPort(target, strconv.Itoa(port))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
