package fence_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/model"
)

const (
	uuid     = "4c4c4544-004a-3810-8051-b4c04f433232"
	other    = "4c4c4544-004a-3810-8051-b4c04f433299"
	smbios   = "44454c4c-4a00-1038-8051-b4c04f433232" // uuid with its first three fields turned round
	reversed = "3232434f-c0b4-5180-1038-4a0044454c4c" // uuid turned round as a whole
)

const ms = time.Millisecond

// bmc is a method that is identified, rehearsed without switching, and wants off to last 400 ms.
func bmc() fence.Method {
	return fence.Method{
		Name: "ipmi: b", Node: "n2", Kind: fence.Power, UUID: uuid, Gap: 400 * ms, Digest: "d1", Rehearsal: fence.Rehearsal{Digest: "d1", At: 5},
	}
}

func reading(at time.Duration, p fence.PowerState) fence.Reading {
	return fence.Reading{Power: p, UUID: uuid, Asked: at, Answered: at + 10*ms}
}

func read(readings ...fence.Reading) fence.Evidence { return fence.Evidence{Readings: readings} }

func off(at ...time.Duration) fence.Evidence {
	var ev fence.Evidence
	for _, a := range at {
		ev.Readings = append(ev.Readings, reading(a, fence.Off))
	}
	return ev
}

func TestOffReadTwiceWithTheGapIsAProofSinceTheFirstQuestion(t *testing.T) {
	got, err := fence.Judge(bmc(), off(1000*ms, 1410*ms), nil)
	want := fence.Proof{Node: "n2", Method: "ipmi: b", Kind: fence.Power, Grade: fence.Rehearsed, Since: 1000 * ms, Lasted: 400 * ms}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if !got.Covers(100) || !got.Covers(4711) {
		t.Error("it does not cover every guest")
	}
}

func TestWhatIsNoProof(t *testing.T) {
	failed := fence.Rehearsal{Digest: "d1", At: 5, Failed: "it was on fire"}
	with := func(change func(*fence.Method)) fence.Method { m := bmc(); change(&m); return m }
	named := func(u string) fence.Evidence {
		ev := off(1000*ms, 2000*ms)
		ev.Readings[1].UUID = u
		return ev
	}
	for _, c := range []struct {
		name   string
		method fence.Method
		ev     fence.Evidence
		signs  []fence.Sign
		want   error
	}{
		{"nothing read", bmc(), fence.Evidence{}, nil, fence.ErrNotOff},
		{"on", bmc(), read(reading(0, fence.On)), nil, fence.ErrNotOff},
		{"off, then neither on nor off", bmc(), read(reading(1, fence.Off), reading(999*ms, fence.Off), reading(1000*ms, fence.Unknown)), nil, fence.ErrNotOff},
		{"off once", bmc(), off(1000 * ms), nil, fence.ErrNotVerified},
		{"twice too soon", bmc(), off(1000*ms, 1409*ms), nil, fence.ErrNotVerified},
		{"untried, and off not for long whatever gap was asked for", with(func(m *fence.Method) {
			m.Rehearsal = fence.Rehearsal{}
		}), off(1000*ms, 3009*ms), nil, fence.ErrNotVerified},
		{"off, on, off", bmc(), read(reading(0, fence.Off), reading(500*ms, fence.On), reading(1000*ms, fence.Off)), nil, fence.ErrNotVerified},
		{"another machine", bmc(), named(other), nil, fence.ErrStranger},
		{"a machine without name", bmc(), named(""), nil, fence.ErrUnidentified},
		{"a board without one", bmc(), named("00000000-0000-0000-0000-000000000000"), nil, fence.ErrUnidentified},
		{"a node whose UUID nobody knows", with(func(m *fence.Method) { m.UUID = "" }), off(1000*ms, 2000*ms), nil, fence.ErrUnidentified},
		{"a node with a board without one", with(func(m *fence.Method) {
			m.UUID = "03000200-0400-0500-0006-000700080009"
		}), off(1000*ms, 2000*ms), nil, fence.ErrUnidentified},
		{"any, never tried", with(func(m *fence.Method) { m.UUID, m.AnyUUID = "", true }), off(1000*ms, 2000*ms), nil, fence.ErrRehearsalFailed},
		{"any, only asked", with(func(m *fence.Method) {
			m.UUID, m.AnyUUID, m.Rehearsal = "", true, fence.Rehearsal{Digest: "d1", At: 5}
		}), off(1000*ms, 2000*ms), nil, fence.ErrRehearsalFailed},
		{"a rehearsal that failed", with(func(m *fence.Method) { m.Rehearsal = failed }), off(1000*ms, 2000*ms), nil, fence.ErrRehearsalFailed},
		{"a beacon after it", bmc(), off(1000*ms, 2000*ms), []fence.Sign{{Kind: fence.Beacon, At: 1001 * ms}}, fence.ErrAlive},
		{"a renewal at that instant", bmc(), off(1000*ms, 2000*ms), []fence.Sign{{Kind: fence.Renewal, At: 1000 * ms}}, fence.ErrAlive},
		{"a BMC that was seen to be early", with(func(m *fence.Method) {
			m.Rehearsal = fence.Rehearsal{Digest: "d1", At: 5, Switched: true, Early: 700 * ms}
		}), off(1000*ms, 2000*ms), nil, fence.ErrNotVerified},
		{"a storage that serves it", fence.Method{Kind: fence.Storage}, fence.Evidence{}, nil, fence.ErrNotOff},
		{"a storage without its guests", fence.Method{Kind: fence.Storage}, fence.Evidence{Refusal: &fence.Refusal{At: 1}}, nil, fence.ErrNotCovered},
	} {
		got, err := fence.Judge(c.method, c.ev, c.signs)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v, want %v", c.name, got, err, c.want)
		}
		if verified := fence.Verified(c.method, c.ev.Readings); verified && c.method.Kind == fence.Power && errors.Is(err, fence.ErrNotVerified) {
			t.Errorf("%s: counts as verified", c.name)
		}
	}
}

