package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

// haParams are the times of HA that fit those of the lease: with the default ones they are ha.DefaultParams.
func haParams(l lease.Params) ha.Params {
	p := ha.DefaultParams()
	p.TakeAfter, p.Suspect = l.TakeAfter(), l.SuspectAfter()
	p.Ask, p.FenceDelay, p.LockPatience = l.Lease/5, l.Lease*3/5, 3*l.Lease
	return p
}

// machine is a state machine of core/ha in its loop: views and answers go in, actions come out.
type machine struct {
	step func(time.Duration, ha.Event) []ha.Action
	view func() ha.Event
	// do carries one action out; it returns the transaction's revision, if it was one.
	do func(context.Context, ha.Action) (int64, error)
	// fence answers AskFence and Shoot; nil where there are none.
	fence func(context.Context, ha.Action) (ha.Event, error)
	log   func(ha.Action, error)
}

// run feeds the machine until ctx is done, and waits for what it has begun.
func (mc machine) run(ctx context.Context, changes ...<-chan struct{}) {
	merged := make(chan struct{}, 1)
	results := make(chan ha.Event, 16)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, c := range changes {
		wg.Go(func() { forward(ctx, c, merged) })
	}
	var wake <-chan time.Time
	feed := func(ev ha.Event) {
		wake = nil
		for _, a := range mc.step(sys.BootTime(), ev) {
			if w, ok := a.(ha.Wake); ok {
				wake = time.After(max(w.At-sys.BootTime(), time.Millisecond))
				continue
			}
			wg.Go(func() { mc.carryOut(ctx, a, results) })
		}
	}
	for {
		feed(mc.view())
		select {
		case <-ctx.Done():
			return
		case <-merged:
		case <-wake:
		case ev := <-results:
			feed(ev)
		}
		feedWaiting(results, feed)
	}
}

// together bounds how many answers are fed without a view, so that actions which fail at once cannot keep one from being made.
const together = 1000

// feedWaiting feeds the answers that have come in: one view is made after all of them, which may take longer than they do.
func feedWaiting(results <-chan ha.Event, feed func(ha.Event)) {
	for range together {
		select {
		case ev := <-results:
			feed(ev)
		default:
			return
		}
	}
}

func forward(ctx context.Context, from <-chan struct{}, to chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-from:
			select {
			case to <- struct{}{}:
			default:
			}
		}
	}
}

// carryOut does an action and feeds its outcome back.
func (mc machine) carryOut(ctx context.Context, a ha.Action, results chan<- ha.Event) {
	var ev ha.Event
	var err error
	switch a.(type) {
	case ha.AskFence, ha.Shoot:
		ev, err = mc.fence(ctx, a)
	default:
		var rev int64
		rev, err = mc.do(ctx, a)
		ev = ha.ActionDone{Action: a, Revision: rev}
	}
	mc.log(a, err)
	if err != nil {
		ev = ha.ActionFailed{Action: a, Kind: failKind(err), Reason: err.Error()}
	}
	select {
	case results <- ev:
	case <-ctx.Done():
	}
}

// lockedError marks a start that another holder of the image's lock prevented.
type lockedError struct{ error }

func (e *lockedError) Unwrap() error { return e.error }

// unreadyError marks what failed for the node's sake, whatever the guest: it is repeated and not counted.
type unreadyError struct{ error }

func (e *unreadyError) Unwrap() error { return e.error }

// unready marks an error of the guard: it does not answer, the lease is too short for it, the watchdog is not armed yet.
func unready(err error) error {
	if errors.Is(err, model.ErrUnavailable) {
		return &unreadyError{err}
	}
	return err
}

// awayError marks a start that failed because a storage of the guest is away. A migration's target may say the same of itself.
type awayError struct{ error }

func (e *awayError) Unwrap() error { return e.error }

func failKind(err error) ha.FailKind {
	var away *awayError
	var locked *lockedError
	var own *unreadyError
	switch {
	case errors.As(err, &locked):
		return ha.FailLocked
	case errors.As(err, &away):
		return ha.FailAway
	case errors.As(err, &own):
		return ha.FailUnready
	case errors.Is(err, store.ErrConflict), errors.Is(err, model.ErrBusy):
		return ha.FailConflict
	case errors.Is(err, model.ErrNoQuorum):
		return ha.FailUnready
	}
	return ha.FailOther
}

// logAction says what became of an action.
func logAction(log *slog.Logger) func(ha.Action, error) {
	return func(a ha.Action, err error) {
		quiet := false
		switch a.(type) {
		case ha.SetStatus, ha.AskFence:
			quiet = true
		}
		switch {
		case err == nil && quiet:
			log.Debug("ha: done", "why", a.Why())
		case err == nil:
			log.Info("ha: done", "why", a.Why())
		case failKind(err) == ha.FailConflict:
			log.Debug("ha: overtaken", "why", a.Why(), "err", err)
		case isQuestion(a):
			log.Debug("ha: no answer", "why", a.Why(), "err", err) // fencing.take says it, and not each time
		default:
			log.Warn("ha: not done", "why", a.Why(), "err", err)
		}
	}
}

// isQuestion: it asks a method of fencing.
func isQuestion(a ha.Action) bool {
	_, ok := a.(ha.AskFence)
	return ok
}
