package demo

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/lab/report"
)

func milli(n int) time.Duration { return time.Duration(n) * time.Millisecond }

func pairs(sauh, hand []int) []report.Migration {
	var out []report.Migration
	for i := range max(len(sauh), len(hand)) {
		var p report.Migration
		if i < len(sauh) {
			p.Sauh = report.Move{End: time.Second, Gap: milli(sauh[i])}
		}
		if i < len(hand) {
			p.Hand = report.Move{End: time.Second, Gap: milli(hand[i])}
		}
		out = append(out, p)
	}
	return out
}

func sixTimes(ms int) []int { return []int{ms, ms, ms, ms, ms, ms} }

func transfers(ok bool) []report.Transfer {
	return []report.Transfer{{Kind: "stream", Guest: movingName, OK: true}, {Kind: "download", Guest: movingName, OK: ok}}
}

func failovers(worker, leader [2]float64) []report.Failover {
	one := func(kind string, v [2]float64) report.Failover {
		f := report.Failover{Kind: kind, Cut: time.Second}
		f.Started = f.Cut + time.Duration(v[0]*float64(time.Second))
		f.Answered = f.Cut + time.Duration(v[1]*float64(time.Second))
		return f
	}
	return []report.Failover{one(kindWorker, worker), one(kindLeader, leader)}
}

func goodRun() *report.Run {
	return &report.Run{
		Polls:      []report.Poll{{Quorate: true}, {InFault: true}, {Quorate: true, InFault: true}},
		Migrations: pairs(sixTimes(150), sixTimes(140)), Transfers: transfers(true),
		Failovers: failovers([2]float64{10.4, 13}, [2]float64{10.9, 14}),
		Ledger:    []report.LedgerCheck{{Guest: movingName, Acknowledged: 10}, {Guest: failingName, Acknowledged: 10}, {Guest: failingName, Acknowledged: 20}},
	}
}

func verdicts(r *report.Run) map[string]bool {
	out := map[string]bool{}
	for _, p := range judge(r) {
		out[p.Name] = p.Pass
	}
	return out
}

