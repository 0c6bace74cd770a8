package beacon_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/beacon"
	"sauh.dev/sauh/internal/core/model"
)

// dialogue is n1's detector and what n2 and n3 say to it. All clocks show the same, and datagrams take no time.
type dialogue struct {
	t   *testing.T
	d   *beacon.Detector
	now time.Duration
	seq uint64
}

func newDialogue(t *testing.T, alarms ...beacon.Alarm) *dialogue {
	g := &dialogue{t: t, now: 100 * sec, seq: 100}
	g.d = beacon.NewDetector(g.now, "n1", "b1", alarms)
	g.d.Step(g.now, beacon.Members{Names: []string{"n1", "n2", "n3"}})
	return g
}

// message is one from a node whose answer to n1's last message was quick.
func (g *dialogue) message(from string, claims ...beacon.Claim) beacon.Message {
	g.seq++
	return beacon.Message{
		From: from, To: "n1", Boot: "boot of " + from, Seq: g.seq, Sent: g.now, Sampled: g.now,
		Echo: beacon.Echo{Boot: "b1", Sent: g.now, Arrived: g.now}, Claims: claims,
	}
}

func (g *dialogue) hear(m beacon.Message) {
	g.d.Step(g.now, beacon.Datagram{Network: m.Network, Message: m})
}

// pass lets time pass, in which n1 looks at its guests.
func (g *dialogue) pass(d time.Duration, own ...beacon.Claim) []beacon.Alarm {
	var raised []beacon.Alarm
	for end := g.now + d; g.now < end; {
		g.now += min(beacon.SampleEvery, end-g.now)
		raised = append(raised, g.d.Step(g.now, beacon.Look{Claims: own})...)
	}
	return raised
}

func (g *dialogue) counters(want beacon.Counters) {
	g.t.Helper()
	if diff := cmp.Diff(want, g.d.Counters()); diff != "" {
		g.t.Error(diff)
	}
}

func claim(since, until time.Duration) beacon.Claim {
	return beacon.Claim{VMID: 100, Epoch: 3, Revision: 41, Since: since, Until: until}
}

func TestSilenceIsCountedPerNetworkAndOnlyWhileAwake(t *testing.T) {
	g := newDialogue(t)
	m := g.message("n2")
	g.hear(m)
	g.pass(14 * sec)
	m = g.message("n2")
	m.Network = beacon.Cluster
	g.hear(m)
	g.pass(sec)
	got, ok := g.d.Silence(g.now, "n2")
	want := beacon.Silence{Any: sec, Networks: [2]time.Duration{15 * sec, sec}, Ever: true}
	if diff := cmp.Diff(want, got); diff != "" || !ok {
		t.Error(diff)
	}
	if got, _ := g.d.Silence(g.now, "n3"); got.Ever || got.Any != 15*sec {
		t.Errorf("a node never heard of is silent since the beginning, 15s: %+v", got)
	}
	for _, name := range []string{"n1", "n9"} {
		if _, ok := g.d.Silence(g.now, name); ok {
			t.Errorf("%s has a silence", name)
		}
	}
	g.now += 60 * sec // this node sleeps
	if got, _ := g.d.Silence(g.now, "n2"); got.Any > sec+beacon.Gap {
		t.Errorf("just awake: n2 was silent for %v, which this node did not see", got.Any)
	}
	g.pass(sec)
	if got, _ := g.d.Silence(g.now, "n2"); got.Any > sec {
		t.Errorf("a second after waking: n2 was silent for %v", got.Any)
	}
}

