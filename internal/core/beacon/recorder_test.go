package beacon_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/beacon"
)

func TestAClaimSaysNoMoreThanWasSeen(t *testing.T) {
	g := beacon.Guest{VMID: 100, Epoch: 1, Revision: 5, Since: 10*sec + 1}
	moved := g
	moved.Revision = 6
	run := func(since, until time.Duration, ended bool) beacon.Claim {
		return beacon.Claim{VMID: 100, Epoch: 1, Revision: 5, Since: since, Until: until, Ended: ended}
	}
	type look struct {
		at      time.Duration
		running []beacon.Guest
	}
	for name, tt := range map[string]struct {
		looks []look
		want  []beacon.Claim
	}{
		"the first look knows nothing of the past": {
			[]look{{20 * sec, []beacon.Guest{g}}}, []beacon.Claim{run(20*sec, 20*sec, false)},
		},
		"a start between two looks, rounded up": {
			[]look{{9900 * ms, nil}, {10150 * ms, []beacon.Guest{g}}, {10400 * ms, []beacon.Guest{g}}},
			[]beacon.Claim{run(10*sec+ms, 10400*ms, false)},
		},
		"an end between two looks": {
			[]look{{9900 * ms, nil}, {10150 * ms, []beacon.Guest{g}}, {10400 * ms, nil}}, []beacon.Claim{run(10*sec+ms, 10150*ms, true)},
		},
		"a start from before a look that did not find it is not believed": {
			[]look{{20 * sec, nil}, {20250 * ms, []beacon.Guest{g}}}, []beacon.Claim{run(20*sec, 20250*ms, false)},
		},
		"a start after the question waits": {
			[]look{{9 * sec, nil}, {10 * sec, []beacon.Guest{g}}}, []beacon.Claim{},
		},
		"an unknown start is now": {
			[]look{{20 * sec, nil}, {20250 * ms, []beacon.Guest{{VMID: 100, Epoch: 1, Revision: 5}}}}, []beacon.Claim{run(20250*ms, 20250*ms, false)},
		},
		"a sleep ends all runs and begins new ones": {
			[]look{{20 * sec, []beacon.Guest{g}}, {22*sec + 1*ms, []beacon.Guest{g}}},
			[]beacon.Claim{run(20*sec, 20*sec, true), run(22*sec+ms, 22*sec+ms, false)},
		},
		"another revision is another run": {
			[]look{{20 * sec, []beacon.Guest{g}}, {20250 * ms, []beacon.Guest{moved}}},
			[]beacon.Claim{run(20*sec, 20*sec, true), {VMID: 100, Epoch: 1, Revision: 6, Since: 20 * sec, Until: 20250 * ms}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &beacon.Recorder{}
			for _, l := range tt.looks {
				r.Sample(l.at, l.running)
			}
			if diff := cmp.Diff(tt.want, r.All()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestARunThatEndedIsToldForTwentySeconds(t *testing.T) {
	r := &beacon.Recorder{}
	r.Sample(100*sec, guests(1, sec))
	for at := 101 * sec; at <= 120*sec; at += sec {
		r.Sample(at, nil)
		if n := len(r.Beat()); n != 1 {
			t.Fatalf("%v after the end: told %d times", at-100*sec, n)
		}
	}
	r.Sample(121*sec, nil)
	if n := len(r.All()); n != 0 {
		t.Errorf("kept for longer: %d", n)
	}
}
