package lease

import (
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Params are the times of the lease. All nodes of a cluster must have the same.
type Params struct {
	// Lease (L) is how long after sending a renewal a node may run protected guests.
	Lease time.Duration
	// Renew (R) is the time from one renewal to the next.
	Renew time.Duration
	// Watchdog (W) is the time after its last feeding at which the watchdog resets the machine.
	Watchdog time.Duration
	// FreezeMargin is how long before the deadline the guard begins to freeze.
	FreezeMargin time.Duration
	// InFlight (F) is how long a write that QEMU has handed to the kernel may be under way.
	InFlight time.Duration
	// ClockErrorPPM (ε) is how much faster or slower than true time any node's clock may run.
	ClockErrorPPM int
}

// DefaultParams are the times of a production cluster. A node that lost the
// network for less than eight seconds notices nothing; one that died is taken over after 10.52 s.
func DefaultParams() Params {
	return Params{
		Lease:         10 * time.Second,
		Renew:         time.Second,
		Watchdog:      5 * time.Second,
		FreezeMargin:  time.Second,
		InFlight:      500 * time.Millisecond,
		ClockErrorPPM: 1000, // ten times what an undisciplined quartz is off
	}
}

// The profiles: sets of times, of which a cluster has one from its making on.
const (
	ProfileDefault = "default"
	ProfileFast    = "fast"
)

// Profile returns the times of a profile; "" is the default, as in clusters that were made before there were others. A cluster's profile is never
// changed: a node with a longer lease than another takes its guests for dead believes too long that it may run them.
func Profile(name string) (Params, error) {
	p := DefaultParams()
	switch name {
	case "", ProfileDefault:
	case ProfileFast:
		// For a network that loses nothing for as long as this: a node that died is taken over after 5.51 s.
		p.Lease, p.Renew, p.Watchdog = 5*time.Second, 250*time.Millisecond, 3*time.Second
	default:
		return Params{}, model.Invalidf("ha-profile", "%q is no profile: use default or fast", name)
	}
	return p, nil
}

// GuardParams are the times of a guard, which starts before anybody knows its cluster's profile: the longest lease and the
// shortest watchdog. A guard is told each deadline, so it keeps every profile with them.
func GuardParams() Params {
	p := DefaultParams()
	if fast, err := Profile(ProfileFast); err == nil {
		p.Watchdog = min(p.Watchdog, fast.Watchdog)
	}
	return p
}

// TakeAfter is how long after the arrival of a node's last renewal its guests
// may be taken over: L(1+2ε)+F. The factor two is one ε for the holder's slow clock and one for the taker's fast one.
func (p Params) TakeAfter() time.Duration { return p.Lease + p.drift() + p.InFlight }

// SuspectAfter is the silence after which a node is shown as suspect: three renewals missed, and no less than a fifth of a
// lease. With short leases a change of the store's leader can take longer; then all nodes are silent, and nobody is suspected.
func (p Params) SuspectAfter() time.Duration { return max(3*p.Renew, p.Lease/5) }

// AbsentAfter is the gap in a node's own renewals after which it takes nobody's silence for more than its own, and for how long
// it does not once they arrive again.
func (p Params) AbsentAfter() time.Duration { return p.Lease / 2 }

// drift is 2εL.
func (p Params) drift() time.Duration {
	return time.Duration(2 * int64(p.Lease) / 1_000_000 * int64(p.ClockErrorPPM))
}

// Validate refuses times with which the safety argument, or an undisturbed
// node, would not stand. Its errors are model.ErrInvalid.
func (p Params) Validate() error {
	switch {
	case p.Lease <= 0 || p.Renew <= 0 || p.Watchdog <= 0 || p.FreezeMargin <= 0:
		return model.Invalidf("lease", "lease, renewal, watchdog and freeze margin must all be longer than 0")
	case p.Lease > time.Hour:
		return model.Invalidf("lease", "a lease of %v is longer than an hour: nobody would wait that long for a failover", p.Lease)
	case p.InFlight < 0:
		return model.Invalidf("in-flight", "the time for writes in flight must not be negative, it is %v", p.InFlight)
	case p.ClockErrorPPM < 0 || p.ClockErrorPPM > 100_000:
		return model.Invalidf("clock-error", "the clock error must be 0 to 100000 ppm, it is %d", p.ClockErrorPPM)
	case p.Lease < 3*p.Renew:
		return model.Invalidf("renew", "a lease of %v with a renewal every %v ends after two lost renewals: renew at least three times in a lease", p.Lease, p.Renew)
	case p.Watchdog+p.FreezeMargin+2*p.Renew > p.Lease:
		return model.Invalidf("watchdog", "watchdog %v, freeze margin %v and two renewals of %v do not fit in the lease of %v: "+
			"the watchdog of a healthy node would go hungry", p.Watchdog, p.FreezeMargin, p.Renew, p.Lease)
	case p.secondOrder() > p.InFlight:
		return model.Invalidf("in-flight", "with a clock error of %d ppm a holder may outlast the taker's wait by %v: the time for writes in flight must be longer than that",
			p.ClockErrorPPM, p.secondOrder())
	}
	return nil
}

// secondOrder bounds what 2ε leaves out of the exact factor (1+ε)/(1−ε) by which
// a holder whose clock is slow outlasts a taker whose clock is fast: 2ε²/(1−ε), with ε at most 0.1.
func (p Params) secondOrder() time.Duration {
	e := float64(p.ClockErrorPPM) / 1e6
	return time.Duration(float64(p.Lease)*2*e*e/(1-e)) + 1
}

// feedEvery is the pace of the guard: how often it feeds and looks at everything.
func (p Params) feedEvery() time.Duration { return min(p.Watchdog/10, p.FreezeMargin/4) }

// feedSlack is the time allowed from the decision to feed to the feeding itself.
func (p Params) feedSlack() time.Duration { return p.FreezeMargin / 20 }

// confirmWithin is how long a group may take from the order to freeze to its confirmation.
func (p Params) confirmWithin() time.Duration { return p.FreezeMargin * 3 / 4 }