func TestForeignStaleAndUnprovedDatagramsAreDroppedAndCounted(t *testing.T) {
	g := newDialogue(t)
	first := g.message("n2")
	first.Echo = beacon.Echo{}
	g.hear(first) // says hello
	early := g.message("n2")
	early.Echo.Sent = 99 * sec // what an earlier life of n1's agent sent
	g.hear(early)
	future := g.message("n2")
	future.Echo.Sent = 101 * sec
	g.hear(future)
	g.counters(beacon.Counters{Unconfirmed: 3})
	if s, _ := g.d.Silence(g.now, "n2"); s.Ever {
		t.Error("n2 was heard of by a message that may be a recording")
	}

	good := g.message("n2")
	g.hear(good)
	g.hear(good) // again
	other := good
	other.Network = beacon.Cluster
	g.hear(other) // the same beat on the other network
	g.counters(beacon.Counters{Unconfirmed: 3, Boots: 1, Accepted: 2, Stale: 1})

	for _, m := range []beacon.Message{g.message("n9"), g.message("n1")} {
		g.hear(m)
	}
	wrong := g.message("n2")
	wrong.To = "n3"
	g.hear(wrong)
	wrong = g.message("n2")
	g.d.Step(g.now, beacon.Datagram{Network: beacon.Cluster, Message: wrong}) // made for the other network
	g.counters(beacon.Counters{Unconfirmed: 3, Boots: 1, Accepted: 2, Stale: 1, Foreign: 4})
}

func TestARecordingOfAnOldBootNeitherCountsNorDisturbs(t *testing.T) {
	g := newDialogue(t)
	old := g.message("n2")
	old.Boot = "the old boot"
	g.hear(old)
	g.pass(10 * sec)
	present := g.message("n2")
	g.hear(present)
	recorded := old
	recorded.Seq += 1000
	recorded.Network = beacon.Cluster
	g.hear(recorded)
	g.counters(beacon.Counters{Boots: 2, Accepted: 2, Unconfirmed: 1})
	if e := g.d.Echo("n2"); e.Boot != present.Boot {
		t.Errorf("n2 is told of %q, want %q: it would never prove its boot", e.Boot, present.Boot)
	}
	g.pass(3 * beacon.Beat)
	again := g.message("n2")
	again.Boot, again.Echo = "a newer boot", beacon.Echo{}
	g.hear(again)
	if e := g.d.Echo("n2"); e.Boot != again.Boot || e.Arrived != g.now {
		t.Errorf("a node that booted anew is told of %+v", e)
	}
}

// confirmed is after how long a suspicion is an alarm.
const confirmed = beacon.Confirm + beacon.SampleEvery

// doubleRun makes n2 and n3 claim guest 100 for three seconds until a while ago.
func (g *dialogue) doubleRun() []beacon.Alarm {
	g.hear(g.message("n2"))
	g.hear(g.message("n3"))
	g.pass(3 * sec)
	g.hear(g.message("n2")) // they are silent so long that their clocks must be found anew
	g.hear(g.message("n3"))
	g.pass(beacon.SampleEvery)
	g.hear(g.message("n2", claim(g.now-3*sec, g.now)))
	g.hear(g.message("n3", claim(g.now-10*sec, g.now)))
	return g.pass(confirmed)
}

func TestAnAlarmStaysUntilItIsAcknowledged(t *testing.T) {
	g := newDialogue(t)
	raised := g.doubleRun()
	if len(raised) != 1 {
		t.Fatalf("%d alarms, want 1", len(raised))
	}
	a := raised[0]
	for _, words := range []string{"guest 100", "n2 and n3", "epoch 3, revision 41", "acknowledge alarm " + a.ID} {
		if !strings.Contains(a.String(), words) {
			t.Errorf("the alarm does not say %q: %s", words, a.String())
		}
	}
	if a.Raised != g.now-beacon.SampleEvery {
		t.Errorf("raised at %v, not %v after it was suspected", a.Raised, beacon.Confirm)
	}
	if a.Overlap < 2500*ms || a.Overlap > 3*sec {
		t.Errorf("overlap %v of 3s with some uncertainty", a.Overlap)
	}
	begin := g.now - confirmed
	g.hear(g.message("n2", claim(begin-3*sec, g.now)))
	if more := g.pass(confirmed); more != nil {
		t.Errorf("the same double run raised again: %v", more)
	}
	g.d.Step(g.now, beacon.Acknowledge{ID: "another"})
	if got := g.d.Alarms(); len(got) != 1 || got[0].ID != a.ID {
		t.Errorf("alarms: %v", got)
	}
	g.d.Step(g.now, beacon.Acknowledge{ID: a.ID})
	if got := g.d.Alarms(); len(got) != 0 {
		t.Errorf("after the acknowledgement: %v", got)
	}
	g.hear(g.message("n3", claim(begin-10*sec, g.now-confirmed)))
	if more := g.pass(confirmed); more != nil {
		t.Errorf("what was acknowledged is raised again: %v", more)
	}
}

