package fence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/model"
)

// Method is a Fencer with all that the race has to know about it.
type Method struct {
	fence.Method
	Fencer Fencer
	// Order: methods with the same number race, those with a higher one follow when all of the lower ones failed.
	Order int
	// Delay is waited before shooting.
	Delay time.Duration
	// AskTimeout and Timeout bound asking, and shooting without the delay.
	AskTimeout, Timeout time.Duration
	// Release takes back what Shoot left behind; nil if that is nothing.
	Release func(ctx context.Context, dead fence.Dead, still func(context.Context) error) error
}

// Set is all methods of one node. It is safe for concurrent use. Close it.
type Set struct {
	node    string
	now     func() time.Duration
	methods []*entry
	guests  []model.VMID // of the node; a proof about all of them ends a race

	wg sync.WaitGroup
}

// entry is a method that is used once at a time: a BMC that hangs does not collect questions.
type entry struct {
	Method
	turn chan struct{} // holds a token while nobody uses it
}

// Said is what became of one method.
type Said struct {
	Method string `json:"method"`
	Grade  Grade  `json:"grade"`
	// Proof is set if it brought one, Reason why not otherwise.
	Proof    *fence.Proof   `json:"proof,omitempty"`
	Reason   string         `json:"reason,omitempty"`
	Err      error          `json:"-"` // Reason as an error: the sentinels of core/fence
	Evidence fence.Evidence `json:"evidence"`
	Took     time.Duration  `json:"took_ns"`
}

// Grade is core/fence's.
type Grade = fence.Grade

// Outcome is the end of a race.
type Outcome struct {
	Node string `json:"node"`
	// Proof is the first one that covers all guests, nil if there was none. Hold it against the newest signs before use.
	Proof *fence.Proof `json:"proof,omitempty"`
	// Partial are proofs that cover some of the guests.
	Partial []fence.Proof `json:"partial,omitempty"`
	// Said has every method, in the order of ha/fence.cfg.
	Said []Said `json:"said"`
}

// Signs tells when the node was last heard of, in each way; it is asked at each judgement.
type Signs func() []fence.Sign

// Why a method brought nothing, beside the sentinels of core/fence.
var (
	// ErrBusy: its last use has not come back.
	ErrBusy = errors.New("it has not come back from its last use")
	// ErrBeaten: another method was first.
	ErrBeaten = errors.New("another method was first")
	// ErrHeardOf: the node was heard of before the shot.
	ErrHeardOf = errors.New("the node was heard of again, so it was not shot")
	// ErrTimeout: it did not come back within its time.
	ErrTimeout = errors.New("it did not answer in time")
)

// NewSet makes a set; now is the clock of the agent that asks. guests are the node's: without them only a proof about the
// whole node is complete.
func NewSet(node string, guests []model.VMID, now func() time.Duration, methods ...Method) *Set {
	s := &Set{node: node, guests: guests, now: now}
	for _, m := range methods {
		e := &entry{Method: m, turn: make(chan struct{}, 1)}
		e.turn <- struct{}{}
		s.methods = append(s.methods, e)
	}
	return s
}

// Close waits for methods that were left behind by a race; they end with their own time limits.
func (s *Set) Close() { s.wg.Wait() }

// Ask asks every method at once whether the node is off or refused already. It harms nobody. It returns with the first
// proof about all guests, or when all have answered or run out of time.
func (s *Set) Ask(ctx context.Context, signs Signs) Outcome {
	return s.race(ctx, signs, s.methods, func(ctx context.Context, e *entry) (fence.Evidence, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, e.AskTimeout, ErrTimeout)
		defer cancel()
		return e.Fencer.Ask(ctx)
	}, func(e *entry) time.Duration { return e.AskTimeout })
}

// Shoot fires the methods in their order and returns with the first proof about all guests. One does not fire if, when its delay is over, the
// node was heard of since begun, or if still returns an error, which is asked right before the order; nil for nobody. It gives up, with
// ErrHeardOf, when the node is heard of while it tries: then nobody knows whether the order arrived.
func (s *Set) Shoot(ctx context.Context, begun time.Duration, signs Signs, still func(context.Context) error) Outcome {
	fire := func(ctx context.Context, e *entry) (fence.Evidence, error) {
		if err := pause(ctx, e.Delay); err != nil {
			return fence.Evidence{}, err
		}
		if still != nil {
			if err := still(ctx); err != nil {
				return fence.Evidence{}, err
			}
		}
		if err := heardSince(begun, signs); err != nil {
			return fence.Evidence{}, err
		}
		ctx, cancel := context.WithTimeoutCause(ctx, e.Timeout, ErrTimeout)
		defer cancel()
		return s.shootUnlessHeard(ctx, e, begun, signs)
	}
	limit := func(e *entry) time.Duration { return e.Delay + stillLimit + e.Timeout }
	out := Outcome{Node: s.node}
	for _, group := range s.orders() {
		o := s.race(ctx, signs, group, fire, limit)
		out.Said, out.Partial = append(out.Said, o.Said...), append(out.Partial, o.Partial...)
		if out.Proof = o.Proof; out.Proof != nil || ctx.Err() != nil {
			break
		}
	}
	return out
}