func TestWhatIsAProofAllTheSame(t *testing.T) {
	with := func(change func(*fence.Method)) fence.Method { m := bmc(); change(&m); return m }
	for _, c := range []struct {
		name   string
		method fence.Method
		ev     fence.Evidence
		signs  []fence.Sign
		grade  fence.Grade
	}{
		{"on, then off long enough", bmc(), read(reading(0, fence.On), reading(1000*ms, fence.Off), reading(1500*ms, fence.Off)), nil, fence.Rehearsed},
		{"heard of before it", bmc(), off(1000*ms, 2000*ms), []fence.Sign{{Kind: fence.Beacon, At: 999 * ms}}, fence.Rehearsed},
		{"untried, off for long", with(func(m *fence.Method) { m.Rehearsal = fence.Rehearsal{} }), off(1000*ms, 3010*ms), nil, fence.Untried},
		{"a rehearsal of another configuration that failed", with(func(m *fence.Method) {
			m.Rehearsal = fence.Rehearsal{Digest: "d0", At: 5, Failed: "old"}
		}), off(1000*ms, 3010*ms), nil, fence.Untried},
		{"any, rehearsed by switching", with(func(m *fence.Method) {
			m.UUID, m.AnyUUID, m.Rehearsal = "", true, fence.Rehearsal{Digest: "d1", At: 5, Switched: true}
		}), off(1000*ms, 2000*ms), nil, fence.Unidentified},
	} {
		got, err := fence.Judge(c.method, c.ev, c.signs)
		if err != nil || got.Grade != c.grade {
			t.Errorf("%s: %+v, %v, want grade %s", c.name, got, err, c.grade)
		}
	}
}

func TestOffMustLastLongerUntilARehearsalSawTheMachineSwitched(t *testing.T) {
	tried := func(r fence.Rehearsal) fence.Rehearsal { r.At, r.Digest = 5, "d1"; return r }
	for _, c := range []struct {
		gap       time.Duration
		rehearsal fence.Rehearsal
		want      time.Duration
	}{
		{0, fence.Rehearsal{}, fence.UntriedGap},
		{0, tried(fence.Rehearsal{}), fence.UntriedGap},
		{0, tried(fence.Rehearsal{Switched: true}), fence.RehearsedGap},
		{0, fence.Rehearsal{At: 5, Digest: "another", Switched: true}, fence.UntriedGap},
		{0, tried(fence.Rehearsal{Switched: true, Early: 3 * time.Second}), 6 * time.Second},
		{time.Second, fence.Rehearsal{}, fence.UntriedGap},
		{time.Second, fence.Rehearsal{At: 5, Digest: "another"}, fence.UntriedGap},
		{time.Second, tried(fence.Rehearsal{Failed: "it was on fire"}), fence.UntriedGap},
		{3 * time.Second, fence.Rehearsal{}, 3 * time.Second},
		{time.Second, tried(fence.Rehearsal{}), time.Second},
		{time.Second, tried(fence.Rehearsal{Switched: true, Early: 800 * ms}), 1600 * ms},
	} {
		m := bmc()
		m.Gap, m.Rehearsal = c.gap, c.rehearsal
		if got := m.OffFor(); got != c.want {
			t.Errorf("gap %v, rehearsal %+v: %v, want %v", c.gap, c.rehearsal, got, c.want)
		}
	}
}

