package demo

import (
	"fmt"
	"math"
	"slices"
	"time"

	"sauh.dev/sauh/internal/lab/report"
)

// The targets.
const (
	medianGap    = 250 * time.Millisecond
	longestGap   = time.Second
	handRatio    = 1.5
	startLimit   = 14 * time.Second
	answerLimit  = 20 * time.Second
	leaderExtra  = 2 * time.Second // when manager and store leader die with the node
	expectedFail = 2               // failovers, one of each kind
)

// judge makes the verdicts from what was measured. Nothing measured is not met.
func judge(r *report.Run) []report.Parameter {
	return []report.Parameter{
		judgeStability(r.Polls), judgeMigration(r.Migrations, r.Transfers), judgeFailover(r.Failovers), judgeLedger(r.Ledger),
	}
}

// parameter puts checks together; it is met if all are.
func parameter(name, target, what, unit string, measured *float64, checks ...report.Check) report.Parameter {
	failed := func(c report.Check) bool { return !c.Pass }
	return report.Parameter{
		Name: name, Target: target, What: what, Unit: unit, Measured: measured, Checks: checks, Pass: !slices.ContainsFunc(checks, failed),
	}
}

func judgeStability(polls []report.Poll) report.Parameter {
	asked, quorate, inFault, quorateInFault := 0, 0, 0, 0
	for _, p := range polls {
		switch {
		case p.InFault && p.Quorate:
			quorateInFault++
			fallthrough
		case p.InFault:
			inFault++
		case p.Quorate:
			quorate++
			fallthrough
		default:
			asked++
		}
	}
	var measured *float64
	if asked > 0 {
		measured = number(100 * float64(quorate) / float64(asked))
	}
	note := fmt.Sprintf("%d of %d polls outside faults", quorate, asked)
	if inFault > 0 {
		note += fmt.Sprintf("; within faults, for information, %d of %d", quorateInFault, inFault)
	}
	return parameter("cluster stability", "quorate 100 %", "of the polls quorate", "%", measured, report.Check{
		Name: "quorate, polled each second on every living node", Target: "100 %", Unit: "%", Measured: measured,
		Pass: asked > 0 && quorate == asked, Note: note,
	})
}

func judgeMigration(pairs []report.Migration, transfers []report.Transfer) report.Parameter {
	var sauh, hand []time.Duration
	failed := 0
	for _, p := range pairs {
		if p.Sauh.Made() {
			sauh = append(sauh, p.Sauh.Gap)
		} else {
			failed++
		}
		if p.Hand.Made() {
			hand = append(hand, p.Hand.Gap)
		}
	}
	median, longest := checkGaps(sauh, failed)
	return parameter("live migration", "median gap ≤ 250 ms, longest < 1000 ms, ≤ 1.5 × by hand, stream and downloads go on", "median gap", "ms", median.Measured,
		median, longest, checkRatio(sauh, hand), checkTransfers(transfers))
}

func checkGaps(gaps []time.Duration, failed int) (median, longest report.Check) {
	median = report.Check{Name: "median gap of the 10 ms echo", Target: "≤ 250 ms", Unit: "ms"}
	longest = report.Check{Name: "longest gap", Target: "< 1000 ms", Unit: "ms"}
	note := fmt.Sprintf("%d moves", len(gaps))
	if failed > 0 {
		note += fmt.Sprintf(", and %d that failed", failed)
	}
	median.Note, longest.Note = note, note
	if len(gaps) == 0 {
		return median, longest
	}
	whole := len(gaps) >= moves && failed == 0
	median.Measured, longest.Measured = ms(middle(gaps)), ms(slices.Max(gaps))
	median.Pass = whole && middle(gaps) <= medianGap
	longest.Pass = whole && slices.Max(gaps) < longestGap
	return median, longest
}