// Each row changes a good run in one way and names the parameters that are then not met.
func TestEachTargetIsMissedByItsOwnFault(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*report.Run)
		missed []string
	}{
		"a good run":          {func(*report.Run) {}, nil},
		"one poll unquorate":  {func(r *report.Run) { r.Polls = append(r.Polls, report.Poll{}) }, []string{"cluster stability"}},
		"no polls":            {func(r *report.Run) { r.Polls = nil }, []string{"cluster stability"}},
		"polls only in fault": {func(r *report.Run) { r.Polls = r.Polls[1:] }, []string{"cluster stability"}},

		"median at the limit":          {func(r *report.Run) { r.Migrations = pairs(sixTimes(250), sixTimes(250)) }, nil},
		"median above it":              {func(r *report.Run) { r.Migrations = pairs(sixTimes(251), sixTimes(250)) }, []string{"live migration"}},
		"one long gap below a second":  {func(r *report.Run) { r.Migrations[3].Sauh.Gap = milli(999) }, nil},
		"one gap of a second":          {func(r *report.Run) { r.Migrations[3].Sauh.Gap = time.Second }, []string{"live migration"}},
		"more than 1.5 times by hand":  {func(r *report.Run) { r.Migrations = pairs(sixTimes(160), sixTimes(100)) }, []string{"live migration"}},
		"a long gap by hand":           {func(r *report.Run) { r.Migrations[0].Hand.Gap = time.Minute }, nil},
		"a move that failed":           {func(r *report.Run) { r.Migrations[0].Sauh.Err = "x" }, []string{"live migration"}},
		"only five moves":              {func(r *report.Run) { r.Migrations = r.Migrations[1:] }, []string{"live migration"}},
		"no moves by hand":             {func(r *report.Run) { r.Migrations = pairs(sixTimes(150), nil) }, []string{"live migration"}},
		"no moves":                     {func(r *report.Run) { r.Migrations = nil }, []string{"live migration"}},
		"a download with another hash": {func(r *report.Run) { r.Transfers = transfers(false) }, []string{"live migration"}},
		"no downloads":                 {func(r *report.Run) { r.Transfers = r.Transfers[:1] }, []string{"live migration"}},
		"a broken stream by hand": {func(r *report.Run) {
			r.Transfers = append(r.Transfers, report.Transfer{Kind: "stream", Guest: "guest 102"})
		}, nil},
		"a start at the limits":         {func(r *report.Run) { r.Failovers = failovers([2]float64{14, 20}, [2]float64{16, 22}) }, nil},
		"a worker's start too late":     {func(r *report.Run) { r.Failovers = failovers([2]float64{14.01, 20}, [2]float64{11, 14}) }, []string{"failover"}},
		"a worker's answer too late":    {func(r *report.Run) { r.Failovers = failovers([2]float64{14, 20.01}, [2]float64{11, 14}) }, []string{"failover"}},
		"the leader's start too late":   {func(r *report.Run) { r.Failovers = failovers([2]float64{11, 14}, [2]float64{16.01, 20}) }, []string{"failover"}},
		"the leader's answer too late":  {func(r *report.Run) { r.Failovers = failovers([2]float64{11, 14}, [2]float64{16, 22.01}) }, []string{"failover"}},
		"only one failover":             {func(r *report.Run) { r.Failovers = r.Failovers[:1] }, []string{"failover"}},
		"a guest that never came back":  {func(r *report.Run) { r.Failovers[1].Answered = 0 }, []string{"failover"}},
		"a record lost":                 {func(r *report.Run) { r.Ledger[0].Lost = 1 }, []string{"data integrity"}},
		"a record wrong":                {func(r *report.Run) { r.Ledger[2].Wrong = 1 }, []string{"data integrity"}},
		"a ledger that cannot be read":  {func(r *report.Run) { r.Ledger[1].Err = "x" }, []string{"data integrity"}},
		"one failover not looked after": {func(r *report.Run) { r.Ledger = r.Ledger[:2] }, []string{"data integrity"}},
		"no ledger":                     {func(r *report.Run) { r.Ledger = nil }, []string{"data integrity"}},
		"nothing acknowledged":          {func(r *report.Run) { clearAcknowledged(r.Ledger) }, []string{"data integrity"}},
	} {
		r := goodRun()
		tt.change(r)
		want := map[string]bool{"cluster stability": true, "live migration": true, "failover": true, "data integrity": true}
		for _, m := range tt.missed {
			want[m] = false
		}
		if diff := cmp.Diff(want, verdicts(r)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func clearAcknowledged(checks []report.LedgerCheck) {
	for i := range checks {
		checks[i].Acknowledged = 0
	}
}

func TestWhatWasNotMeasuredHasNoFigure(t *testing.T) {
	for _, p := range judge(&report.Run{}) {
		if p.Measured != nil || p.Pass || len(p.Checks) == 0 {
			t.Errorf("%s: measured %v, pass %v, %d checks", p.Name, p.Measured, p.Pass, len(p.Checks))
		}
		for _, c := range p.Checks {
			if c.Measured != nil || c.Pass {
				t.Errorf("%s, %s: measured %v, pass %v", p.Name, c.Name, c.Measured, c.Pass)
			}
		}
	}
}

func TestTheMedianOfAnEvenNumberIsTheMeanOfTheTwoInTheMiddle(t *testing.T) {
	got := middle([]time.Duration{milli(400), milli(100), milli(200), milli(300)})
	if got != milli(250) {
		t.Errorf("got %v, want 250 ms", got)
	}
	if got := middle([]time.Duration{milli(9), milli(1), milli(5)}); got != milli(5) {
		t.Errorf("got %v, want 5 ms", got)
	}
}
