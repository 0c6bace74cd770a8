package load

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
)

const sec = time.Second

// node is a machine whose processors do what the test says, and its meter.
type node struct {
	m   Meter
	now time.Duration
	r   Reading
}

func newNode() *node {
	return &node{now: 100 * sec, r: Reading{Node: Counter{CPU: time.Hour, MemoryMiB: 1000}, Guests: map[model.VMID]Counter{}}}
}

// pass lets time go by in steps of Pace, in which the host's own processes and the guests use so many processors.
func (n *node) pass(d time.Duration, host float64, guests map[model.VMID]float64) {
	for end := n.now + d; n.now < end; {
		n.now += Pace
		n.r.Node.CPU += time.Duration(host * float64(Pace))
		next := map[model.VMID]Counter{}
		for id, cpu := range guests {
			c := n.r.Guests[id]
			used := time.Duration(cpu * float64(Pace))
			next[id] = Counter{c.CPU + used, 256}
			n.r.Node.CPU += used
		}
		n.r.Guests = next
		n.m.Read(n.now, n.r)
	}
}

func (n *node) record(t *testing.T) Record {
	t.Helper()
	r, ok := n.m.Record("boot")
	if !ok {
		t.Fatal("nothing is known")
	}
	return r
}

// use is a meter that reads the same all the time.
type use = map[model.VMID]float64

func TestNothingIsKnownAfterOneReading(t *testing.T) {
	n := newNode()
	n.pass(Pace, 1, use{100: 1})
	if r, ok := n.m.Record("boot"); ok {
		t.Errorf("got %+v", r)
	}
}