func checkRatio(sauh, hand []time.Duration) report.Check {
	c := report.Check{Name: "median gap, compared with the same move by hand", Target: "≤ 1.5 ×", Unit: "×"}
	if len(sauh) == 0 || len(hand) == 0 || middle(hand) == 0 {
		return c
	}
	ratio := float64(middle(sauh)) / float64(middle(hand))
	c.Measured, c.Pass = number(ratio), ratio <= handRatio
	c.Note = fmt.Sprintf("by hand: median %d ms of %d moves", middle(hand).Milliseconds(), len(hand))
	return c
}

// checkTransfers judges those of the guest that Sauh moved.
func checkTransfers(all []report.Transfer) report.Check {
	c := report.Check{Name: "streams and downloads broken or with a wrong hash", Target: "0", Unit: ""}
	streams, files, broken := 0, 0, 0
	for _, t := range all {
		if t.Guest != movingName {
			continue
		}
		if t.Kind == "stream" {
			streams++
		} else {
			files++
		}
		if !t.OK {
			broken++
		}
	}
	if streams > 0 && files > 0 {
		c.Measured = number(float64(broken))
	}
	c.Pass = streams > 0 && files > 0 && broken == 0
	c.Note = fmt.Sprintf("%d stream over one connection, %d downloads", streams, files)
	return c
}

func judgeFailover(all []report.Failover) report.Parameter {
	var checks []report.Check
	var worst *float64
	for _, kind := range []string{kindWorker, kindLeader} {
		var f report.Failover
		if i := slices.IndexFunc(all, func(f report.Failover) bool { return f.Kind == kind }); i >= 0 {
			f = all[i]
		}
		toStart, toAnswer := limits(kind)
		start, started := f.ToStart()
		answer, answered := f.ToAnswer()
		checks = append(checks,
			timeCheck(kind+": power cut → QEMU started elsewhere", start, started, toStart),
			timeCheck(kind+": power cut → guest answers", answer, answered, toAnswer))
		if started && (worst == nil || start.Seconds() > *worst) {
			worst = number(start.Seconds())
		}
	}
	return parameter("failover", "QEMU started elsewhere ≤ 14 s, guest answers ≤ 20 s; ≤ 2 s more when manager and store leader die with it", "slowest start elsewhere", "s", worst, checks...)
}

// limits of a failover, by what dies with the node.
func limits(kind string) (start, answer time.Duration) {
	if kind == kindLeader {
		return startLimit + leaderExtra, answerLimit + leaderExtra
	}
	return startLimit, answerLimit
}

func timeCheck(name string, d time.Duration, ok bool, limit time.Duration) report.Check {
	c := report.Check{Name: name, Target: fmt.Sprintf("≤ %g s", limit.Seconds()), Unit: "s"}
	if ok {
		c.Measured, c.Pass = number(d.Seconds()), d <= limit
	}
	return c
}

func judgeLedger(checks []report.LedgerCheck) report.Parameter {
	acknowledged, lost, wrong := report.Totals(checks)
	c := report.Check{Name: "acknowledged records that are missing or wrong", Target: "0", Unit: "records"}
	unreadable, afterFaults := 0, 0
	for _, l := range checks {
		if l.Err != "" {
			unreadable++
		} else if l.Guest == failingName {
			afterFaults++
		}
	}
	c.Note = fmt.Sprintf("%d records acknowledged, %d comparisons", acknowledged, len(checks)-unreadable)
	if unreadable > 0 {
		c.Note += fmt.Sprintf(", and %d that could not be made", unreadable)
	}
	if len(checks) > unreadable {
		c.Measured = number(float64(lost + wrong))
	}
	c.Pass = acknowledged > 0 && lost+wrong == 0 && unreadable == 0 && afterFaults >= expectedFail
	return parameter("data integrity", "0 acknowledged records missing or wrong", "missing or wrong", "records", c.Measured, c)
}

// middle is the median: of an even number the mean of the two in the middle.
func middle(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// number rounds to thousandths: nothing here is known any better.
func number(v float64) *float64 {
	v = math.Round(v*1000) / 1000
	return &v
}

func ms(d time.Duration) *float64 { return number(float64(d.Microseconds()) / 1000) }