func TestAProcessThatWasFoundIsAnAlarmByItself(t *testing.T) {
	g := newDialogue(t)
	found := beacon.Found{VMID: 100, Owner: "n3", Epoch: 4, Since: g.now - 2200*ms}
	raised := g.d.Step(g.now, found)
	if len(raised) != 1 || len(g.d.Alarms()) != 1 || len(g.d.Step(g.now, found)) != 0 {
		t.Fatalf("raised %v, kept %v", raised, g.d.Alarms())
	}
	want := "guest 100 ran on n1 although it is n3's, so it may have run on both at the same time: check its disks, then acknowledge alarm 100-n1-n3-100000 " +
		"(n1 found a process that ran it, not frozen, 2.2s after that was started, and ends it; epoch 4)"
	if got := raised[0].String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	g.d.Step(g.now, beacon.Acknowledge{ID: raised[0].ID})
	if got := g.d.Alarms(); len(got) != 0 {
		t.Errorf("after the acknowledgement: %v", got)
	}
}

func TestADoubleRunThatGoesOnAfterItsAcknowledgementIsRaisedAgain(t *testing.T) {
	g := newDialogue(t)
	a := g.doubleRun()[0]
	begin := g.now - confirmed
	g.d.Step(g.now, beacon.Acknowledge{ID: a.ID})
	g.pass(sec)
	g.hear(g.message("n2", claim(begin-3*sec, g.now)))
	g.hear(g.message("n3", claim(begin-10*sec, g.now)))
	raised := g.pass(confirmed)
	if len(raised) != 1 || raised[0].ID == a.ID || raised[0].Overlap > sec {
		t.Errorf("a second after the acknowledgement: %v", raised)
	}
}

func TestAnAlarmOfAnEarlierLifeIsKeptAndRenewed(t *testing.T) {
	old := beacon.Alarm{
		ID: "100-n2-n3-7", VMID: 100, Overlap: sec, Raised: 5000 * sec, Last: 5000 * sec, // on the clock of another boot
		Runs: [2]beacon.Run{{Node: "n2"}, {Node: "n3"}},
	}
	g := newDialogue(t, old)
	if raised := g.doubleRun(); raised != nil {
		t.Errorf("raised beside the one that is latched: %v", raised)
	}
	got := g.d.Alarms()
	if len(got) != 1 || got[0].ID != old.ID || got[0].Overlap < 2*sec || got[0].Evidence == "" {
		t.Errorf("alarms: %+v", got)
	}
}

func TestNothingFromBeforeTheAgentListenedIsRaised(t *testing.T) {
	g := newDialogue(t)
	g.hear(g.message("n2"))
	g.pass(beacon.SampleEvery)
	before := claim(90*sec, 99*sec)
	before.Ended = true
	g.d.Step(g.now, beacon.Look{Claims: []beacon.Claim{before}})
	g.hear(g.message("n2", before))
	if raised := g.pass(confirmed); raised != nil {
		t.Errorf("an overlap that ended before this agent began: %v", raised)
	}
}

func TestOwnGuestsAreComparedToo(t *testing.T) {
	g := newDialogue(t)
	g.hear(g.message("n2"))
	g.pass(2 * sec)
	g.hear(g.message("n2", claim(g.now-sec, g.now)))
	if raised := g.pass(confirmed+beacon.SampleEvery, claim(g.now-5*sec, g.now)); len(raised) != 1 || raised[0].Runs[0].Node != "n1" {
		t.Errorf("alarms: %v", raised)
	}
}

