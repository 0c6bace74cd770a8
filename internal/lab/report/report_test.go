package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with a file below testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func sec(v float64) time.Duration { return time.Duration(v * float64(time.Second)) }

func ptr(v float64) *float64 { return &v }

// echoAround makes a series with a gap.
func echoAround(at, gap time.Duration) []Echo {
	var out []Echo
	for t := at - sec(0.2); t < at+gap+sec(0.3); t += 20 * time.Millisecond {
		e := Echo{At: t, Trip: 2 * time.Millisecond}
		if t > at && t < at+gap {
			e.Trip = at + gap - t
		}
		if t > at && t < at+30*time.Millisecond {
			e.Trip = -1
		}
		out = append(out, e)
	}
	return out
}

func move(from, to string, at, gap, total time.Duration) Move {
	return Move{
		From: from, To: to, Begin: at, End: at + total, Gap: gap, GapAt: at + total/2, Sent: 120, Lost: 1,
		Downtime: 12 * time.Millisecond, Echo: echoAround(at+total/2, gap),
	}
}

// good is a run that reached its targets.
func good() *Run {
	r := &Run{
		Begin: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Length: sec(150), Nodes: []string{"n1", "n2", "n3"},
		Host: Host{
			Name: "host", System: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0", CPU: "AMD EPYC", Cores: 2, MemoryMiB: 24105,
			LoadBegin: 0.3, LoadEnd: 1.9, QEMU: "10.0.2", Accel: "tcg", Sauh: "0.1.0", Commit: "0123456789ab", Go: "go1.26",
		},
		Parameters: []Parameter{
			{
				Name: "cluster stability", Target: "quorate 100 %", Measured: ptr(100), Unit: "%", What: "of the polls quorate", Pass: true,
				Checks: []Check{{Name: "quorate", Target: "100 %", Measured: ptr(100), Unit: "%", Pass: true, Note: "390 of 390 polls"}},
			},
			{
				Name: "live migration", Target: "median gap ≤ 250 ms", Measured: ptr(151.5), Unit: "ms", What: "median gap", Pass: true,
				Checks: []Check{{Name: "median gap", Target: "≤ 250 ms", Measured: ptr(151.5), Unit: "ms", Pass: true}, {Name: "ratio", Target: "≤ 1.5 ×", Measured: ptr(1.08), Unit: "×", Pass: true}},
			},
		},
		Migrations: []Migration{
			{Sauh: move("n2", "n1", sec(30), sec(0.143), sec(1.1)), Hand: move("n2", "n1", sec(32), sec(0.131), sec(0.9))},
			{Sauh: move("n1", "n2", sec(36), sec(0.16), sec(1.2)), Hand: move("n1", "n2", sec(34), sec(0.149), sec(1))},
		},
		Transfers: []Transfer{
			{Kind: "stream", Guest: "guest 100", Begin: sec(25), End: sec(70), Bytes: 5 << 20, Stall: sec(0.17), OK: true},
			{Kind: "download", Guest: "guest 100", Begin: sec(25), End: sec(33), Bytes: 2 << 20, Stall: sec(0.2), OK: true},
		},
		Failovers: []Failover{{
			Kind: "worker", Node: "n3", To: "n1", Guest: "guest 101", Roles: "store leader n1", Cut: sec(80), Fenced: sec(90.1), Started: sec(90.2),
			Answered: sec(94), PowerOn: sec(95), Member: sec(96), StartLimit: sec(14), AnswerLimit: sec(20),
			Echo: echoAround(sec(80), sec(14)), Bystanders: []Bystander{{Guest: "guest 100", Node: "n2", Gap: sec(0.03)}},
		}},
		Ledger: []LedgerCheck{
			{At: sec(31), Guest: "guest 100", After: "move 1", Acknowledged: 1200},
			{At: sec(37), Guest: "guest 100", After: "move 2", Acknowledged: 2400, Unknown: 1},
			{At: sec(95), Guest: "guest 101", After: "the power cut of n3", Acknowledged: 5100},
		},
		Windows:     []Window{{From: sec(80), To: sec(96), Label: "n3 without power"}},
		Definitions: []Definition{{Term: "Gap", Text: "Longer than <nothing> & shorter than \"all\"."}},
		Timeline: []Lane{
			{Name: "n3", Spans: []Span{{From: sec(1), To: sec(80), Kind: "on"}, {From: sec(80), To: sec(95), Kind: "off", Label: "no power"}}},
			{Name: "guest 101", Spans: []Span{{From: sec(9), To: sec(80), Kind: "n3", Label: "n3"}, {From: sec(90.2), To: sec(150), Kind: "n1", Label: "n1"}}},
			{Name: "steps", Spans: []Span{{From: 0, To: sec(20), Kind: "step", Label: "bring up a machine room"}, {From: sec(20), To: sec(150), Kind: "step", Label: "all the rest"}}},
			{Name: "moves", Spans: []Span{{From: sec(30), To: sec(31), Kind: "move", Label: "guest 100 n2 → n1"}}},
		},
	}
	for i := range 5 {
		at := sec(float64(78 + i))
		r.Polls = append(r.Polls, Poll{Node: "n1", At: at, Quorate: i != 3, InFault: i > 1, Reason: map[bool]string{true: "not quorate"}[i == 3]})
	}
	for _, n := range r.Nodes {
		l := NodeLoad{Node: n}
		for i := range 6 {
			l.Samples = append(l.Samples, LoadSample{At: sec(float64(i)), SauhCPU: 0.03, GuestCPU: 0.2 * float64(i), SauhBytes: 60 << 20, GuestBytes: int64(i) << 25})
		}
		r.Load = append(r.Load, l)
	}
	return r
}

