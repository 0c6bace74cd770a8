package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/lab"
	"sauh.dev/sauh/internal/lab/probe"
	"sauh.dev/sauh/internal/lab/report"
)

// DefaultName is the room's name if Options give none.
const DefaultName = "demo"

// Options of a demonstration.
type Options struct {
	// Name of the room. A room of that name which an earlier demonstration left is removed first.
	Name string
	// Out is the directory for summary.json, report.html and the probes' own records. It is made.
	Out string
	// GuestBinary is the static program that becomes the probe guest's init.
	GuestBinary string
	// Keep leaves the room up at the end.
	Keep    bool
	Version model.Version
	// Stdout gets a line for each step and the table at the end.
	Stdout io.Writer
}

// ErrVerdict means that the demonstration ran to its end, and a parameter was not met or a step went wrong.
var ErrVerdict = errors.New("the demonstration did not reach its targets")

// Run makes the demonstration and writes the report, also of a run that failed or was interrupted. It needs
// root. Errors: ErrVerdict; any other means that no report could be written.
func Run(ctx context.Context, o Options) (err error) {
	if err := o.complete(); err != nil {
		return err
	}
	d := newDemo(o)
	if err := d.prepareOut(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d.fail = cancel
	// Also when a step panics: nothing may be left running.
	defer func() { err = errors.Join(err, d.tearDown(context.WithoutCancel(ctx))) }()
	d.perform(ctx, d.story())
	d.stopBackground()
	d.finish()
	if err := d.writeReport(); err != nil {
		return err
	}
	if !d.run.Passed() {
		return ErrVerdict
	}
	return nil
}

func (o *Options) complete() error {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.Out == "" {
		return model.Invalidf("out", "name a directory for the report")
	}
	if os.Geteuid() != 0 {
		return errors.New("the demonstration needs root: run it with sudo")
	}
	if fi, err := os.Stat(o.GuestBinary); err != nil || !fi.Mode().IsRegular() {
		return model.Invalidf("guest-binary", "%q is not a program: build it with `make build`, or say where it is", o.GuestBinary)
	}
	var err error
	o.Out, err = filepath.Abs(o.Out)
	return err
}

// demo is one run. Its fields are set by the steps in order; what the pollers in
// the background share is behind mu.
type demo struct {
	Options
	clock    clock
	room     *lab.Room
	machines *machines
	image    string // of the probe guest, in the cache
	moving   *guest // what moves by Sauh
	failing  *guest // what loses its node
	byHand   *guest // what moves by QMP alone
	byHandAt string // the node that runs it

	background context.Context
	stop       context.CancelFunc
	wg         sync.WaitGroup
	fail       context.CancelCauseFunc

	mu  sync.Mutex
	run report.Run // guarded by mu while pollers run
	// window is open while a fault is being made and repaired; guarded by mu.
	window *report.Window
	off    map[string]bool // nodes without power; guarded by mu
}

func newDemo(o Options) *demo {
	d := &demo{
		Options: o, clock: newClock(), off: map[string]bool{},
		moving: newGuest(movingID), failing: newGuest(failingID), byHand: newGuest(byHandID),
	}
	d.background, d.stop = context.WithCancel(context.Background())
	d.run.Begin = d.clock.begin
	d.run.Host = report.DescribeHost(o.Version)
	d.run.Definitions = definitions()
	return d
}

// clock counts from the beginning of the run, by the same clock as the probes.
type clock struct {
	begin time.Time
	zero  time.Duration
}

func newClock() clock { return clock{begin: time.Now(), zero: probe.Now()} }

func (c clock) now() time.Duration { return probe.Now() - c.zero }

// of turns a moment of the probes' clock into one of the run.
func (c clock) of(boot time.Duration) time.Duration { return boot - c.zero }

// boot is the inverse of of.
func (c clock) boot(at time.Duration) time.Duration { return at + c.zero }

// ofTime turns a date into a moment of the run.
func (c clock) ofTime(t time.Time) time.Duration { return c.now() - time.Since(t) }

// step is one act of the story. What fails in a vital one leaves nothing to go on with.
type step struct {
	title string
	do    func(context.Context) error
	vital bool
}

// story is the whole demonstration.
func (d *demo) story() []step {
	return []step{
		{"build the probe guest's image", d.buildImage, true},
		{"bring up a machine room of three nodes", d.bringUp, true},
		{"create a cluster on n1; n2 and n3 join it with a key", d.formCluster, true},
		{"add the shared storage nas", d.addStorage, true},
		{"create guests 100 and 101, start and protect them", d.startGuests, true},
		{"start guest 102, its twin without Sauh, by hand", d.startByHand, true},
		{"let the guests stream, serve files and keep ledgers", d.startWorkload, true},
		{fmt.Sprintf("move guest 100 back and forth, %d times, and guest 102 by hand in between", moves), d.moveBackAndForth, false},
		{"check that streams and downloads survived", d.endTransfers, false},
		{"cut the power of a node that is a plain worker and runs guest 101", d.failWorker, false},
		{"cut the power of the node that is HA manager, store leader and runs guest 101", d.failLeader, false},
		{"look at the end: all nodes online, quorate, every acknowledged record there", d.checkEnd, false},
	}
}

// perform plays the story as far as it goes.
func (d *demo) perform(ctx context.Context, story []step) {
	for _, s := range story {
		begin := d.clock.now()
		d.say("%s", s.title)
		err := s.do(ctx)
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		d.span("steps", report.Span{From: begin, To: d.clock.now(), Kind: "step", Label: s.title})
		if err == nil {
			continue
		}
		d.note(s.title, err)
		if s.vital || ctx.Err() != nil {
			return
		}
	}
}

// note writes down that something went wrong; the run goes on if it can.
func (d *demo) note(what string, err error) {
	reason := err.Error()
	if errors.Is(err, context.Canceled) {
		reason = "interrupted"
	}
	d.tell("FAILED: %s", reason)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.run.Failures = append(d.run.Failures, report.Failure{At: d.clock.now(), Step: what, Reason: reason})
}

// say announces a step with the time since the beginning.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.Stdout, "%7.1f s  %s\n", d.clock.now().Seconds(), fmt.Sprintf(format, args...))
}