func TestAnOldEchoBoundsNoClock(t *testing.T) {
	g := newDialogue(t)
	g.hear(g.message("n2"))
	g.pass(60 * sec)
	for range 3 {
		g.pass(sec)
		m := g.message("n2")
		m.Echo = beacon.Echo{Boot: "b1", Sent: 100 * sec, Arrived: 100*sec - 500*ms} // clocks that drifted apart since
		g.hear(m)
	}
	if n := g.d.Counters().ClockBreaks; n != 0 {
		t.Errorf("%d clock breaks from an echo that is a minute old", n)
	}
}

func TestWhoIsNoMemberAnyMoreIsForgotten(t *testing.T) {
	g := newDialogue(t)
	g.hear(g.message("n2"))
	g.pass(sec)
	g.hear(g.message("n2", claim(g.now-sec, g.now)))
	g.pass(beacon.SampleEvery, claim(g.now-5*sec, g.now)) // suspected
	g.d.Step(g.now, beacon.Members{Names: []string{"n1", "n3"}})
	if _, ok := g.d.Silence(g.now, "n2"); ok {
		t.Error("n2 has a silence")
	}
	if raised := g.pass(2*sec, claim(g.now-5*sec, g.now+sec)); raised != nil {
		t.Errorf("compared with a guest of no member: %v", raised)
	}
}

func TestOnlyRunsOfOneGuestAreCompared(t *testing.T) {
	g := newDialogue(t)
	g.hear(g.message("n2"))
	g.pass(2 * sec)
	c := claim(g.now-sec, g.now)
	c.VMID = model.VMID(101)
	g.hear(g.message("n2", c))
	if raised := g.pass(2*sec, claim(g.now-sec, g.now)); raised != nil {
		t.Errorf("alarms: %v", raised)
	}
}

func TestWhatIsTooOldToMatterIsDropped(t *testing.T) {
	g := newDialogue(t)
	for range 300 {
		g.pass(sec)
		c := claim(g.now-sec, g.now)
		c.Ended = true
		g.hear(g.message("n2", c))
	}
	if n := g.d.Runs(); n > 60 {
		t.Errorf("%d runs are kept of 300 that ended in 300s", n)
	}
}

func TestASuspicionThatDoesNotStandRaisesNoAlarm(t *testing.T) {
	g := newDialogue(t)
	g.hear(g.message("n2"))
	g.pass(beacon.SampleEvery)
	g.hear(g.message("n2", claim(g.now, g.now)))
	g.pass(sec)
	g.pass(beacon.SampleEvery, claim(g.now-sec, g.now))
	g.hear(g.message("n2", claim(g.now-sec-beacon.SampleEvery, g.now))) // suspected
	m := g.message("n2")
	m.Sent, m.Echo.Arrived = m.Sent+30*sec, m.Echo.Arrived+30*sec // its clock is elsewhere
	g.hear(m)
	if raised := g.pass(2 * sec); raised != nil || g.d.Counters().ClockBreaks == 0 {
		t.Errorf("alarms %v, counters %+v", raised, g.d.Counters())
	}
}

func TestNothingFromBeforeTheFirstExchangeIsCompared(t *testing.T) {
	g := newDialogue(t)
	g.pass(1500 * ms)
	both := claim(g.now-1500*ms, g.now)
	both.Ended = true
	g.hear(g.message("n2", both)) // its clock is known from here on
	g.pass(beacon.SampleEvery, both)
	g.hear(g.message("n2", both))
	if raised := g.pass(2*sec, both); raised != nil {
		t.Errorf("nobody knows whether its clock stood still before: %v", raised)
	}
}

func TestAnOverlapCountsAsFarAsDriftDoesNotExplainIt(t *testing.T) {
	for overlap, want := range map[time.Duration]int{600 * ms: 0, 650 * ms: 1} { // tolerance 500 ms, drift 120 ms
		g := newDialogue(t)
		g.hear(g.message("n2"))
		g.pass(sec)
		g.hear(g.message("n2"))
		g.pass(sec)
		begin := g.now - overlap
		c := claim(begin, g.now)
		g.hear(g.message("n2", c))
		own := claim(begin-5*sec, g.now)
		own.Ended = true
		if raised := g.pass(2*sec, own); len(raised) != want {
			t.Errorf("an overlap of %v raised %d alarms, want %d", overlap, len(raised), want)
		}
	}
}
