package lease_test

import (
	"errors"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
)

func TestTakerWaitsLeaseDriftAndWritesInFlight(t *testing.T) {
	if got, want := lease.DefaultParams().TakeAfter(), 10520*time.Millisecond; got != want {
		t.Errorf("TakeAfter() = %v, want %v", got, want)
	}
}

func TestDefaultParamsAreValid(t *testing.T) {
	if err := lease.DefaultParams().Validate(); err != nil {
		t.Error(err)
	}
}

// A holder whose clock is slow by ε must be done before a taker whose clock is fast by ε begins.
func TestTakerWithAFastClockOutwaitsAHolderWithASlowOne(t *testing.T) {
	for _, ppm := range []int{0, 1, 100, 1000, 10_000, 100_000} {
		p := lease.DefaultParams()
		p.ClockErrorPPM = ppm
		if p.Validate() != nil {
			continue
		}
		e := float64(ppm) / 1e6
		holder := float64(p.Lease) / (1 - e)
		taker := float64(p.TakeAfter()) / (1 + e)
		if taker < holder {
			t.Errorf("with %d ppm the taker begins %v before the holder's end", ppm, time.Duration(holder-taker))
		}
	}
}

func TestValidateRefusesWhatBreaksTheArgument(t *testing.T) {
	tests := []struct {
		name   string
		change func(*lease.Params)
		param  string
	}{
		{"no lease", func(p *lease.Params) { p.Lease = 0 }, "lease"},
		{"negative renewal", func(p *lease.Params) { p.Renew = -1 }, "lease"},
		{"no watchdog", func(p *lease.Params) { p.Watchdog = 0 }, "lease"},
		{"no margin", func(p *lease.Params) { p.FreezeMargin = 0 }, "lease"},
		{"lease of a day", func(p *lease.Params) { p.Lease = 24 * time.Hour }, "lease"},
		{"negative writes in flight", func(p *lease.Params) { p.InFlight = -1 }, "in-flight"},
		{"clock that nobody would own", func(p *lease.Params) { p.ClockErrorPPM = 200_000 }, "clock-error"},
		{"renewals too far apart", func(p *lease.Params) { p.Renew = 4 * time.Second }, "renew"},
		{"watchdog as long as the lease", func(p *lease.Params) { p.Watchdog = 9 * time.Second }, "watchdog"},
		{"drift that the wait does not cover", func(p *lease.Params) { p.ClockErrorPPM, p.InFlight = 100_000, 0 }, "in-flight"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := lease.DefaultParams()
			tt.change(&p)
			var invalid *model.InvalidError
			if err := p.Validate(); !errors.As(err, &invalid) || invalid.Param != tt.param {
				t.Errorf("Validate() = %v, want one about %q", err, tt.param)
			}
		})
	}
}

func TestPillSurvivesItsOwnFormatAndNothingElse(t *testing.T) {
	for _, epoch := range []uint64{0, 7, 1<<64 - 1} {
		b := lease.FormatPill(epoch)
		if got, ok := lease.ParsePill(b); !ok || got != epoch || len(b) > lease.MaxPill {
			t.Errorf("ParsePill(%q) = %d, %v", b, got, ok)
		}
	}
	for _, bad := range []string{"", "\n", "12", "+1\n", "-1\n", "1 \n", "0x1\n", "99999999999999999999\n", "1\n2\n"} {
		if got, ok := lease.ParsePill([]byte(bad)); ok {
			t.Errorf("ParsePill(%q) = %d, want it refused", bad, got)
		}
	}
}

func TestEveryProfileStandsAndFitsTheGuard(t *testing.T) {
	g := lease.GuardParams()
	if err := g.Validate(); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]time.Duration{"": 10520 * time.Millisecond, lease.ProfileDefault: 10520 * time.Millisecond, lease.ProfileFast: 5510 * time.Millisecond} {
		p, err := lease.Profile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if p.TakeAfter() != want {
			t.Errorf("%s: taken over after %v, want %v", name, p.TakeAfter(), want)
		}
		if g.Lease < p.Lease || g.Watchdog > p.Watchdog || g.FreezeMargin != p.FreezeMargin || g.InFlight != p.InFlight || g.ClockErrorPPM != p.ClockErrorPPM {
			t.Errorf("%s: %+v does not fit the guard's %+v", name, p, g)
		}
		p.Watchdog = g.Watchdog
		if err := p.Validate(); err != nil {
			t.Errorf("%s with the guard's watchdog: %v", name, err)
		}
	}
	if _, err := lease.Profile("quick"); !errors.Is(err, model.ErrInvalid) {
		t.Error(err)
	}
}