// heardPace is how often it is looked whether a node that is being shot is heard of.
const heardPace = 20 * time.Millisecond

// shootUnlessHeard fires, and stops trying when the node is heard of: a BMC that was silent may answer again with the node's own return.
func (s *Set) shootUnlessHeard(ctx context.Context, e *entry, begun time.Duration, signs Signs) (fence.Evidence, error) {
	ctx, stop := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	s.wg.Go(func() {
		defer close(watched)
		look := time.NewTicker(heardPace)
		defer look.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-look.C:
				if err := heardSince(begun, signs); err != nil {
					stop(err)
				}
			}
		}
	})
	evidence, err := e.Fencer.Shoot(ctx)
	if why := context.Cause(ctx); err != nil && errors.Is(why, ErrHeardOf) {
		err = why
	}
	stop(nil)
	<-watched
	return evidence, err
}

// heardSince is ErrHeardOf if there was a sign of life after begun.
func heardSince(begun time.Duration, signs Signs) error {
	for _, sign := range signs() {
		if sign.At >= begun {
			return fmt.Errorf("%w: by a %s", ErrHeardOf, sign.Kind)
		}
	}
	return nil
}

// stillLimit is what Shoot's still may take beside a method's own time.
const stillLimit = 2 * time.Second

// orders groups the methods by their order, the lowest first.
func (s *Set) orders() [][]*entry {
	sorted := slices.Clone(s.methods)
	slices.SortStableFunc(sorted, func(a, b *entry) int { return a.Order - b.Order })
	var out [][]*entry
	for i, e := range sorted {
		if i == 0 || sorted[i-1].Order != e.Order {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], e)
	}
	return out
}

// grace is given to a method beyond its time before it is left behind.
const grace = 250 * time.Millisecond

// use is what a race does with each method.
type use func(context.Context, *entry) (fence.Evidence, error)

// race runs what for each method at once. It never waits longer for one than its limit, whatever that one does.
func (s *Set) race(ctx context.Context, signs Signs, methods []*entry, what use, limit func(*entry) time.Duration) Outcome {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(ErrBeaten)
	out := Outcome{Node: s.node, Said: make([]Said, len(methods))}
	results := make(chan result, len(methods))
	var longest time.Duration
	start := s.now()
	for i, e := range methods {
		out.Said[i] = Said{Method: e.Name}
		out.Said[i].Grade, _ = e.Grade()
		longest = max(longest, limit(e))
		s.wg.Go(func() { results <- result{i, s.try(ctx, e, signs, what)} })
	}
	late := time.NewTimer(longest + grace)
	defer late.Stop()
	why := s.collect(ctx, &out, results, late.C)
	for i := range out.Said {
		if sd := &out.Said[i]; sd.Proof == nil && sd.Err == nil {
			sd.fail(why)
			sd.Took = s.now() - start
		}
	}
	return out
}

// result is what method i of a race said.
type result struct {
	i    int
	said Said
}