func TestARefusalCoversItsGuestsThoughTheNodeSpeaks(t *testing.T) {
	m := fence.Method{Name: "ceph: c", Node: "n2", Kind: fence.Storage}
	ev := fence.Evidence{Refusal: &fence.Refusal{At: 1000 * ms, Guests: []model.VMID{100, 102}}}
	p, err := fence.Judge(m, ev, []fence.Sign{{Kind: fence.Beacon, At: 2000 * ms}, {Kind: fence.Renewal, At: 2000 * ms}})
	if err != nil || !p.Covers(100) || p.Covers(101) || !p.Covers(102) {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestAMachineIsRecognisedInEveryOrderOfItsBytes(t *testing.T) {
	for _, spelt := range []string{uuid, smbios, reversed, "4C4C4544004A38108051B4C04F433232", "urn:uuid:" + uuid, "{" + uuid + "}"} {
		if !fence.SameSystem(uuid, spelt) || !fence.SameSystem(spelt, uuid) {
			t.Errorf("%s is not recognised", spelt)
		}
	}
	for _, spelt := range []string{other, "", "n2", uuid[1:]} {
		if fence.SameSystem(uuid, spelt) {
			t.Errorf("%q passes for %s", spelt, uuid)
		}
	}
}

func TestOnlyGuestsWhoseWritableDisksAreAllThereAreKeptFromWriting(t *testing.T) {
	rbd, local, iso := fence.Disk{Storage: "rbd", Writable: true}, fence.Disk{Storage: "local", Writable: true}, fence.Disk{Storage: "local"}
	for _, c := range []struct {
		disks []fence.Disk
		want  bool
	}{
		{[]fence.Disk{rbd}, true},
		{[]fence.Disk{rbd, iso}, true},
		{[]fence.Disk{rbd, local}, false},
		{[]fence.Disk{local}, false},
		{[]fence.Disk{iso}, false},
		{nil, false},
	} {
		if got := fence.AllOn([]string{"rbd"}, c.disks); got != c.want {
			t.Errorf("%v: %v", c.disks, got)
		}
	}
}

func TestWhatIsWorthNothingSaysWhatToDo(t *testing.T) {
	for want, r := range map[string]fence.Rehearsal{
		"the method is not rehearsed: the last rehearsal failed: it hangs: repair it and rehearse it again":              {Digest: "d1", At: 5, Failed: "it hangs"},
		"the method is not rehearsed: the last rehearsal failed: it lies: repair it and rehearse it by switching n2 off": {Digest: "d1", At: 5, Failed: "it lies", Refuted: true},
	} {
		m := bmc()
		m.Rehearsal = r
		if grade, err := m.Grade(); grade != fence.Worthless || err == nil || err.Error() != want {
			t.Errorf("%s, %v", grade, err)
		}
	}
}

func TestABMCWhoseNodeHasNoKnownUUIDSaysWhichToWrite(t *testing.T) {
	m := bmc()
	m.UUID = ""
	for named, want := range map[string]string{
		uuid: "the BMC cannot be identified: the system UUID of n2 is not known, and it names " + uuid + ": if it is the BMC of n2, set uuid=" + uuid,
		"": "the BMC cannot be identified: the system UUID of n2 is not known, and it names none: set uuid=any, " +
			"which counts after a rehearsal that switches n2 off",
	} {
		if err := m.Identify(named); !errors.Is(err, fence.ErrUnidentified) || err.Error() != want {
			t.Errorf("%q: %v, want %s", named, err, want)
		}
	}
}