// bad is a run in which much went wrong, with texts that need escaping.
func bad() *Run {
	r := good()
	r.Parameters[1].Pass, r.Parameters[1].Checks[0].Pass, r.Parameters[1].Measured = false, false, nil
	r.Parameters[1].Checks[0].Measured = nil
	r.Migrations[0].Sauh = Move{From: "n2", To: "n1", Begin: sec(30), End: sec(31), Err: "the target <n1> refused"}
	r.Migrations[1].Hand = Move{}
	r.Transfers[1].OK, r.Transfers[1].Reason = false, "connection reset & gone"
	r.Failovers[0].Fenced, r.Failovers[0].Started, r.Failovers[0].Answered, r.Failovers[0].Member = 0, 0, 0, 0
	r.Ledger = append(r.Ledger, LedgerCheck{At: sec(97), Guest: "guest 101", After: "everything", Acknowledged: 5100, Lost: 3, Wrong: 1})
	r.Failures = []Failure{{At: sec(97), Step: "cut the power", Reason: "ledger of guest 101: 3 lost <script>alert(1)</script>"}}
	return r
}

func TestTheSummaryOfARunThatPassed(t *testing.T) {
	got, err := Summary(good())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "good.json", got)
}

func TestTheSummaryOfARunThatFailedHasNullForWhatIsMissing(t *testing.T) {
	got, err := Summary(bad())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "bad.json", got)
}

func TestTheSummaryOfNothingIsAFailureWithEmptyLists(t *testing.T) {
	got, err := Summary(&Run{})
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Verdict    string
		Parameters []any
		Migrations []any
		Failovers  []any
	}
	if err := json.Unmarshal(got, &s); err != nil {
		t.Fatal(err)
	}
	if s.Verdict != "fail" || s.Parameters == nil || s.Migrations == nil || s.Failovers == nil {
		t.Errorf("got %+v: want fail and lists that are empty, not null", s)
	}
}

func TestARunPassesOnlyWithParametersAllMetAndNoFailedStep(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Run)
		want   bool
	}{
		"all met":         {func(*Run) {}, true},
		"one not met":     {func(r *Run) { r.Parameters[1].Pass = false }, false},
		"a step failed":   {func(r *Run) { r.Failures = []Failure{{Step: "x"}} }, false},
		"nothing to meet": {func(r *Run) { r.Parameters = nil }, false},
	} {
		r := good()
		tt.change(r)
		if got := r.Passed(); got != tt.want {
			t.Errorf("%s: got %v, want %v", name, got, tt.want)
		}
	}
}

func TestLedgersAddUpOverGuestsAndNotOverChecks(t *testing.T) {
	a, l, w := Totals([]LedgerCheck{
		{Guest: "a", Acknowledged: 10}, {Guest: "a", Acknowledged: 20, Lost: 2}, {Guest: "a", Acknowledged: 30, Lost: 1}, {Guest: "b", Acknowledged: 5, Wrong: 1},
	})
	if diff := cmp.Diff([3]int{35, 2, 1}, [3]int{a, l, w}); diff != "" {
		t.Error(diff)
	}
}

