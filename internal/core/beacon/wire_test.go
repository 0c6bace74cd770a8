package beacon_test

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/beacon"
	"sauh.dev/sauh/internal/core/model"
)

func sample() beacon.Message {
	return beacon.Message{
		Network: beacon.Cluster, From: "n1", To: "n2", Boot: "b1", Epoch: 3, Seq: 9, Sent: 5*sec + 1, Sampled: 5 * sec,
		Echo: beacon.Echo{Boot: "b2", Sent: 77, Arrived: 78},
		Claims: []beacon.Claim{
			{VMID: 100, Epoch: 3, Revision: 41, Since: sec, Until: 5 * sec},
			{VMID: model.MaxVMID, Epoch: 2, Revision: math.MaxInt64, Since: 2 * sec, Until: 3 * sec, Ended: true},
		},
	}
}

func TestAMessageArrivesAsItWasSent(t *testing.T) {
	for _, m := range []beacon.Message{sample(), {From: "n1", Boot: "b1"}} {
		got, err := beacon.Open(beacon.Seal(m, secret(1)), []beacon.Key{secret(2), secret(1)})
		if diff := cmp.Diff(m, got); err != nil || diff != "" {
			t.Error(err, diff)
		}
	}
}

func TestADatagramThatWasTouchedIsRefused(t *testing.T) {
	good := beacon.Seal(sample(), secret(1))
	keys := []beacon.Key{secret(1), secret(2)}
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 0x40
		if _, err := beacon.Open(bad, keys); err == nil {
			t.Errorf("byte %d was changed, and nobody noticed", i)
		}
		if _, err := beacon.Open(good[:i], keys); err == nil {
			t.Errorf("cut after %d bytes, and nobody noticed", i)
		}
	}
	if _, err := beacon.Open(good, []beacon.Key{secret(2)}); !errors.Is(err, beacon.ErrUnknownKey) {
		t.Errorf("a key that is not there: %v", err)
	}
	if _, err := beacon.Open(good, []beacon.Key{{ID: 1, Secret: secret(2).Secret}}); !errors.Is(err, beacon.ErrForged) {
		t.Errorf("another secret of the same number: %v", err)
	}
	if _, err := beacon.Open([]byte("GET / HTTP/1.1"), keys); !errors.Is(err, beacon.ErrMalformed) {
		t.Errorf("something else: %v", err)
	}
}

func TestSignedNonsenseIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(*beacon.Message){
		"no sender":          func(m *beacon.Message) { m.From = "" },
		"no boot":            func(m *beacon.Message) { m.Boot = "" },
		"a third network":    func(m *beacon.Message) { m.Network = 2 },
		"a time before boot": func(m *beacon.Message) { m.Sent = -1 },
		"a time of centuries": func(m *beacon.Message) {
			m.Echo.Arrived = math.MaxInt64
		},
		"a look after the message": func(m *beacon.Message) { m.Sampled = m.Sent + 1 },
		"guest 99":                 func(m *beacon.Message) { m.Claims[0].VMID = 99 },
		"ended before boot":        func(m *beacon.Message) { m.Claims[0].Until = -sec },
	} {
		m := sample()
		spoil(&m)
		if _, err := beacon.Open(beacon.Seal(m, secret(1)), []beacon.Key{secret(1)}); !errors.Is(err, beacon.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzOpenNeverPanics(f *testing.F) {
	whole := beacon.Seal(sample(), secret(1))
	f.Add(whole[8 : len(whole)-32])
	f.Fuzz(func(_ *testing.T, body []byte) {
		_, _ = beacon.Open(beacon.Sign(append([]byte("SBn1\x00\x00\x00\x01"), body...), secret(1)), []beacon.Key{secret(1)})
	})
}

func TestNamesThatFitNoDatagramAreRefused(t *testing.T) {
	long := make([]byte, 64)
	for i := range long {
		long[i] = 'n'
	}
	for _, tt := range [][2]string{{"", "b"}, {string(long), "b"}, {"n1", ""}, {"n1", string(long)}} {
		if err := beacon.Validate(tt[0], tt[1]); !errors.Is(err, model.ErrInvalid) {
			t.Errorf("node %q, boot %q: %v", tt[0], tt[1], err)
		}
	}
	if err := beacon.Validate("n1", "b1"); err != nil {
		t.Error(err)
	}
}

// guests are n that run since long ago.
func guests(n int, since time.Duration) []beacon.Guest {
	out := make([]beacon.Guest, n)
	for i := range out {
		out[i] = beacon.Guest{VMID: model.VMID(100 + i), Epoch: 3, Revision: 1_000_000, Since: since}
	}
	return out
}

func TestTheLargestDatagramFits(t *testing.T) {
	r := &beacon.Recorder{}
	r.Sample(3e7*sec, guests(500, sec))
	name := "n23456789012345678901234567890123456789012345678901234567890123"
	boot := "01234567-0123-0123-0123-0123456789ab"
	m := beacon.Message{From: name, To: name, Boot: boot, Echo: beacon.Echo{Boot: boot}, Sent: 3e7 * sec, Sampled: r.Sampled(), Claims: r.Beat()}
	if n := len(beacon.Seal(m, secret(1))); n > beacon.MaxDatagram || n < beacon.MaxDatagram-20 {
		t.Errorf("%d bytes, want nearly %d", n, beacon.MaxDatagram)
	}
}

func TestEachGuestHasItsTurnAndChangesComeAtOnce(t *testing.T) {
	r := &beacon.Recorder{}
	now := 1000 * sec
	running := guests(1000, 0)
	look := func() []beacon.Claim {
		now += beacon.Beat
		r.Sample(now, running)
		return r.Beat()
	}
	for range 100 { // the start of all is no news any more
		look()
	}
	said := map[model.VMID]int{}
	running = append(running, beacon.Guest{VMID: 5000, Since: now})
	running = running[1:] // 100 stops
	for beat := range 40 {
		changes := 0
		for _, c := range look() {
			said[c.VMID]++
			if c.VMID == 5000 || c.VMID == 100 && c.Ended {
				changes++
			}
		}
		if changes != 2 {
			t.Errorf("beat %d tells %d of the 2 changes", beat, changes)
		}
	}
	if len(said) != 1001 {
		t.Errorf("%d of 1001 guests had their turn in 20 s", len(said))
	}
}

func TestTheUsualNodeIsToldInASecond(t *testing.T) {
	r := &beacon.Recorder{}
	said := map[model.VMID]bool{}
	for i := range 60 {
		r.Sample(1000*sec+time.Duration(i)*beacon.Beat, guests(78, sec)) // 20,000 guests on 256 nodes
		if i >= 58 {
			for _, c := range r.Beat() {
				said[c.VMID] = true
			}
		}
	}
	if len(said) != 78 {
		t.Errorf("two beats tell of %d of 78 guests", len(said))
	}
}

func TestSteadyGuestsHaveTheirTurnHoweverMuchChanges(t *testing.T) {
	r := &beacon.Recorder{}
	now := 1000 * sec
	steady := guests(50, sec)
	said := map[model.VMID]bool{}
	for beat := range 100 {
		now += beacon.Beat
		running := steady
		for i := range 50 { // 100 starts and ends a second
			running = append(running[:len(running):len(running)], beacon.Guest{VMID: model.VMID(10000 + 50*beat + i), Since: now})
		}
		r.Sample(now, running)
		claims := r.Beat()
		if beat < 90 {
			continue
		}
		for _, c := range claims {
			said[c.VMID] = said[c.VMID] || c.VMID < 10000
		}
	}
	for _, g := range steady {
		if !said[g.VMID] {
			t.Errorf("guest %d was not told in 5 s", g.VMID)
		}
	}
}