// collect takes results until one is a complete proof or there are no more to come, and says why those that are missing are.
func (s *Set) collect(ctx context.Context, out *Outcome, results <-chan result, late <-chan time.Time) error {
	for range out.Said {
		select {
		case r := <-results:
			out.Said[r.i] = r.said
			p := r.said.Proof
			if p == nil {
				continue
			}
			if s.complete(*p) {
				out.Proof = p
				return ErrBeaten
			}
			out.Partial = append(out.Partial, *p)
		case <-late:
			return ErrTimeout
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// complete says whether a proof covers every guest of the node.
func (s *Set) complete(p fence.Proof) bool {
	left := slices.ContainsFunc(s.guests, func(id model.VMID) bool { return !p.Covers(id) })
	return p.Kind == fence.Power || len(s.guests) > 0 && !left
}

func (sd *Said) fail(err error) { sd.Err, sd.Reason = err, err.Error() }

// try uses one method and judges what it brought.
func (s *Set) try(ctx context.Context, e *entry, signs Signs, what use) (said Said) {
	start := s.now()
	said.Method = e.Name
	defer func() { said.Took = s.now() - start }()
	var err error
	if said.Grade, err = e.Grade(); err != nil {
		said.fail(err) // it is not even asked: it could be another machine's
		return said
	}
	select {
	case <-e.turn:
	default:
		said.fail(ErrBusy)
		return said
	}
	defer func() { e.turn <- struct{}{} }()
	said.Evidence, err = what(ctx, e)
	proof, judged := fence.Judge(e.Method.Method, said.Evidence, signs())
	switch {
	case err != nil: // what it brought before that is no proof: it did not say that it is done
		said.fail(err)
	case judged != nil:
		said.fail(judged)
	default:
		said.Proof = &proof
	}
	return said
}

// Release takes back what the methods left behind, once the node's guests are dead, and as long as still, asked right before each step, returns nil.
func (s *Set) Release(ctx context.Context, dead fence.Dead, still func(context.Context) error) error {
	var errs []error
	for _, e := range s.methods {
		if e.Release != nil {
			errs = append(errs, e.Release(ctx, dead, still))
		}
	}
	return errors.Join(errs...)
}

// Rehearsing says how methods are rehearsed.
type Rehearsing struct {
	// At is the date, in Unix seconds.
	At int64
	// Signs tell when the node is heard of.
	Signs Signs
	// Switch is nil to harm nobody. Else the node is really switched off, by one method; Switch is called right before the order, and the
	// order is not given if it returns an error: the node must be empty of guests.
	Switch func(context.Context) error
	// Names are the methods to try, in this order; none means all.
	Names []string
}

// Rehearse tries methods on a node that runs, one after the other, and says how it went. With switching it ends with the first method that
// gave the order, because the node is off from then on and the others would seem to lie about it; a method that switches nothing is
// tried as always. Keep the results where Build reads them.
func (s *Set) Rehearse(ctx context.Context, how Rehearsing) []fence.Rehearsal {
	var out []fence.Rehearsal
	for _, e := range s.named(how.Names) {
		r := fence.Rehearsal{Method: e.Name, Digest: e.Digest, At: how.At}
		start := s.now()
		ordered, err := s.rehearse(ctx, e, how, &r)
		if err != nil {
			r.Failed, r.Refuted = err.Error(), ordered
		}
		r.Took = s.now() - start
		out = append(out, r)
		if ordered {
			break
		}
	}
	return out
}

// named are the methods of these names in their order, or all.
func (s *Set) named(names []string) []*entry {
	if len(names) == 0 {
		return s.methods
	}
	var out []*entry
	for _, name := range names {
		if i := slices.IndexFunc(s.methods, func(e *entry) bool { return e.Name == name }); i >= 0 {
			out = append(out, s.methods[i])
		}
	}
	return out
}

// rehearse tries one method. ordered: it was told to switch the node off, whatever came of it.
func (s *Set) rehearse(ctx context.Context, e *entry, how Rehearsing, r *fence.Rehearsal) (ordered bool, err error) {
	select {
	case <-e.turn:
	default:
		return false, ErrBusy
	}
	defer func() { e.turn <- struct{}{} }()
	ask, cancel := context.WithTimeoutCause(ctx, e.AskTimeout, ErrTimeout)
	defer cancel()
	if err := e.Fencer.Rehearse(ask); err != nil || how.Switch == nil || e.Kind == fence.Storage {
		return false, err
	}
	if err := how.Switch(ctx); err != nil {
		return false, err
	}
	if err := s.switchOff(ctx, e, how, r); err != nil {
		return true, err
	}
	r.Switched = true
	return true, nil
}

// switchOff shoots and looks whether what the method says of it is true.
func (s *Set) switchOff(ctx context.Context, e *entry, how Rehearsing, r *fence.Rehearsal) error {
	shot, cancel := context.WithTimeoutCause(ctx, e.Timeout, ErrTimeout)
	defer cancel()
	ev, err := e.Fencer.Shoot(shot)
	if err != nil {
		return err
	}
	// What the rehearsal is to find out must not be demanded of it.
	m := e.Method.Method
	m.Rehearsal = fence.Rehearsal{Digest: m.Digest, At: r.At, Switched: true}
	proof, err := fence.Judge(m, ev, nil)
	if err != nil {
		return err
	}
	// What the node still says now shows a BMC that says off too early, or that does not switch it at all.
	verified := s.now()
	if err := pause(ctx, 2*afterwards); err != nil {
		return err
	}
	for _, sign := range how.Signs() {
		if !proof.VoidedBy(sign) {
			continue
		}
		if sign.At > verified+afterwards {
			return fmt.Errorf("%w: a %s came %v after it was said to be off: it must not be believed", fence.ErrAlive, sign.Kind, sign.At-proof.Since)
		}
		r.Early = max(r.Early, sign.At-proof.Since)
	}
	return nil
}

// afterwards is how long after its verified end a node may be heard of in a rehearsal, for what was under way; as long
// again nothing may come, which is two renewals.
const afterwards = 2500 * time.Millisecond

// Methods says what is configured and what it is worth, for `sauh ha status`.
func (s *Set) Methods() []Said {
	var out []Said
	for _, e := range s.methods {
		sd := Said{Method: e.Name}
		var err error
		if sd.Grade, err = e.Grade(); err != nil {
			sd.fail(err)
		}
		out = append(out, sd)
	}
	return out
}

// Digests names the configuration of each method, by its name.
func (s *Set) Digests() map[string]string {
	out := map[string]string{}
	for _, e := range s.methods {
		out[e.Name] = e.Digest
	}
	return out
}
