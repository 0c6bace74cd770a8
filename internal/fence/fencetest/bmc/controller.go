// Package bmc is a machine's BMC, with all that can be wrong with one, and Redfish as a language that it speaks. The
// machine room gives one to each of its nodes, and the tests of internal/fence try their drivers on it.
//
// It is no production code: it trusts whoever knows the password, and keeps
// nothing over a restart. Invariant: an order that was taken is carried out, whoever hangs up meanwhile.
// Start reading with [Controller], which has no language, and [Redfish].
package bmc

import (
	"context"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Machine is what a BMC switches.
type Machine interface {
	// On is whether it has power.
	On() bool
	// PowerOff returns when it has none any more, PowerOn when it is switched on.
	PowerOff(ctx context.Context) error
	PowerOn(ctx context.Context) error
	// UUID is the system UUID.
	UUID() string
}

// Fault is what is wrong with a BMC.
type Fault string

// The faults of a BMC.
const (
	Healthy Fault = "none"
	Hang    Fault = "hang"  // it takes connections and never answers
	Lie     Fault = "lie"   // it says off, and switches nothing
	Wrong   Fault = "wrong" // it is another machine's: it names that one and switches it
	Dead    Fault = "dead"  // it has no power: nothing answers at all
	Tied    Fault = "tied"  // it loses its power with its machine
	Late    Fault = "late"  // it answers, each time after LateBy
	Early   Fault = "early" // it says off as soon as it was told to switch, EarlyBy before it is
)

// LateBy and EarlyBy are the times of the faults Late and Early.
const (
	LateBy  = 3 * time.Second
	EarlyBy = time.Second
)

// ParseFault reads the name of a fault.
func ParseFault(s string) (Fault, error) {
	for _, f := range []Fault{Healthy, Hang, Lie, Wrong, Dead, Tied, Late, Early} {
		if string(f) == s {
			return f, nil
		}
	}
	return "", model.Invalidf("fault", "%q is no fault of a BMC: use hang, lie, wrong, dead, tied, late, early or none", s)
}

// Order is what a BMC can be told to do with the power, in the words of Redfish.
type Order string

// The orders that are obeyed.
const (
	PowerOn      Order = "On"
	ForceOff     Order = "ForceOff"
	ForceRestart Order = "ForceRestart"
)

// Controller is what a BMC is in every language: what it says of its machine and does to it, as its fault wants
// it. It is safe for concurrent use; the fields are set before.
type Controller struct {
	// Machine is its own, Other the one of the fault Wrong.
	Machine, Other Machine

	mu    sync.Mutex
	fault Fault // guarded by mu
	told  bool  // with Early: it was told to switch off; guarded by mu
}

// SetFault breaks or heals the BMC.
func (c *Controller) SetFault(f Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault, c.told = f, false
}

// Fault is what is wrong with it.
func (c *Controller) Fault() Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fault == "" {
		return Healthy
	}
	return c.fault
}

// Silent says whether the BMC has no power itself.
func (c *Controller) Silent() bool {
	f := c.Fault()
	return f == Dead || f == Tied && !c.Machine.On()
}

// machine is the one that the BMC is cabled to.
func (c *Controller) machine() Machine {
	if c.Fault() == Wrong && c.Other != nil {
		return c.Other
	}
	return c.Machine
}

// UUID is what the BMC says that its machine's is.
func (c *Controller) UUID() string { return c.machine().UUID() }

// On is what the BMC says of its machine's power.
func (c *Controller) On() bool {
	c.mu.Lock()
	lies := c.fault == Lie || c.fault == Early && c.told
	c.mu.Unlock()
	return !lies && c.machine().On()
}

// Switch carries an order out and returns when that is done. It calls taken, once, when the BMC tells whoever gave the
// order that it is; with some faults long before it is. model.ErrInvalid: there is no such order.
func (c *Controller) Switch(ctx context.Context, o Order, taken func()) error {
	c.mu.Lock()
	fault := c.fault
	c.told = o == ForceOff
	c.mu.Unlock()
	if fault == Lie {
		taken()
		return nil
	}
	if fault == Early {
		taken()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(EarlyBy):
		}
	}
	err := obey(ctx, c.machine(), o)
	if err == nil && fault != Early {
		taken()
	}
	return err
}

func obey(ctx context.Context, m Machine, o Order) error {
	switch o {
	case PowerOn:
		return m.PowerOn(ctx)
	case ForceOff:
		return m.PowerOff(ctx)
	case ForceRestart:
		if err := m.PowerOff(ctx); err != nil {
			return err
		}
		return m.PowerOn(ctx)
	}
	return model.Invalidf("ResetType", "a BMC knows no order %q", o)
}