func TestThePageOfARunThatPassed(t *testing.T) {
	golden(t, "good.html", render(t, good()))
}

// Every kind of run, whole or with parts missing, gives a page that stands by itself.
func TestEveryPageStandsByItself(t *testing.T) {
	runs := map[string]*Run{"good": good(), "bad": bad(), "nothing": {}}
	for name, cut := range map[string]func(*Run){
		"no moves":     func(r *Run) { r.Migrations, r.Transfers = nil, nil },
		"no failovers": func(r *Run) { r.Failovers, r.Windows = nil, nil },
		"no load":      func(r *Run) { r.Load = nil },
		"one sample":   func(r *Run) { r.Load = []NodeLoad{{Node: "n1", Samples: []LoadSample{{At: sec(1)}}}} },
		"no timeline":  func(r *Run) { r.Timeline, r.Polls = nil, nil },
		"no echo":      func(r *Run) { r.Migrations[0].Sauh.Echo, r.Failovers[0].Echo = nil, nil },
		"no length":    func(r *Run) { r.Length = 0 },
	} {
		r := good()
		cut(r)
		runs[name] = r
	}
	for name, r := range runs {
		page := render(t, r)
		if m := regexp.MustCompile(`(?i)<script|<link|<img|<iframe|@import|url\(|src=|href=|https?://`).Find(page); m != nil {
			t.Errorf("%s: the page reaches outside itself: %s", name, m)
		}
		if m := regexp.MustCompile(`NaN|Inf\b|%!|<no value>|&lt;nil&gt;`).Find(page); m != nil {
			t.Errorf("%s: the page shows %s", name, m)
		}
		for _, svg := range regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAll(page, -1) {
			wellFormed(t, name, svg)
		}
	}
}

func TestTheFailedPageNamesWhatWentWrong(t *testing.T) {
	page := string(render(t, bad()))
	for _, want := range []string{"1 of 2 targets met", "the target &lt;n1&gt; refused", "connection reset &amp; gone", "not measured", "did not come back", "3 lost &lt;script&gt;"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

func render(t *testing.T, r *Run) []byte {
	t.Helper()
	page, err := HTML(r)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func wellFormed(t *testing.T, name string, svg []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Errorf("%s: %v in %.200s", name, err, svg)
			return
		}
	}
}

func TestScalesEndAndTickAtRoundValues(t *testing.T) {
	s := scale{lo: -0.5, hi: 24, from: 0, to: 100}
	if diff := cmp.Diff([]float64{0, 5, 10, 15, 20}, s.ticks(6)); diff != "" {
		t.Error(diff)
	}
	l := scale{lo: 0.3, hi: 3000, log: true}
	if diff := cmp.Diff([]float64{1, 10, 100, 1000}, l.ticks(4), cmp.Comparer(func(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 })); diff != "" {
		t.Error(diff)
	}
	for v, want := range map[float64]float64{811: 1000, 0.42: 0.5, 1.01: 1.5, 600: 600} {
		if got := roundUp(v); got < want-1e-9 || got > want+1e-9 {
			t.Errorf("roundUp(%v) = %v, want %v", v, got, want)
		}
	}
}

func TestFiguresHaveThreeDigitsAndGroupsOfThousands(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 1.0834: "1.08", 10.43: "10.4", 548.02: "548", 1432: "1\u2009432", 1234567: "1\u2009234\u2009567", -1500: "-1\u2009500"} {
		if got := figure(v); got != want {
			t.Errorf("figure(%v) = %q, want %q", v, got, want)
		}
	}
	if got := Value(nil, "ms"); got != "not measured" {
		t.Errorf("got %q for nothing", got)
	}
}

func TestLoadIsNotDrawnWhereANodeHadNoPower(t *testing.T) {
	on := LoadSample{SauhBytes: 1}
	var all []LoadSample
	for i, s := range []LoadSample{on, on, {}, {}, on, on, on} {
		s.At = sec(float64(i))
		all = append(all, s)
	}
	all[6].At = sec(20) // not measured for a while
	var got []int
	for _, p := range parts(all) {
		got = append(got, len(p))
	}
	if diff := cmp.Diff([]int{2, 0, 2, 1}, got); diff != "" {
		t.Error(diff)
	}
}
