// Package fence makes sure that a node is dead, or that its storage refuses it, before its lease is over: the drivers
// of ha/fence.cfg for one node, asked and fired in a race.
//
// It decides neither when a node is asked or shot nor what follows; that is core/ha and the agent. What counts as a
// proof is core/fence. The lease needs nothing of all this and works always.
//
// Invariant: every path that is in doubt ends without a proof. DESIGN.md says why no fault of a BMC
// makes anything worse than the lease. Start reading with [Set].
package fence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/fence"
)

// Fencer is one configured way to know that a node's guests cannot write. Its calls obey their context, may overlap,
// and bring evidence, which is not yet a proof.
type Fencer interface {
	// Ask looks and changes nothing.
	Ask(ctx context.Context) (fence.Evidence, error)
	// Shoot switches the node off, or has its storage refuse it, and returns when that was verified. Idempotent. It
	// refuses a BMC that is not the node's with fence.ErrStranger or fence.ErrUnidentified.
	Shoot(ctx context.Context) (fence.Evidence, error)
	// Rehearse tries on a node that runs all that can be tried without harming it.
	Rehearse(ctx context.Context) error
}

// BMC is a machine's power as its management controller has it. ipmi.Client and redfish.Client are ones.
type BMC interface {
	// Status reads power and identity.
	Status(ctx context.Context) (fence.Reading, error)
	// PowerOff orders off if same returns nil for the identity, and otherwise returns what it said.
	PowerOff(ctx context.Context, same func(uuid string) error) error
}

const (
	// pollEvery is the pace of reading a power that does not go off; most BMCs need one to five seconds for it.
	pollEvery = 200 * time.Millisecond
	// orderEvery is when an order that showed no effect is given again: some BMCs forget one.
	orderEvery = 3 * time.Second
)

// power is a Fencer by BMC.
type power struct {
	bmc    BMC
	method fence.Method
}

// Power makes a Fencer of a BMC.
func Power(bmc BMC, m fence.Method) Fencer { return power{bmc, m} }

// Ask reads once, and if that says off as long as it takes to verify it.
func (p power) Ask(ctx context.Context) (fence.Evidence, error) {
	var ev fence.Evidence
	for {
		r, err := p.bmc.Status(ctx)
		if err != nil {
			return ev, err
		}
		ev.Readings = append(ev.Readings, r)
		if p.settled(ev) || r.Power != fence.Off {
			return ev, nil
		}
		if err := pause(ctx, p.method.OffFor()); err != nil {
			return ev, err
		}
	}
}

// settled: nothing that could still be read would change the judgement.
func (p power) settled(ev fence.Evidence) bool {
	last := ev.Readings[len(ev.Readings)-1]
	return p.method.Identify(last.UUID) != nil || fence.Verified(p.method, ev.Readings)
}

// Shoot orders off and reads until off is verified or the context ends. A reading that fails in between, as BMCs do while
// they switch, is tried again.
func (p power) Shoot(ctx context.Context) (fence.Evidence, error) {
	var ev fence.Evidence
	for {
		if err := p.bmc.PowerOff(ctx, p.method.Identify); err != nil {
			return ev, err
		}
		settled, err := p.watch(ctx, &ev)
		if settled || err != nil {
			return ev, err
		}
	}
}

// watch reads until off is verified, or until the order is to be given again.
func (p power) watch(ctx context.Context, ev *fence.Evidence) (settled bool, err error) {
	again, cancel := context.WithTimeout(ctx, orderEvery)
	defer cancel()
	for {
		r, err := p.bmc.Status(ctx)
		wait := pollEvery
		if err == nil {
			ev.Readings = append(ev.Readings, r)
			if p.settled(*ev) {
				return true, nil
			}
		}
		if r.Power == fence.Off {
			wait = p.method.OffFor()
		} else if again.Err() != nil {
			return false, context.Cause(ctx)
		}
		if perr := pause(ctx, wait); perr != nil {
			return false, errors.Join(perr, err)
		}
	}
}

// Rehearse reads once: a node that runs must be on, and the BMC must be its own.
func (p power) Rehearse(ctx context.Context) error {
	r, err := p.bmc.Status(ctx)
	if err != nil {
		return err
	}
	if err := p.method.Identify(r.UUID); err != nil {
		return err
	}
	if r.Power != fence.On {
		return fmt.Errorf("the BMC says that the power of %s is %s while it runs: it must not be believed", p.method.Node, r.Power)
	}
	return nil
}

// pause waits, or returns why the context ended.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