func TestAnEvenLoadIsKnownAfterTwoReadingsAndSplit(t *testing.T) {
	n := newNode()
	n.pass(2*Pace, 0.25, use{100: 1.5, 101: 0})
	want := Record{
		BootID: "boot", At: 110_000_000, Rest: Use{0.25, 1000 - 512},
		Guests: map[model.VMID]Use{100: {1.5, 256}, 101: {0, 256}},
	}
	if diff := cmp.Diff(want, n.record(t)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAChangeIsBelievedWithinMinutesAndNotAtOnce(t *testing.T) {
	n := newNode()
	n.pass(10*Pace, 0, use{100: 0})
	for _, step := range []struct {
		after    time.Duration
		min, max float64
	}{{Pace, 0.05, 0.1}, {55 * sec, 0.6, 0.65}, {2 * time.Minute, 0.94, 0.96}} {
		n.pass(step.after, 0, use{100: 1})
		if got := n.record(t).Guests[100].CPU; got < step.min || got > step.max {
			t.Errorf("after %s more: %v, want %v to %v", step.after, got, step.min, step.max)
		}
	}
}

func TestSmoothingDoesNotDependOnHowOftenItIsRead(t *testing.T) {
	often, seldom := smoothed(0, true, sec, sec), smoothed(0, true, time.Minute, time.Minute)
	for range 59 {
		often = smoothed(often, true, sec, sec)
	}
	if math.Abs(often-seldom) > 1e-9 {
		t.Errorf("%v and %v", often, seldom)
	}
}

func TestAGuestThatIsNewWaitsForItsSecondReading(t *testing.T) {
	n := newNode()
	n.pass(2*Pace, 0, use{})
	n.pass(Pace, 0, use{100: 1})
	if r := n.record(t); len(r.Guests) != 0 {
		t.Errorf("got %+v", r)
	}
	n.pass(Pace, 0, use{100: 1})
	if got := n.record(t).Guests[100].CPU; got != 1 {
		t.Errorf("got %v", got)
	}
	n.pass(Pace, 0, use{})
	if r := n.record(t); len(r.Guests) != 0 {
		t.Errorf("a guest that ended is told: %+v", r)
	}
}

func TestAGuestThatCameHereGoesOnWithWhatItUsed(t *testing.T) {
	n := newNode()
	n.pass(2*Pace, 0, use{})
	n.r.Before = map[model.VMID]Use{100: {0.5, 300}}
	n.pass(Pace, 0, use{100: 2})
	if got, want := n.record(t).Guests[100], (Use{0.5, 256}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	n.pass(Pace, 0, use{100: 2})
	if got := n.record(t).Guests[100].CPU; got < 0.6 || got > 0.65 {
		t.Errorf("got %v", got)
	}
}

func TestACounterThatWentBackBeginsAnew(t *testing.T) {
	n := newNode()
	n.pass(3*Pace, 0.5, use{100: 1})
	n.r.Guests = map[model.VMID]Counter{100: {}}
	n.r.Node.CPU += 20 * sec
	n.m.Read(n.now+Pace, n.r)
	if got := n.record(t).Guests[100].CPU; got != 1 {
		t.Errorf("a guest that was started anew uses %v", got)
	}
	before := n.record(t)
	n.m.Read(n.now+2*Pace, Reading{})
	if diff := cmp.Diff(before.Rest.CPU, n.record(t).Rest.CPU); diff != "" {
		t.Error(diff)
	}
	n.m.Read(n.now+Pace, Reading{Node: Counter{CPU: time.Hour}}) // the clock did
	if got := n.record(t).Rest.CPU; math.IsInf(got, 0) || math.IsNaN(got) || got > 5 {
		t.Errorf("got %v", got)
	}
}

func TestWhatIsWorthTelling(t *testing.T) {
	said := Record{BootID: "b", At: 1_000_000_000, Rest: Use{2, 1000}, Guests: map[model.VMID]Use{100: {0.5, 500}, 101: {4, 8000}}}
	tests := map[string]struct {
		age    time.Duration
		change func(*Record)
		want   bool
	}{
		"nothing changed":                   {time.Minute, func(*Record) {}, false},
		"nothing changed for two minutes":   {2 * time.Minute, func(*Record) {}, true},
		"a tenth of a processor":            {time.Minute, func(r *Record) { r.Guests[100] = Use{0.6, 500} }, false},
		"more than that":                    {time.Minute, func(r *Record) { r.Guests[100] = Use{0.61, 500} }, true},
		"less than a tenth of much":         {time.Minute, func(r *Record) { r.Guests[101] = Use{4.39, 8700} }, false},
		"more than a tenth of much":         {time.Minute, func(r *Record) { r.Guests[101] = Use{3.59, 8000} }, true},
		"64 MiB":                            {time.Minute, func(r *Record) { r.Guests[100] = Use{0.5, 564} }, false},
		"more memory":                       {time.Minute, func(r *Record) { r.Guests[100] = Use{0.5, 565} }, true},
		"much less memory":                  {time.Minute, func(r *Record) { r.Guests[101] = Use{4, 7000} }, true},
		"the host's own":                    {time.Minute, func(r *Record) { r.Rest = Use{2.3, 1000} }, true},
		"a guest went":                      {time.Minute, func(r *Record) { delete(r.Guests, 100) }, true},
		"a guest came":                      {time.Minute, func(r *Record) { r.Guests[102] = Use{} }, true},
		"one came and one went":             {time.Minute, func(r *Record) { delete(r.Guests, 100); r.Guests[102] = Use{0.5, 500} }, true},
		"much, less than ten seconds after": {10*sec - 1000, func(r *Record) { r.Rest = Use{9, 9000} }, false},
		"much, ten seconds after":           {10 * sec, func(r *Record) { r.Rest = Use{9, 9000} }, true},
		"another boot":                      {0, func(r *Record) { r.BootID = "c" }, true},
		"a clock that went back":            {-sec, func(*Record) {}, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			is := Record{BootID: said.BootID, At: uint64(int64(said.At) + tc.age.Microseconds()), Rest: said.Rest, Guests: map[model.VMID]Use{100: said.Guests[100], 101: said.Guests[101]}}
			tc.change(&is)
			if got := said.Worth(is); got != tc.want {
				t.Errorf("worth telling: %v", got)
			}
		})
	}
	if !(Record{}).Worth(said) {
		t.Error("the first record is not told")
	}
}

func TestWhenARecordCounts(t *testing.T) {
	said := Record{BootID: "b", At: 1_000_000_000}
	minutes := func(n float64) uint64 { return said.At + uint64(n*60e6) }
	tests := map[string]struct {
		live model.Live
		want bool
	}{
		"the node renewed since":                {model.Live{BootID: "b", Seq: minutes(4.9)}, true},
		"it renewed for long without measuring": {model.Live{BootID: "b", Seq: minutes(5)}, false},
		"it has not renewed since":              {model.Live{BootID: "b", Seq: said.At - 1}, true},
		"it was booted anew":                    {model.Live{BootID: "c", Seq: minutes(0.1)}, false},
		"it was cut off":                        {model.Live{BootID: "b", Seq: minutes(0.1), Fenced: true}, false},
		"it is not known":                       {model.Live{}, false},
	}
	for name, tc := range tests {
		if got := said.Counts(tc.live); got != tc.want {
			t.Errorf("%s: counts %v", name, got)
		}
	}
	if (Record{}).Counts(model.Live{}) {
		t.Error("no record counts")
	}
}

func TestAGuestCountsWhereItIsByNow(t *testing.T) {
	records := map[string]Record{
		"n1": {Rest: Use{0.1, 100}, Guests: map[model.VMID]Use{100: {1, 500}, 101: {2, 600}, 102: {3, 700}}},
		"n2": {Rest: Use{0.2, 200}, Guests: map[model.VMID]Use{101: {2.5, 650}}},
		"n3": {Rest: Use{0.3, 300}, Guests: map[model.VMID]Use{102: {9, 9000}}},
	}
	owner := map[model.VMID]string{
		100: "n2", // moved, and not measured there yet
		101: "n2", // moved and measured
		102: "n4", // on a node that has not measured
		103: "n1", // not measured
	}
	want := Known{
		Nodes:  map[string]Use{"n1": {0.1, 100}, "n2": {3.7, 1350}, "n3": {0.3, 300}},
		Guests: map[model.VMID]Use{100: {1, 500}, 101: {2.5, 650}, 102: {3, 700}},
	}
	for range 20 { // whatever the order of the maps
		if diff := cmp.Diff(want, Assign(records, owner)); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
}

func TestARecordIsShortAndReadsBack(t *testing.T) {
	r := Record{BootID: "b", At: 12, Rest: Use{0.25, 488}, Guests: map[model.VMID]Use{100: {1.5, 256}}}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(data), `{"boot_id":"b","at":12,"rest":{"cpu":0.25,"mem":488},"guests":{"100":{"cpu":1.5,"mem":256}}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var back Record
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, back); diff != "" {
		t.Error(diff)
	}
}
