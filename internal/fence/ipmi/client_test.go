package ipmi_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/fence/fencetest"
	"sauh.dev/sauh/internal/fence/ipmi"
)

const (
	guid     = "4c4c4544004a38108051b4c04f433232"
	guidText = "4c4c4544-004a-3810-8051-b4c04f433232"
)

func now() time.Duration { return time.Duration(time.Now().UnixNano()) }

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func clientOf(s *fencetest.IPMISim, address string, cipher int) *ipmi.Client {
	return ipmi.New(ipmi.Config{Address: address, User: s.User, Password: s.Password, Cipher: cipher, Now: now, Resend: 100 * time.Millisecond})
}

func anybody(string) error { return nil }

func mustBe(t *testing.T, c *ipmi.Client, want fence.PowerState) {
	t.Helper()
	r, err := c.Status(within(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if r.Power != want || r.UUID != guidText || r.Asked > r.Answered || r.Asked == 0 {
		t.Errorf("got %+v, want power %s", r, want)
	}
}

func TestTheSimulatorIsAskedSwitchedOffAndAskedAgain(t *testing.T) {
	sim := fencetest.StartIPMISim(t, guid)
	c := clientOf(sim, sim.Address, 0)
	mustBe(t, c, fence.On)
	if err := c.PowerOff(within(t, 5*time.Second), anybody); err != nil {
		t.Fatal(err)
	}
	mustBe(t, c, fence.Off)
	if sim.Power() {
		t.Error("the chassis still has power")
	}
	if err := c.PowerOff(within(t, 5*time.Second), anybody); err != nil {
		t.Errorf("a machine that is off: %v", err)
	}
}

func TestASuiteThatTheBMCDoesNotHaveIsRefusedAndTheOtherTaken(t *testing.T) {
	sim := fencetest.StartIPMISim(t, guid) // has cipher suite 3, not 17
	if _, err := clientOf(sim, sim.Address, ipmi.CipherSHA256).Status(within(t, 2*time.Second)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("suite 17: %v", err)
	}
	mustBe(t, clientOf(sim, sim.Address, 0), fence.On)
	if _, err := clientOf(sim, sim.Address, 1).Status(within(t, time.Second)); err == nil {
		t.Error("suite 1 encrypts nothing and was taken")
	}
}

func TestAWrongPasswordOrUserIsErrAuth(t *testing.T) {
	sim := fencetest.StartIPMISim(t, guid)
	for _, who := range [][2]string{{sim.User, "wrong"}, {"nobody", sim.Password}, {sim.User, "a password of more than twenty characters"}} {
		c := ipmi.New(ipmi.Config{Address: sim.Address, User: who[0], Password: who[1], Now: now})
		if _, err := c.Status(within(t, 3*time.Second)); !errors.Is(err, ipmi.ErrAuth) {
			t.Errorf("%q: %v", who, err)
		}
	}
	if sim.Orders() != "" {
		t.Errorf("the BMC obeyed: %s", sim.Orders())
	}
}

func TestABMCOfAnotherMachineIsNotTold(t *testing.T) {
	sim := fencetest.StartIPMISim(t, guid)
	err := clientOf(sim, sim.Address, 0).PowerOff(within(t, 3*time.Second), func(uuid string) error {
		if uuid != guidText {
			t.Errorf("got %q", uuid)
		}
		return fence.ErrStranger
	})
	if !errors.Is(err, fence.ErrStranger) || sim.Orders() != "" || !sim.Power() {
		t.Errorf("%v, orders %q, power %v", err, sim.Orders(), sim.Power())
	}
}

func TestABlackHoleCostsItsDeadlineAndNothingMore(t *testing.T) {
	hole := fencetest.StartRelay(t, "")
	c := ipmi.New(ipmi.Config{Address: hole.Address, User: "u", Password: "p", Now: now})
	start := time.Now()
	_, err := c.Status(within(t, 300*time.Millisecond))
	if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > time.Second {
		t.Errorf("%v after %v", err, took)
	}
}

func TestWhoIsCancelledReturnsAtOnce(t *testing.T) {
	hole := fencetest.StartRelay(t, "")
	c := ipmi.New(ipmi.Config{Address: hole.Address, User: "u", Password: "p", Now: now, Resend: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	start := time.Now()
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) || time.Since(start) > time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func TestLostAndDoubledDatagramsDoNoHarm(t *testing.T) {
	sim := fencetest.StartIPMISim(t, guid)
	relay := fencetest.StartRelay(t, sim.Address)
	n := 0
	lossy := func(b []byte) [][]byte {
		if n++; n%3 == 0 {
			return nil
		}
		return [][]byte{b, b}
	}
	relay.Answers(lossy)
	c := clientOf(sim, relay.Address, 3)
	for range 5 {
		mustBe(t, c, fence.On)
	}
}

// An answer to another question, and one of an earlier time, must never be taken for the state of the power.
func TestAnAnswerThatIsLateIsNotTakenForAnother(t *testing.T) {
	sim := fencetest.StartIPMISim(t, guid)
	relay := fencetest.StartRelay(t, sim.Address)
	var old [][]byte
	relay.Answers(func(b []byte) [][]byte {
		out := append(append([][]byte{}, old...), b) // everything that was ever said, then the answer
		old = append(old, b)
		return out
	})
	c := clientOf(sim, relay.Address, 3)
	sim.Set("power", "0")
	mustBe(t, c, fence.Off)
	sim.Set("power", "1")
	mustBe(t, c, fence.On)
}

func TestDatagramsThatAreNotAuthenticAreDropped(t *testing.T) {
	sim := fencetest.StartIPMISim(t, guid)
	relay := fencetest.StartRelay(t, sim.Address)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	sessions := 0
	relay.Answers(func(b []byte) [][]byte {
		if b[5]&0xc0 == 0 {
			sessions++
			return [][]byte{b} // the handshake
		}
		var forged [][]byte
		for range 20 {
			f := bytes.Clone(b)
			f[4+random.IntN(len(f)-4)] ^= byte(1 + random.IntN(255))
			forged = append(forged, f, f[:random.IntN(len(f))])
		}
		plain := bytes.Clone(b)
		plain[5] = 0 // neither encrypted nor authenticated
		ack := []byte{0x06, 0x00, 0xff, 0x87}
		other := bytes.Clone(b)
		other[5] = 0xc1 // of another payload type
		return append(forged, plain, ack, other)
	})
	if r, err := clientOf(sim, relay.Address, 3).Status(within(t, 500*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %+v, %v", r, err)
	}
	if sessions == 0 {
		t.Error("no session was opened: the test tried nothing")
	}
}

func TestABMCThatDoesNotKnowThePasswordIsToldNothingOfIt(t *testing.T) {
	sim := fencetest.StartIPMISim(t, guid)
	relay := fencetest.StartRelay(t, sim.Address)
	relay.Answers(func(b []byte) [][]byte {
		if b[5] == 0x13 { // RAKP 2: the BMC's own proof
			b[len(b)-1]++
		}
		return [][]byte{b}
	})
	told := false
	relay.Asked(func(b []byte) [][]byte {
		told = told || b[5] == 0x14 // RAKP 3: ours
		return [][]byte{b}
	})
	_, err := clientOf(sim, relay.Address, 3).Status(within(t, 2*time.Second))
	relay.Asked(nil)
	if !errors.Is(err, ipmi.ErrAuth) || told {
		t.Errorf("%v, told %v", err, told)
	}
}

func TestABMCThatSaysNonsenseIsAnError(t *testing.T) {
	sim := fencetest.StartIPMISim(t, guid)
	relay := fencetest.StartRelay(t, sim.Address)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	relay.Answers(func(b []byte) [][]byte {
		for range 1 + random.IntN(4) {
			b[random.IntN(len(b))] = byte(random.Uint32())
		}
		return [][]byte{b[:random.IntN(len(b)+1)]}
	})
	for range 20 {
		r, err := clientOf(sim, relay.Address, 3).Status(within(t, 50*time.Millisecond))
		if err == nil && r.Power != fence.On {
			t.Errorf("got %+v", r)
		}
	}
}