// tell says what a step found, below its line.
func (d *demo) tell(format string, args ...any) {
	fmt.Fprintf(d.Stdout, "%7.1f s    %s\n", d.clock.now().Seconds(), fmt.Sprintf(format, args...))
}

// span adds a span to a lane of the timeline.
func (d *demo) span(lane string, s report.Span) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.run.Timeline {
		if l := &d.run.Timeline[i]; l.Name == lane {
			l.Spans = append(l.Spans, s)
			return
		}
	}
	d.run.Timeline = append(d.run.Timeline, report.Lane{Name: lane, Spans: []report.Span{s}})
}

// inBackground runs f until the story is over. A panic in it ends the story and not the program,
// which would leave the room behind.
func (d *demo) inBackground(what string, f func(context.Context)) {
	d.wg.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				d.fail(fmt.Errorf("%s: panic: %v", what, p))
			}
		}()
		f(d.background)
	})
}

// stopBackground ends pollers and probes. Idempotent.
func (d *demo) stopBackground() {
	d.stop()
	d.wg.Wait()
}

// tearDown removes the room, or says how to look at it. The report is written by then.
func (d *demo) tearDown(ctx context.Context) error {
	d.stopBackground()
	if d.machines != nil {
		d.machines.close()
	}
	if d.room == nil {
		return nil
	}
	keepErr := d.keepLogs()
	if d.Keep {
		d.sayHowToLook()
		return keepErr
	}
	if _, err := d.room.Down(ctx, false); err != nil {
		return errors.Join(keepErr, fmt.Errorf("remove the room: %w", err))
	}
	d.say("the room is removed")
	return keepErr
}

func (d *demo) sayHowToLook() {
	fmt.Fprintf(d.Stdout, `
The room stays up. Look at it with
  %[1]s status
  %[1]s exec n1 -- sauh cluster status
  %[1]s exec n1 -- sauh vm list
  %[1]s power n2 off
  less %[2]s
and remove it with
  %[1]s down
`, os.Args[0]+" lab --name "+d.room.Name(), filepath.Join(d.room.Log("n1"), "sauh-agent.log"))
}
